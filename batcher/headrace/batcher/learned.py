"""The policy that needs no knobs: sizes from learned costs, deadlines kept, the doomed let go.

Theory of operation, in the order in which a decision is made:

1. What no executor can still finish in time is dropped.
2. An idle executor takes the most urgent group. It waits for company only where that saves more
   time than it costs: see `waiting.py`.
3. The size minimises the total waiting of the queue by the learned costs (`sizing.py`), the queue
   being inflated by the load: 1/(1 - rho) of it will be there before it is empty. It is at least
   what sustains the arrival rate, and with several executors at most an equal share of what will
   have come by the time the others are free.
4. A batch too slow for its head's deadline is made smaller, but not below the size that the load
   needs: below that every later batch would be late too. Then the head is let go instead, and the
   batch is made of those it can still serve.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterator, Sequence

from headrace.batcher.cost import CostTable
from headrace.batcher.policy import WorkConserving, close, most_urgent, wake
from headrace.batcher.queue import Queue
from headrace.batcher.request import Action, Dispatch, Drop, Reason, Request, WakeAt, Why
from headrace.batcher.sizing import SizePlan
from headrace.batcher.state import State
from headrace.batcher.waiting import wait_until

_HIGHEST_LOAD = 0.98


class Learned:
    """See the head of this file. Falls back on WorkConserving while a key's costs are unknown."""

    def __init__(self) -> None:
        self._without_costs = WorkConserving()

    def decide(self, state: State, now: float) -> Sequence[Action]:
        drops = [Drop(request, Why.EXPIRED) for request in state.expired(now)]
        drops = drops or [Drop(request, Why.OVERTAKEN) for request in _too_late(state, now)]
        if drops:
            return drops
        idle = state.idle
        if not idle or not state.queues:
            return wake(state)
        key, queue = most_urgent(state)
        table = state.table(idle[0], key, queue.row_bytes)
        plan = table.plan
        if plan is None or queue.head.solo:
            return self._without_costs.decide(state, now)
        rate = state.demands.of(key).rate(now)
        if len(state.queues) > 1:
            # The other keys take their share of the executors' time: it is as if this one were
            # asked for as much as all of them together.
            rate = max(rate, _asked(state, idle[0], now) * plan.peak_rate)
        until = wait_until(state, key, table, rate, now)
        if until > now:
            return (WakeAt(min([until, *(w.time for w in wake(state))])),)
        wanted, reason = _wanted(state, queue, plan, rate, now)
        skip, rows = _in_time(state, key, table, wanted, rate, now)
        if skip:
            return [Drop(request, Why.OVERTAKEN) for request in skip]
        if rows < wanted:
            reason = Reason.DEADLINE
        return (Dispatch(close(state, key, idle[0], rows, reason, now)),)


def _too_late(state: State, now: float) -> Iterator[Request]:
    """The waiting requests that would be late even if they ran alone as soon as possible."""
    first = state.next_deadline()
    if first is None:
        return
    soonest = {
        key: min(
            state.free_in(executor, now) + (table.seconds(1) if table.known else 0.0)
            for executor, table in ((e, state.table(e, key, queue.row_bytes)) for e in state.kinds)
        )
        for key, queue in state.queues.items()
    }
    horizon = max(soonest.values(), default=0.0)
    if first > now + horizon:
        return
    for request in state.expired(now + horizon):
        if request.deadline < now + soonest[request.key] and not request.trial:
            yield request


def _load(state: State, executor: str, now: float) -> float:
    """The share of the executors' best capacity that is asked for, below 1."""
    return min(_HIGHEST_LOAD, _asked(state, executor, now) / len(state.kinds))


def _asked(state: State, executor: str, now: float) -> float:
    """Executor-seconds a second that the waiting keys ask for, at their best costs."""
    costs: dict[Hashable, float] = {}
    for key, queue in state.queues.items():
        plan = state.table(executor, key, queue.row_bytes).plan
        if plan is not None:
            costs[key] = 1 / plan.peak_rate
    return state.demands.load(costs, now)


def _wanted(
    state: State, queue: Queue, plan: SizePlan, rate: float, now: float
) -> tuple[int, Reason]:
    """The size to want when no deadline presses, and what keeps it from being larger."""
    idle, executors = state.idle, len(state.kinds)
    limit = min(queue.rows, plan.largest)
    inflated = queue.rows / (1 - _load(state, idle[0], now)) / len(idle)
    size = plan.best(inflated, limit)
    if len(state.queues) == 1:
        size = max(size, min(limit, plan.sustaining(rate / executors)))
    reason = Reason.NO_GAIN if size < limit else Reason.FULL
    if len(state.queues) < executors:  # else the others will have keys of their own
        others = sorted(state.free_in(e, now) for e in state.kinds if e != idle[0])
        share = float(queue.rows)
        for place, free in enumerate(others):
            share = min(share, (queue.rows + rate * free) / (place + 2))
        enough = max(min(limit, plan.sustaining(rate / executors)), math.ceil(share - 1e-9), 1)
        if enough < size:
            size, reason = enough, Reason.SHARED
    return size, reason


def _in_time(
    state: State, key: Hashable, table: CostTable, wanted: int, rate: float, now: float
) -> tuple[list[Request], int]:
    """Requests to let go of, or none and the size that keeps the head's deadline."""
    queue, plan = state.queues[key], table.plan
    assert plan is not None
    guard = table.guard
    slack = queue.head.deadline - now
    if plan.seconds[wanted] * guard <= slack:
        return [], wanted
    smaller = max(1, plan.within(slack / guard, wanted))
    patience = state.demands.of(key).patience / guard
    needed = min(wanted, plan.needed(rate, patience, len(state.kinds)))
    if smaller >= needed or smaller >= queue.rows:
        return [], smaller
    late = now + plan.seconds[needed] * guard
    doomed: list[Request] = []
    for request in queue:
        if request.deadline >= late:
            return doomed, needed
        doomed.append(request)
    return [], smaller  # all are tight: serve the head rather than nobody
