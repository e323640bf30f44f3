"""The discrete-event engine: arrivals, completions and wake-ups in order of time, and nothing else.

A rule never sees the future. It is told of arrivals and completions, and asked to decide after
each; it starts batches on idle executors and lets requests go. Time is the simulation's `now`: a
clock that is moved by hand from one event to the next.
"""

from __future__ import annotations

import heapq
import math
from bisect import bisect_left, insort
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from simulation.workloads import Trace, Workload, trace

# Requests at the start that are not counted: queues fill, and the policy learns.
_WARM_UP = 0.1


def warm_up(requests: int) -> int:
    """How many of the first requests are not counted."""
    return int(requests * _WARM_UP)


class Rule(Protocol):
    """Decides what runs.

    eager: asked after every event. The others are asked only while an executor is idle, which is
    what makes hundreds of simulations of a grid affordable.
    """

    eager: bool

    def bind(self, simulation: Simulation) -> None:
        """Called once, before anything happens."""

    def arrive(self, first: int, last: int) -> None:
        """The requests from `first` up to but without `last` have come."""

    def complete(self, executor: int, seconds: float) -> None:
        """`executor` is idle again; its run, without what comes beside it, took `seconds`."""

    def decide(self) -> float:
        """Starts and drops what it will. Returns when to ask again, whatever happens before."""


@dataclass(frozen=True)
class Outcome:
    """What became of the requests after the warm-up.

    on_time: the share that was answered by its deadline. throughput: answers a second. mean and
    p99: latency of the answered, in seconds.
    """

    on_time: float
    throughput: float
    mean: float
    p99: float
    answered: int
    lost: int
    batches: int


class Simulation:
    """One rule on one workload."""

    def __init__(self, workload: Workload, rule: Rule, given: Trace | None = None) -> None:
        self.workload = workload
        self.trace = given or trace(workload)
        self.now = 0.0
        self.count = len(self.trace.shapes)
        self.arrivals = list(self.trace.arrivals)
        self.finish = [math.nan] * self.count
        self.lost = 0
        self.idle = list(range(workload.executors))
        self.batches: list[list[int]] = []
        self._rule = rule
        self._ends: list[tuple[float, int, float, Sequence[int]]] = []
        self._calls: list[float] = sorted(self.trace.pauses[: workload.callers])
        self._called = len(self._calls)
        rule.bind(self)

    def start(self, executor: int, requests: list[int]) -> None:
        """Runs `requests`, all of one shape, on an idle executor."""
        self.idle.remove(executor)
        given = self.trace
        table = given.tables[given.shapes[requests[0]]]
        seconds = table[len(requests)] * given.noise[len(self.batches) % len(given.noise)]
        end = self.now + seconds + given.overhead
        finish = self.finish
        for request in requests:
            if finish[request] == finish[request]:
                raise AssertionError(f"request {request} is answered twice")
            finish[request] = end
        self.batches.append(requests)
        heapq.heappush(self._ends, (end, executor, seconds, requests))

    def lose(self, request: int) -> None:
        """Ends a request without an answer; in closed loop its caller goes on to the next."""
        if self.finish[request] == self.finish[request]:
            raise AssertionError(f"request {request} ends twice")
        self.finish[request] = math.inf
        self.lost += 1
        if self.workload.callers:
            self._call()

    def run(self) -> Outcome:
        wake, step = math.inf, self._closed if self.workload.callers else self._open
        came = 0
        while True:
            end = self._ends[0][0] if self._ends else math.inf
            before = min(end, wake)
            more = step(came, before)
            if more > came:
                self._rule.arrive(came, more)
                came = more
            elif before == math.inf:
                return self._outcome()
            elif end <= wake:
                self._complete()
            else:
                self.now = wake
            if self.idle or self._rule.eager:
                wake = self._rule.decide()
                if wake <= self.now:
                    raise AssertionError(f"asked to wake at {wake}, which is not after {self.now}")
            else:
                wake = math.inf

    def _open(self, came: int, before: float) -> int:
        """Lets come what comes next by `before`, all of it while nobody can act on it."""
        if came == self.count or self.arrivals[came] > before:
            return came
        if self.idle or self._rule.eager:
            self.now = self.arrivals[came]
            return came + 1
        more = max(came + 1, bisect_left(self.arrivals, before, came))
        self.now = self.arrivals[more - 1]
        return more

    def _closed(self, came: int, before: float) -> int:
        if came == self.count or not self._calls or self._calls[0] > before:
            return came
        self.now = self._calls.pop(0)
        self.arrivals.append(self.now)
        return came + 1

    def _call(self) -> None:
        if self._called < self.count:
            insort(self._calls, self.now + self.trace.pauses[self._called])
            self._called += 1

    def _complete(self) -> None:
        self.now, executor, seconds, requests = heapq.heappop(self._ends)
        insort(self.idle, executor)
        self._rule.complete(executor, seconds)
        if self.workload.callers:
            for _ in requests:
                self._call()

    def _outcome(self) -> Outcome:
        skip = warm_up(self.count)
        arrivals, finish = np.array(self.arrivals)[skip:], np.array(self.finish)[skip:]
        if np.isnan(finish).any():
            raise AssertionError("requests were forgotten")
        latency = finish - arrivals
        answered = latency[np.isfinite(latency)]
        span = finish[np.isfinite(finish)].max(initial=arrivals[-1]) - arrivals[0]
        return Outcome(
            on_time=float((latency <= self.workload.patience).mean()),
            throughput=len(answered) / max(float(span), 1e-12),
            mean=float(answered.mean()) if len(answered) else math.inf,
            p99=float(np.percentile(answered, 99)) if len(answered) else math.inf,
            answered=len(answered),
            lost=self.lost,
            batches=len(self.batches),
        )
