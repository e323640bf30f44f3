"""What makes a load process send: callers that wait for answers, or a schedule that does not."""

from __future__ import annotations

import asyncio
import itertools
import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple, Protocol

import numpy as np

from headrace.bench.arrivals import schedule
from headrace.bench.calls import Calls, Kind
from headrace.bench.spec import BurstLoad, ClosedLoad, OpenLoad, SteppedLoad, TraceLoad
from headrace.bench.transports import OK

# After a call that failed, a caller waits: a refusal takes no time, and would be repeated at once.
_BACK_OFF, _LONGEST_BACK_OFF = 0.001, 0.1
# Requests sent in one turn of the event loop, so that one that is behind still reads answers.
_AT_ONCE = 32
# Of a sequence of draws made at once.
_DRAWS = 1024


ScheduledLoad = OpenLoad | SteppedLoad | TraceLoad | BurstLoad


class Share(NamedTuple):
    """The part of a load that falls to one of several processes: every `of`-th, from `part` on."""

    part: int = 0
    of: int = 1


class Arrival(NamedTuple):
    """A request that is due at `due` seconds from the start: of which kind, and which input."""

    due: float
    kind: int
    sample: int


class Driver(Protocol):
    """Sends from its start, a time of the event loop, until it is stopped or has nothing left."""

    def start(self, at: float) -> None: ...

    def stop(self, at: float) -> None:
        """Nothing that is due at `at` or later is sent."""

    def busy(self) -> bool:
        """Whether something is due that was not sent yet."""

    def abandon(self) -> None:
        """Counts what was due and not sent among what is under way, and sends it no more."""


def draws(weights: Sequence[float], seed: int) -> Iterator[int]:
    """Indices drawn by weight, without end."""
    if len(weights) == 1:
        yield from itertools.repeat(0)
    rng = np.random.default_rng([seed, 1])  # not the sequence that the arrival times use
    shares = np.asarray(weights) / sum(weights)
    while True:
        yield from rng.choice(len(weights), _DRAWS, p=shares).tolist()


def arrivals(
    load: ScheduledLoad, seconds: float, seed: int, weights: Sequence[float], share: Share
) -> Iterator[Arrival]:
    """This process's share of the schedule. All draw the whole of it, so that together they are it,
    whatever their number."""
    drawn = draws(weights, seed)
    for number, (due, kind) in enumerate(schedule(load, seconds, seed)):
        if kind is None:
            kind = next(drawn)
        if number % share.of == share.part:
            yield Arrival(due, kind, number)


class OpenDriver:
    """Sends `arrivals` when they are due, whatever becomes of them."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        calls: Calls,
        kinds: Sequence[Kind],
        arrivals: Iterator[Arrival],
    ) -> None:
        self._loop, self._calls, self._kinds = loop, calls, kinds
        self._arrivals = arrivals
        self._next: Arrival | None = None
        self._began, self._end = 0.0, math.inf

    def start(self, at: float) -> None:
        self._began = at
        self._next = next(self._arrivals, None)
        self._loop.call_at(at, self._send_due)

    def stop(self, at: float) -> None:
        self._end = at

    def busy(self) -> bool:
        due = math.inf if self._next is None else self._began + self._next.due
        return due < min(self._end, self._calls.now())

    def abandon(self) -> None:
        while self._next is not None and self.busy():
            deadline = self._kinds[self._next.kind].deadline
            self._calls.begin(self._began + self._next.due, deadline)
            self._next = next(self._arrivals, None)

    def _send_due(self) -> None:
        for _ in range(_AT_ONCE):
            arrival = self._next
            if arrival is None:
                return
            due = self._began + arrival.due
            if due >= self._end:
                return
            if due > self._calls.now():
                self._loop.call_at(due, self._send_due)
                return
            self._calls.send(due, self._kinds[arrival.kind], arrival.sample)
            self._next = next(self._arrivals, None)
        self._loop.call_soon(self._send_due)


class ClosedDriver:
    """Callers that each wait for the answer, think, and send again."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        calls: Calls,
        kinds: Sequence[Kind],
        load: ClosedLoad,
        sequence: Iterator[tuple[int, int]],
        share: Share,
    ) -> None:
        """`sequence` gives the kind and the input of each request to come."""
        self._loop, self._calls, self._kinds = loop, calls, kinds
        self._think = load.think
        self._sequence = sequence
        self._callers = len(range(share.part, load.callers, share.of))
        self._end = math.inf

    def start(self, at: float) -> None:
        for _ in range(self._callers):
            self._loop.call_at(at, _Caller(self).send)

    def renew(self, sequence: Iterator[tuple[int, int]]) -> None:
        """From here on, requests are those of `sequence`."""
        self._sequence = sequence

    def stop(self, at: float) -> None:
        self._end = at

    def busy(self) -> bool:
        return False  # a caller that is not waiting for an answer owes nothing

    def abandon(self) -> None:
        """Callers owe nothing."""

    def send(self, caller: _Caller) -> None:
        if self._calls.now() < self._end:
            kind, sample = next(self._sequence)
            self._calls.send(None, self._kinds[kind], sample, caller.ended)

    def ended(self, caller: _Caller) -> None:
        pause = self._think
        if caller.failures:
            pause = max(pause, min(_LONGEST_BACK_OFF, _BACK_OFF * 2.0 ** (caller.failures - 1)))
        if pause:
            self._loop.call_later(pause, caller.send)
        else:
            self.send(caller)


class _Caller:
    """One of a closed load's callers. failures: in a row."""

    __slots__ = ("_driver", "failures")

    def __init__(self, driver: ClosedDriver) -> None:
        self._driver = driver
        self.failures = 0

    def send(self) -> None:
        self._driver.send(self)

    def ended(self, status: str) -> None:
        self.failures = 0 if status == OK else self.failures + 1
        self._driver.ended(self)


def closed_sequence(weights: Sequence[float], seed: int, share: Share) -> Iterator[tuple[int, int]]:
    """Kind and input of every request of one process's callers."""
    drawn = itertools.islice(draws(weights, seed), share.part, None, share.of)
    return zip(drawn, itertools.count(share.part, share.of), strict=False)
