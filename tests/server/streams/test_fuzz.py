"""Sensor streams under any order of anything: each window is told once, and nothing else gives."""

from __future__ import annotations

import asyncio
import logging
import math
import pathlib
from collections.abc import Iterator
from typing import Any

import grpc
import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from headrace.server.errors import InvalidInput, ModelUnavailable
from headrace.server.executors.session import Provider
from headrace.server.models import served
from headrace.server.models.options import ModelOptions
from headrace.server.models.served import Host, ServedModel
from headrace.stream.v1 import stream_pb2 as pb
from server import graphs
from server.streams.fuzz import Held, Line, World
from support.virtual import VirtualLoop

# Values at which something gives way: bounds of the fields' types, and what is no number.
UINT32 = st.sampled_from([0, 1, 2**31, 2**32 - 1])
UINT64 = st.sampled_from([0, 1, 2**31, 2**63, 2**64 - 1])
RATE = st.sampled_from([0.0, -1.0, 1e-300, 5e-324, 1e300, math.nan, math.inf])
STAMPS = st.sampled_from([None, 0, 1, -(2**63), 2**63 - 1, 10**18])
PICK = st.integers(0, 10**6)
HANDLE = st.integers(0, 2)

SANE = st.builds(
    pb.Open,
    model=st.just("m"),
    signals=st.just([pb.Signal()]),
    window=st.integers(1, 5),
    hop=st.integers(0, 7),
    context=st.integers(0, 3),
    sample_rate_hz=st.sampled_from([100.0, 1e-3, 1e9]),
    latency_objective_us=st.sampled_from([0, 0, 500_000]),
    overload=st.sampled_from([0, pb.OVERLOAD_DROP_OLDEST, pb.OVERLOAD_LATEST_ONLY]),
    tail=st.sampled_from([pb.TAIL_DROP, pb.TAIL_PAD, pb.TAIL_SHORT]),
    ttl_ms=st.sampled_from([0, 400, 50_000]),
    buffer_samples=st.sampled_from([0, 16, 40]),
)
HOSTILE: Any = st.builds(
    pb.Open,
    model=st.sampled_from(["m", "", "\0"]),
    signals=st.lists(
        st.builds(
            pb.Signal,
            input=st.sampled_from(["", "x", "nothing"]),
            datatype=st.sampled_from(["", "FP32", "BYTES", "FP33"]),
            channels=UINT32,
            layout=st.integers(0, 4),
        ),
        max_size=3,
    ),
    window=UINT32 | st.integers(1, 5),
    hop=UINT32,
    context=UINT32,
    sample_rate_hz=RATE | st.just(100.0),
    latency_objective_us=UINT64,
    overload=st.integers(0, 4),
    tail=st.integers(0, 4),
    ttl_ms=UINT64,
    buffer_samples=UINT64,
    priority=UINT32,
)


class _Model:
    served: ServedModel


@pytest.fixture(autouse=True, scope="module")
def _model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    path: pathlib.Path = graphs.save(
        graphs.identity(("batch", "n")), tmp_path_factory.mktemp("fuzz") / "m" / "1" / "model.onnx"
    )

    async def load() -> ServedModel:
        options = ModelOptions(instances=1, padding=False)
        return await served.load("m", "1", path, options, Host(Provider.CPU))

    _Model.served = asyncio.run(load())
    yield
    for executor in _Model.served._executors:
        executor.close()


