"""Sensor streams as a load: sessions that send a chunk whenever it is full.

A sample is due with its chunk, and a chunk when its last sample is: a device that sends ten samples
at a time cannot send the first before the tenth. A window is due with the chunk that brings its
last sample. The sessions' starts are spread evenly over one chunk: they do not send in step.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
import math
from collections.abc import Sequence

from headrace.bench.calls import Calls
from headrace.bench.loads import Share, draws
from headrace.bench.spec import SensorLoad
from headrace.bench.transports.sensor import SensorSession, SensorTransport, Stream

_AT_ONCE = 32


class SensorDriver:
    """Drives this process's share of the sessions from one timer."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, calls: Calls, load: SensorLoad, share: Share
    ) -> None:
        self._loop, self._calls, self._load, self._share = loop, calls, load, share
        self._sessions: list[SensorSession] = []
        self._deadlines: list[float | None] = []
        self._due: list[tuple[float, int, int]] = []  # a heap of due time, session, chunk
        self._began, self._end = 0.0, math.inf

    async def open(
        self,
        transport: SensorTransport,
        streams: Sequence[Stream],
        weights: Sequence[float],
        seed: int,
    ) -> None:
        """Opens all sessions. Raises ConnectionError where the server refuses one."""
        share = self._share
        kinds = itertools.islice(draws(weights, seed), self._load.sessions)
        for kind in itertools.islice(kinds, share.part, None, share.of):
            self._sessions.append(transport.session(streams[kind]))
            self._deadlines.append(streams[kind].deadline)
        await asyncio.gather(*(session.opened() for session in self._sessions))

    def start(self, at: float) -> None:
        self._began = at
        for session in range(len(self._sessions)):
            heapq.heappush(self._due, self._chunk(session, 0))
        self._loop.call_at(at, self._send_due)

    def stop(self, at: float) -> None:
        self._end = at

    def busy(self) -> bool:
        return bool(self._due) and self._due[0][0] < min(self._end, self._calls.now())

    def abandon(self) -> None:
        while self.busy():
            due, session, chunk = self._due[0]
            heapq.heapreplace(self._due, self._chunk(session, chunk + 1))
            for _ in range(windows_ending(self._load, chunk)):
                self._calls.begin(due, self._deadlines[session])

    def _chunk(self, session: int, chunk: int) -> tuple[float, int, int]:
        """As it is in the heap."""
        phase = (self._share.part + session * self._share.of) / self._load.sessions
        period = self._load.chunk / self._load.sample_rate
        return self._began + (phase + chunk + 1) * period, session, chunk

    def _send_due(self) -> None:
        for _ in range(_AT_ONCE):
            if not self._due:
                return
            due, session, chunk = self._due[0]
            if due >= self._end:
                return
            if due > self._calls.now():
                self._loop.call_at(due, self._send_due)
                return
            heapq.heapreplace(self._due, self._chunk(session, chunk + 1))
            self._send(due, session, chunk)
        self._loop.call_soon(self._send_due)

    def _send(self, due: float, session: int, chunk: int) -> None:
        deadline = self._deadlines[session]
        calls = [self._calls.begin(due, deadline) for _ in range(windows_ending(self._load, chunk))]
        self._sessions[session].send(self._load.chunk, calls)


def windows_ending(load: SensorLoad, chunk: int) -> int:
    """How many windows have their last sample in the chunk of this number."""
    hop = load.hop or load.window

    def complete(samples: int) -> int:
        return 0 if samples < load.window else (samples - load.window) // hop + 1

    return complete((chunk + 1) * load.chunk) - complete(chunk * load.chunk)
