"""The policy that needs no knobs: sizes from learned costs, deadlines kept, the doomed let go.

Theory of operation, in the order in which a decision is made:

1. What no executor can still finish in time is dropped.
2. An idle executor takes the most urgent group; where executors are not alike, `placement.py` says
   which. It waits for company only where that saves more time than it costs: see `waiting.py`.
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
from itertools import islice

from headrace.batcher.placement import place
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
        if not state.idle or not state.queues:
            return wake(state)
        key, queue = most_urgent(state)
        chosen = place(state, key, queue, now)
        if chosen is None:
            return wake(state)
        executor = chosen.executor
        plan = state.table(executor, key, queue.row_bytes).plan
        if queue.head.solo:
            return (Dispatch(close(state, key, executor, 1, Reason.SOLO, now)),)
        if plan is None:
            return self._without_costs.decide(state, now)
        rate = state.demands.of(key).rate(now)
        if len(state.queues) > 1:
            # The other keys take their share of the executors' time: it is as if this one were
            # asked for as much as all of them together.
            rate = max(rate, _asked(state, executor, now) * plan.peak_rate)
        until = wait_until(state, executor, key, rate, now)
        if until > now:
            return (WakeAt(min([until, *(w.time for w in wake(state))])),)
        wanted, reason = _wanted(state, executor, queue, plan, rate, now)
        if chosen.most < wanted:
            wanted, reason = chosen.most, Reason.SHARED
        skip, rows = _in_time(state, executor, key, wanted, rate, now)
        if skip:
            return [Drop(request, Why.OVERTAKEN) for request in skip]
        if rows < wanted:
            reason = Reason.DEADLINE
        return (Dispatch(close(state, key, executor, rows, reason, now)),)


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
    return min(_HIGHEST_LOAD, _asked(state, executor, now) / len(state.peers[executor]))


def _asked(state: State, executor: str, now: float) -> float:
    """Executor-seconds a second that the waiting keys ask for, at their best costs."""
    costs: dict[Hashable, float] = {}
    for key, queue in state.queues.items():
        plan = state.table(executor, key, queue.row_bytes).plan
        if plan is not None:
            costs[key] = 1 / plan.peak_rate
    return state.demands.load(costs, now)


def _wanted(
    state: State, executor: str, queue: Queue, plan: SizePlan, rate: float, now: float
) -> tuple[int, Reason]:
    """The size to want when no deadline presses, and what keeps it from being larger."""
    peers = state.peers[executor]
    executors, idle = len(peers), sum(state.running[e] is None for e in peers)
    pressed = state.device.pressed
    if pressed:  # a second batch would only take time from what both wait for
        idle = 1
    limit = min(queue.rows, plan.largest)
    inflated = queue.rows / (1 - _load(state, executor, now)) / idle
    size = plan.best(inflated, limit)
    if len(state.queues) == 1:
        size = max(size, min(limit, plan.sustaining(rate / executors)))
    reason = Reason.NO_GAIN if size < limit else Reason.FULL
    if len(state.queues) < executors and not pressed:  # else the others will have keys of their own
        others = sorted(state.free_in(e, now) for e in peers if e != executor)
        share = float(queue.rows)
        for place, free in enumerate(others):
            share = min(share, (queue.rows + rate * free) / (place + 2))
        enough = max(min(limit, plan.sustaining(rate / executors)), math.ceil(share - 1e-9), 1)
        if enough < size:
            size, reason = enough, Reason.SHARED
    return size, reason


def _in_time(
    state: State, executor: str, key: Hashable, wanted: int, rate: float, now: float
) -> tuple[list[Request], int]:
    """Requests to let go of, or none and the size that keeps the deadlines of those it takes.

    Callers' turns can put a tight deadline behind a loose one, so it is not only the head's.
    """
    queue = state.queues[key]
    table = state.table(executor, key, queue.row_bytes)
    plan = table.plan
    assert plan is not None
    guard = table.guard
    slack = min(request.deadline for request in islice(queue, wanted)) - now
    if plan.seconds[wanted] * guard <= slack:
        return [], wanted
    smaller = max(1, plan.within(slack / guard, wanted))
    patience = state.demands.of(key).patience / guard
    needed = min(wanted, plan.needed(rate, patience, len(state.peers[executor])))
    if smaller >= needed or smaller >= queue.rows:
        return [], smaller
    late = now + plan.seconds[needed] * guard
    doomed: list[Request] = []
    served = 0
    for request in queue:
        if request.deadline < late:
            doomed.append(request)
        else:
            served += request.rows
            if served >= needed:
                break
    # If all are tight, serve the head rather than nobody.
    return (doomed, needed) if served else ([], smaller)