class Surprises(logging.Handler):
    """Whatever is logged as an error: no client can make the server do that."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(self.format(record))


class Streams(RuleBasedStateMachine):
    """Clients who open, send, acknowledge, flush, close, leave, come back, do it twice, out of
    order, or send rubbish; runs that end, fail, or are refused; readers who do not read."""

    @initialize()
    def start(self) -> None:
        self.surprises = Surprises()
        logging.getLogger().addHandler(self.surprises)
        self.loop = VirtualLoop()
        self.loop.set_exception_handler(
            lambda _, what: self.surprises.lines.append(str(what.get("exception") or what))
        )
        self.run(self._begin())

    async def _begin(self) -> None:
        self.world = World(_Model.served)
        self.world.connect()

    def run(self, what: Any) -> Any:
        return self.loop.run_until_complete(what)

    def line(self, pick: int) -> Line:
        lines = self.world.lines
        return lines[pick % len(lines)] if lines else self.world.connect()

    def held(self, pick: int) -> tuple[Line, int, Held] | None:
        found = [(line, h, s) for line in self.world.lines for h, s in line.held.items()]
        return found[pick % len(found)] if found else None

    @rule(pick=PICK, handle=HANDLE, asked=st.one_of(SANE, SANE, SANE, HOSTILE))
    def open(self, pick: int, handle: int, asked: pb.Open) -> None:
        async def act() -> None:
            await self.world.open(self.line(pick), handle, asked)

        self.run(act())

    @rule(
        pick=PICK,
        size=st.integers(0, 20),
        off=st.sampled_from([0, 0, 0, 0, 0, -1, 1, 2**63]),
        spoilt=st.sampled_from(["", "", "", "", "", "odd", "nan", "two", "none"]),
        stamp=st.one_of(st.none(), STAMPS),
    )
    def send(self, pick: int, size: int, off: int, spoilt: str, stamp: int | None) -> None:
        found = self.held(pick)
        if found is None:
            return
        line, handle, held = found
        values = [float(len(held.signal) + n) for n in range(size)]
        if spoilt == "nan" and values:
            values[-1] = math.nan
        data = [np.array(values, np.float32).tobytes()]
        if spoilt == "odd":
            data[0] += b"?"
        data = {"two": data * 2, "none": []}.get(spoilt, data)
        sequence = max(0, len(held.signal) + off)
        chunk = pb.Chunk(sequence=sequence, data=data, timestamp_ns=stamp)

        async def act() -> None:
            before = self.world.received(held)
            stalled = not line.reads.is_set()
            line.incoming.put_nowait(
                pb.StreamRequest(commands=[pb.Command(handle=handle, chunk=chunk)])
            )
            for _ in range(5):  # the server has read it, and has nothing answered yet
                await asyncio.sleep(0)
            took = self.world.received(held) - before
            assert took in (0, size)
            assert not took or (sequence == len(held.signal) and not spoilt)
            held.signal += values[:took]
            seen = len(self.world.errors)
            await self.world.settle()
            told = len(self.world.errors) > seen or stalled or held.closed
            assert took == size or told, "samples were neither taken nor refused"

        self.run(act())

    @rule(pick=PICK, off=st.sampled_from([0, 0, 0, -1, 1, 2**63]))
    def ack(self, pick: int, off: int) -> None:
        found = self.held(pick)
        if found is not None:
            line, handle, held = found
            ack = pb.Ack(delivery=max(0, held.delivery + off))
            self.run(self.world.command(line, handle, ack=ack))

    @rule(pick=PICK, what=st.sampled_from(["flush", "flush", "close"]))
    def finish_signal(self, pick: int, what: str) -> None:
        found = self.held(pick)
        if found is not None:
            line, handle, _ = found
            message = {"flush": pb.Flush(), "close": pb.Close()}[what]
            self.run(self.world.command(line, handle, **{what: message}))

    @rule(pick=PICK, handle=st.integers(0, 2**32 - 1), rubbish=st.integers(0, 3))
    def rubbish(self, pick: int, handle: int, rubbish: int) -> None:
        line = self.line(pick)
        messages: list[Any] = [
            InvalidInput("the message cannot be parsed"),
            pb.StreamRequest(),
            pb.StreamRequest(commands=[pb.Command(handle=handle)]),
            pb.StreamRequest(commands=[pb.Command(handle=handle, ack=pb.Ack(delivery=1))] * 3),
        ]
        self.run(self.world.send(line, messages[rubbish]))

    @rule(failed=st.sampled_from([False, False, False, True]))
    def run_ends(self, failed: bool) -> None:
        async def act() -> None:
            self.world.finish(failed=failed)
            await self.world.settle()

        self.run(act())

    @rule(seconds=st.sampled_from([0.001, 0.05, 0.3]))
    def time_passes(self, seconds: float) -> None:
        async def act() -> None:
            await asyncio.sleep(seconds)
            await self.world.settle()

        self.run(act())

    @rule(pick=PICK)
    def stall_or_read(self, pick: int) -> None:
        async def act() -> None:
            reads = self.line(pick).reads
            (reads.clear if reads.is_set() else reads.set)()
            await self.world.settle()

        self.run(act())

    @rule(gone=st.booleans())
    def the_model_goes_or_comes(self, gone: bool) -> None:
        self.world.registry.error = ModelUnavailable("unloaded") if gone else None

    @rule()
    def connect(self) -> None:
        async def act() -> None:
            if len(self.world.lines) < 3:
                self.world.connect()
            await self.world.settle()

        self.run(act())

    @rule(pick=PICK, politely=st.booleans())
    def leave(self, pick: int, politely: bool) -> None:
        async def act() -> None:
            line = self.line(pick)
            if politely and line.reads.is_set():
                line.incoming.put_nowait(grpc.aio.EOF)
                await self.world.settle()
                self.world.finish(failed=False)
                await self.world.settle()
            self.world.cut(line)
            await self.world.settle()

        self.run(act())

    @rule(
        pick=PICK,
        line=PICK,
        handle=HANDLE,
        off=st.sampled_from([0, 0, 0, 0, -1, 1, 2**63]),
        token=st.sampled_from(["right", "right", "right", "wrong", ""]),
    )
    def resume(self, pick: int, line: int, handle: int, off: int, token: str) -> None:
        if not self.world.sessions:
            return
        held = self.world.sessions[pick % len(self.world.sessions)]
        shown = {"right": held.opened.resume_token, "wrong": b"?" * 24, "": b""}[token]
        delivery = max(0, held.delivery + off)
        asked = pb.Resume(session_id=held.opened.session_id, resume_token=shown, delivery=delivery)
        self.run(self._resume(held, line, handle, asked))

    async def _resume(self, held: Held, pick: int, handle: int, asked: pb.Resume) -> None:
        world, line = self.world, self.line(pick)
        resume = world.manager.resume

        def watched(*given: Any) -> Any:
            # What was written until here was of before; from here on it counts from what was named.
            for other in world.lines:
                world.receive(other)
            claimed = world.claimed(held, asked.delivery)
            live = resume(*given)
            assert held.opened.resume_token == asked.resume_token
            for event in claimed:
                held.take(event)
            held.go_back(asked.delivery)
            for other in world.lines:
                other.held = {h: s for h, s in other.held.items() if s is not held}
            line.held[handle] = held
            line.returning[handle] += 1
            return live

        world.manager.resume = watched  # type: ignore[assignment, method-assign]
        await world.command(line, handle, resume=asked)
        world.manager.resume = resume  # type: ignore[method-assign]

    @invariant()
    def all_is_in_order(self) -> None:
        if hasattr(self, "world"):
            self.world.check()
            assert self.surprises.lines == []

    def teardown(self) -> None:
        if not hasattr(self, "world"):
            return
        try:
            self.run(self.world.end())
            assert self.surprises.lines == []
        finally:
            logging.getLogger().removeHandler(self.surprises)
            for task in asyncio.all_tasks(self.loop):
                task.cancel()
            self.run(asyncio.sleep(0))
            self.loop.close()


TestStreams = Streams.TestCase
TestStreams.settings = settings(max_examples=40, stateful_step_count=30, deadline=None)
