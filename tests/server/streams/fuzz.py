"""A client of sensor streams that knows what it must be told, and a server whose model is held.

Both sides speak the protocol's messages; only gRPC itself is left out. Time is virtual.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import dataclass, field
from typing import Any, cast

import grpc
import numpy as np

from headrace.batcher.policy import WorkConserving
from headrace.batcher.runner import Runner
from headrace.batcher.state import Limits
from headrace.batcher.testing import FakeExecutor
from headrace.server.models.registry import Registry
from headrace.server.models.served import ServedModel
from headrace.server.rpc.stream_codec import encode_delivery
from headrace.server.rpc.streams import StreamService
from headrace.server.streams.budget import StateBudget
from headrace.server.streams.manager import SessionManager
from headrace.server.streams.terms import StreamLimits
from headrace.server.telemetry.watch import Watch
from headrace.stream.v1 import stream_pb2 as pb
from server.streams.conftest import OneModel

LIMITS = StreamLimits(sessions=4, connection_sessions=3, buffer=64, ttl=100.0)
# Bytes that a session may hold unasked: how deliveries are written down.
_SLACK = 8192
_LAST_TURNS = 2000
_TURNS = 30


class Line:
    """The server's end of one call, as gRPC hands it over; and what was written to it.

    While `reads` is clear, the client takes nothing.
    """

    def __init__(self) -> None:
        self.incoming: asyncio.Queue[Any] = asyncio.Queue()
        self.reads = asyncio.Event()
        self.reads.set()
        self.written: list[bytes] = []
        self.status: grpc.StatusCode | None = None
        self.task: asyncio.Task[None]
        self.closed = False
        self.held: dict[int, Held] = {}  # by handle
        self.returning: Counter[int] = Counter()  # by handle, those resumed who were not told yet

    async def read(self) -> Any:
        return await self.incoming.get()

    async def write(self, data: bytes) -> None:
        await self.reads.wait()
        self.written.append(data)

    async def abort(self, code: grpc.StatusCode, *_: Any) -> None:
        self.status = code
        raise grpc.aio.AbortError

    def code(self) -> Any:
        return self.status

    def details(self) -> str:
        return ""

    def invocation_metadata(self) -> Any:
        return ()

    def auth_context(self) -> Any:
        return {}

    def peer(self) -> str:
        return f"line {id(self)}"


@dataclass(eq=False)
class Held:
    """A session as its client sees it. at: the next window. delivery: the last that came. past: by
    delivery, what `at`, `answered` and `closed` were once it had come."""

    opened: pb.Opened
    asked: pb.Open
    signal: list[float] = field(default_factory=list)
    at: int = 0
    answered: int = 0
    delivery: int = 0
    closed: bool = False
    past: dict[int, tuple[int, int, bool]] = field(default_factory=dict)

    def go_back(self, delivery: int) -> None:
        """What came after `delivery` is to come again."""
        self.past.setdefault(0, (0, 0, False))
        self.delivery = delivery
        self.at, self.answered, self.closed = self.past[delivery]

    def take(self, event: pb.Event) -> None:
        """A delivery: the next one, of the next window, and right."""
        assert not self.closed, "something came after the end"
        assert event.delivery == self.delivery + 1
        self.delivery = event.delivery
        kind = event.WhichOneof("event")
        if kind == "result":
            self._check(event.result)
            self.at += 1
            self.answered += 1
        elif kind == "gap":
            assert event.gap.first_window == self.at < event.gap.end_window
            self.at = event.gap.end_window
        elif kind == "flushed":
            assert event.flushed.windows == self.at
            assert event.flushed.samples <= len(self.signal)
        else:
            assert kind == "closed"
            self.closed = True
            told = event.closed
            assert (told.windows, told.answered) == (self.at, self.answered)
            assert (told.samples, told.dropped) == (len(self.signal), self.at - self.answered)
        self.past[self.delivery] = self.at, self.answered, self.closed

    def _check(self, result: pb.Result) -> None:
        asked = self.asked
        assert result.window == self.at
        padded = [0.0] * asked.context + self.signal
        wanted = padded[result.first_sample : result.end_sample + asked.context]
        if asked.tail == pb.TAIL_PAD:
            wanted += [0.0] * (asked.context + asked.window - len(wanted))
        (output,) = result.outputs
        given = np.frombuffer(output.data, np.float32).tolist()
        assert given == [2 * value for value in wanted]


class World:
    """One server with a model whose runs end when told, and its clients."""

    def __init__(self, model: ServedModel) -> None:
        self.loop = loop = asyncio.get_running_loop()
        self.executor = FakeExecutor()
        limits = Limits(max_batch_rows=4, max_queued_requests=6)
        model.runner = Runner([self.executor], WorkConserving(), limits, loop.time)
        self.registry = OneModel(model)
        self.budget = StateBudget(1 << 20)
        self.manager = SessionManager(
            cast(Registry, self.registry), LIMITS, self.budget, encode_delivery, loop.time
        )
        self.service = StreamService(self.manager, Watch())
        self.lines: list[Line] = []
        self.sessions: list[Held] = []
        self.errors: list[pb.Error] = []

    async def settle(self) -> None:
        for _ in range(_TURNS):
            await asyncio.sleep(0)
        for line in self.lines:
            self.receive(line)

    def connect(self) -> Line:
        line = Line()
        context: Any = line
        line.task = self.loop.create_task(self.service.stream(None, context))
        self.lines.append(line)
        return line

    async def send(self, line: Line, message: Any) -> list[pb.Error]:
        """Returns the errors that it was answered with."""
        seen = len(self.errors)
        line.incoming.put_nowait(message)
        await self.settle()
        return self.errors[seen:]

    async def command(self, line: Line, handle: int, **command: Any) -> list[pb.Error]:
        return await self.send(
            line, pb.StreamRequest(commands=[pb.Command(handle=handle, **command)])
        )

    async def open(self, line: Line, handle: int, asked: pb.Open) -> None:
        before = set(self.manager._sessions)
        line.incoming.put_nowait(pb.StreamRequest(commands=[pb.Command(handle=handle, open=asked)]))
        await asyncio.sleep(0)
        for _ in range(_TURNS):
            await asyncio.sleep(0)
        for id_ in set(self.manager._sessions) - before:
            live = self.manager._sessions[id_]
            opened = pb.Opened(session_id=live.id, resume_token=live.token)
            line.held[handle] = Held(opened, asked)
            self.sessions.append(line.held[handle])
        await self.settle()

    def received(self, held: Held) -> int:
        """What the server has of a session; as many as the client knows where it is gone."""
        live = self.manager._sessions.get(held.opened.session_id)
        return len(held.signal) if live is None else live.session.windower.received

    def claimed(self, held: Held, delivery: int) -> list[pb.Event]:
        """What was sent to a client and was lost, who yet says that all up to `delivery` came."""
        live = self.manager._sessions.get(held.opened.session_id)
        unacked = live.session.deliveries.outbox._unacked if live else ()
        lost = [data for number, data in unacked if held.delivery < number <= delivery]
        return [pb.Event.FromString(data) for data in lost]

    def finish(self, *, failed: bool) -> None:
        if not self.executor.busy:
            return
        if failed:
            self.executor.fail(RuntimeError("as the test says"))
            return
        requests = self.executor.batches[-1].requests
        self.executor.finish([[2 * request.payload.inputs[0]] for request in requests])

    def cut(self, line: Line) -> None:
        """The connection is gone."""
        line.task.cancel()
        self.forget(line)

    def forget(self, line: Line) -> None:
        line.closed = True
        self.lines.remove(line)

    def receive(self, line: Line) -> None:
        for data in line.written:
            for event in pb.StreamResponse.FromString(data).events:
                if event.WhichOneof("event") == "error":
                    assert event.error.code != grpc.StatusCode.INTERNAL.value[0], event.error
                    assert event.error.message
                    self.errors.append(event.error)
                    # Of a line that did not read it may be older than who is there now.
                    if event.error.reason == "SESSION_TAKEN" and not line.returning[event.handle]:
                        line.held.pop(event.handle, None)
                elif event.WhichOneof("event") == "resumed":
                    line.returning[event.handle] -= 1
                elif line.returning[event.handle]:
                    continue  # of before it came back: this comes again
                elif event.delivery and event.handle in line.held:  # else of one taken elsewhere
                    line.held[event.handle].take(event)
        line.written.clear()

    def check(self) -> None:
        """What holds at any time: nobody has more than agreed, and nothing is counted twice."""
        live = list(self.manager._sessions.values())
        assert len(live) <= LIMITS.sessions
        assert self.manager.statistics.sessions == len(live)
        memory = self.manager.memory
        assert memory.used == sum(one.session.holding.nbytes for one in live)
        expected = sum(one.session.deliveries.expected for one in live)
        assert memory.used - expected <= 2 * memory.limit + _SLACK * len(live)
        for one in live:
            session, options = one.session, one.terms.options
            assert session.windower.received - session.windower.released <= options.buffer
            assert len(session.deliveries) <= options.outstanding + session.windower.marks + 2
            assert len(session.deliveries.running) <= options.in_flight
            for block in session.windower._blocks:
                assert len(block) <= 8 * options.buffer
        for line in self.lines:
            assert not line.task.done() or line.task.exception() is None

    async def end(self) -> None:
        """Everybody reads, every run ends, the server stops: all who listen are told."""
        self.registry.error = None
        for line in self.lines:
            line.reads.set()
        stopping = asyncio.get_running_loop().create_task(self.service.drain())
        for _ in range(_LAST_TURNS):
            if stopping.done():
                break
            self.finish(failed=False)
            await self.settle()
            for line in self.lines:
                for handle, held in line.held.items():
                    if not held.closed and held.asked.ttl_ms and held.delivery:
                        ack = pb.Command(handle=handle, ack=pb.Ack(delivery=held.delivery))
                        line.incoming.put_nowait(pb.StreamRequest(commands=[ack]))
            await asyncio.sleep(0.001)
        assert stopping.done(), f"still open: {self.manager._sessions}"
        await stopping
        await self.settle()
        for line in self.lines:
            assert all(held.closed for held in line.held.values())
            assert line.task.done()
            assert line.status in (None, grpc.StatusCode.UNAVAILABLE)
        for live in list(self.manager._sessions.values()):
            self.manager.detach(live)
        assert (len(self.manager), self.budget.used, self.manager.memory.used) == (0, 0, 0)
        while self.executor.busy:
            self.finish(failed=False)
            await self.settle()
        await cast(Any, self.registry.model).runner.drain()
