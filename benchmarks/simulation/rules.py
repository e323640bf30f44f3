"""The rules that are compared: fixed ones, Triton's, and the project's own policy, the real one."""

from __future__ import annotations

import itertools
import math
from collections import deque
from dataclasses import dataclass

from headrace.batcher.cost import sizes_to_profile
from headrace.batcher.learned import Learned
from headrace.batcher.policy import Policy
from headrace.batcher.request import Dispatch, Request, WakeAt
from headrace.batcher.scheduler import Scheduler
from headrace.batcher.state import Limits
from simulation.engine import Simulation
from simulation.workloads import Profile

# The bytes of a row that costs 1: all that the policy is told of a shape it has never seen.
_ROW_BYTES = 1000
_PROFILE_RUNS, _PROFILE_BUDGET = 3, 0.5


@dataclass(frozen=True)
class Knobs:
    """What others ask their users for.

    delay: seconds that a request may wait for company while an executor is idle. timeout: seconds
    in the queue after which a request is refused.
    """

    max_batch: int
    delay: float = 0.0
    timeout: float = math.inf

    def __str__(self) -> str:
        timeout = "" if math.isinf(self.timeout) else f", timeout {self.timeout * 1e3:.3g} ms"
        return f"max {self.max_batch}, delay {self.delay * 1e3:.3g} ms{timeout}"


class FixedRule:
    """A queue for each shape; a batch closes when it is full or its oldest has waited enough."""

    eager = False

    def __init__(self, knobs: Knobs) -> None:
        self._knobs = knobs
        self._queues: list[deque[int]] = []

    def bind(self, simulation: Simulation) -> None:
        self._simulation = simulation
        self._queues = [deque() for _ in simulation.trace.tables]

    def arrive(self, first: int, last: int) -> None:
        if len(self._queues) == 1:
            self._queues[0].extend(range(first, last))
            return
        shapes = self._simulation.trace.shapes
        for request in range(first, last):
            self._queues[shapes[request]].append(request)

    def complete(self, executor: int, seconds: float) -> None:
        pass

    def decide(self) -> float:
        simulation, largest = self._simulation, self._knobs.max_batch
        self._refuse()
        while simulation.idle:
            due, wake = self._due()
            if due is None:
                return wake
            size = min(largest, len(due))
            simulation.start(simulation.idle[0], [due.popleft() for _ in range(size)])
        return math.inf

    def _refuse(self) -> None:
        simulation, timeout = self._simulation, self._knobs.timeout
        if timeout == math.inf:
            return
        for queue in self._queues:
            while queue and simulation.now - simulation.arrivals[queue[0]] > timeout:
                simulation.lose(queue.popleft())

    def _due(self) -> tuple[deque[int] | None, float]:
        """Of the queues that have a batch to run the one with the oldest request, or when to ask
        again."""
        simulation, knobs = self._simulation, self._knobs
        due: deque[int] | None = None
        wake = math.inf
        for queue in self._queues:
            if not queue:
                continue
            ripe = simulation.arrivals[queue[0]] + knobs.delay
            if ripe > simulation.now and len(queue) < knobs.max_batch:
                wake = min(wake, ripe)
            elif due is None or queue[0] < due[0]:
                due = queue
        return due, wake


class TritonRule:
    """One queue for all; a batch also closes when a request of another shape comes up behind it."""

    eager = False

    def __init__(self, knobs: Knobs) -> None:
        self._knobs = knobs
        self._queue: deque[int] = deque()

    def bind(self, simulation: Simulation) -> None:
        self._simulation = simulation

    def arrive(self, first: int, last: int) -> None:
        self._queue.extend(range(first, last))

    def complete(self, executor: int, seconds: float) -> None:
        pass

    def decide(self) -> float:
        simulation, queue, knobs = self._simulation, self._queue, self._knobs
        while queue and simulation.now - simulation.arrivals[queue[0]] > knobs.timeout:
            simulation.lose(queue.popleft())
        while queue and simulation.idle:
            size, flushed = self._run()
            ripe = simulation.arrivals[queue[0]] + knobs.delay
            if not flushed and size < knobs.max_batch and ripe > simulation.now:
                return ripe
            simulation.start(simulation.idle[0], [queue.popleft() for _ in range(size)])
        return math.inf

    def _run(self) -> tuple[int, bool]:
        """How many requests at the head have one shape, and whether another shape follows them."""
        shapes = self._simulation.trace.shapes
        shape, size = shapes[self._queue[0]], 0
        for request in self._queue:
            if shapes[request] != shape:
                return size, True
            size += 1
            if size == self._knobs.max_batch:
                break
        return size, False


class PolicyRule:
    """A policy of headrace.batcher, driven by its own Scheduler: the code that the server runs.

    `max_batch` bounds a batch's rows; None stands for as many as the table has. Before the first
    request, sizes 1, 2, 4, ... and 3, 5, 9, ... of the first shape are run three times each, for
    half a second at most, as a server does when it loads a model; the rest is learned on the way.
    """

    eager = True

    def __init__(self, policy: Policy | None = None, max_batch: int | None = None) -> None:
        self._policy = policy or Learned()
        self._max_batch = max_batch

    def bind(self, simulation: Simulation) -> None:
        self._simulation = simulation
        workload = simulation.workload
        limits = Limits(self._max_batch or workload.largest, max_queued_requests=1 << 30)
        kinds = {str(executor): "device" for executor in range(workload.executors)}
        self._scheduler = Scheduler(kinds, self._policy, limits)
        self._bytes = [int(_ROW_BYTES * cost) for cost in workload.costs]
        self._profile()

    def _profile(self) -> None:
        given, state = self._simulation.trace, self._scheduler.state
        profile = given.profile or Profile(given.tables[0])
        runs: list[tuple[int, float]] = []
        for size in sizes_to_profile(state.limits.max_batch_rows):
            for _ in range(_PROFILE_RUNS):
                # Throws of its own, from the end: those of the simulation start from the front.
                runs.append((size, profile.table[size] * given.noise[-1 - len(runs)]))
        spent = itertools.accumulate((seconds for _, seconds in runs), initial=0.0)
        within = [
            run for run, before in zip(runs, spent, strict=False) if before <= _PROFILE_BUDGET
        ]
        key = 0 if profile.share == 1 else "profiled"
        state.cost.table("device", key, profile.share * self._bytes[0]).profile(within)

    def arrive(self, first: int, last: int) -> None:
        simulation = self._simulation
        for payload in range(first, last):
            shape, arrival = simulation.trace.shapes[payload], simulation.arrivals[payload]
            request = Request(
                key=shape,
                payload=payload,
                arrival=arrival,
                nbytes=self._bytes[shape],
                deadline=arrival + simulation.workload.patience,
            )
            if self._scheduler.submit(request) is not None:
                simulation.lose(payload)

    def complete(self, executor: int, seconds: float) -> None:
        self._scheduler.complete(str(executor), seconds, now=self._simulation.now)

    def decide(self) -> float:
        simulation, wake = self._simulation, math.inf
        for action in self._scheduler.step(simulation.now):
            if isinstance(action, Dispatch):
                members = [request.payload for request in action.batch.requests]
                simulation.start(int(action.batch.executor), members)
            elif isinstance(action, WakeAt):
                wake = action.time
            else:
                simulation.lose(action.request.payload)
        return wake
