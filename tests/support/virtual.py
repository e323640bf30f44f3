"""An event loop whose time passes only when there is nothing to do, and load processes that run on
it: hours of load in moments, and the same at every run."""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np

from headrace.bench.calls import Kind
from headrace.bench.loads import Share
from headrace.bench.recorder import Recorder, Rows
from headrace.bench.spec import Load, Target
from headrace.bench.transports import OK, Done, Prepared
from headrace.bench.worker import Assignment, Begin, Command, Ended, Notes, Report, Worker

T = TypeVar("T")
TARGET = Target(address="nowhere:0")
_START = 1000.0


class _Waiting(selectors.SelectSelector):
    """Instead of waiting, lets the time pass."""

    def __init__(self, passes: Callable[[float], None]) -> None:
        super().__init__()
        self._passes = passes

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        ready = super().select(0)
        if not ready and timeout is None:
            raise RuntimeError("everything waits, and nothing will ever happen")
        if not ready and timeout:
            self._passes(timeout)
        return ready


class VirtualLoop(asyncio.SelectorEventLoop):
    """Its `time` is virtual, in seconds."""

    def __init__(self) -> None:
        self.now = _START
        super().__init__(_Waiting(self.passes))

    def time(self) -> float:
        return self.now

    def passes(self, seconds: float) -> None:
        """Time goes by; called from within a callback, that callback has taken it."""
        self.now += seconds


def run(main: Coroutine[Any, Any, T]) -> T:
    """Runs `main` on a virtual loop."""
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        return runner.run(main)


@dataclass
class FakeServer:
    """A transport and the server behind it: one request at a time, in order of arrival, each for as
    long as `service` says; none is begun between the times `paused` (from the first request on).
    `status` says how the request of this number ends; None: never."""

    service: Callable[[int], float]
    paused: tuple[float, float] = (0.0, 0.0)
    status: Callable[[int], str | None] = lambda number: OK
    before_send: Callable[[int], None] = lambda number: None
    name: str = "fake"
    sent: list[Prepared] = field(default_factory=list)
    _free: float = 0.0
    _began: float | None = None

    async def open(self) -> None:
        """Nothing to connect to."""

    async def close(self) -> None:
        """Nothing to close."""

    def send(self, request: Prepared, timeout: float | None, done: Done) -> None:
        loop = asyncio.get_running_loop()
        number = len(self.sent)
        self.before_send(number)
        self.sent.append(request)
        now = loop.time()
        self._began = now if self._began is None else self._began
        start = max(now, self._free)
        first, last = (self._began + edge for edge in self.paused)
        if first <= start < last:
            start = last
        self._free = start + self.service(number)
        status = self.status(number)
        if timeout is not None and self._free > now + timeout:
            loop.call_at(now + timeout, done, "DEADLINE_EXCEEDED")
        elif status is not None:
            loop.call_at(self._free, done, status)


def kinds(count: int = 1, deadline: float | None = None) -> tuple[Kind, ...]:
    """Kinds of two inputs each, whose bodies say which they are."""
    return tuple(
        Kind(tuple(Prepared("/x", b"%d.%d" % (kind, sample)) for sample in range(2)), deadline)
        for kind in range(count)
    )


async def play(
    load: Load,
    server: FakeServer,
    *,
    seconds: float,
    seed: int = 0,
    warm_up: float = 0.0,
    grace: float = 5.0,
    processes: int = 1,
    given: Sequence[Kind] = (),
    weights: Sequence[float] = (1.0,),
) -> Recorder:
    """What `processes` load processes, all on this loop, make of `load` on `server`."""
    began = asyncio.get_running_loop().time() + 1.0
    recorder = Recorder(began + warm_up, seconds)
    ended: list[Report] = []

    def report(told: Report) -> None:
        if isinstance(told, Notes):
            recorder.add(rows_of(told), told.statuses)
        elif isinstance(told, Ended):
            ended.append(told)

    workers = []
    for part in range(processes):
        requests = tuple(given or kinds())
        assigned = Assignment(TARGET, requests, tuple(weights), Share(part, processes))
        commands: asyncio.Queue[Command] = asyncio.Queue()
        if warm_up:
            commands.put_nowait(Begin(load, began, np.inf, seed + 1))
        commands.put_nowait(Begin(load, began + warm_up, seconds, seed, grace))
        workers.append(Worker(assigned, server, report).run(commands))
    await asyncio.gather(*workers)
    assert len(ended) == processes
    return recorder


def rows_of(notes: Notes) -> Rows:
    return np.frombuffer(notes.rows).reshape(-1, 4)
