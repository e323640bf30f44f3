"""When an idle executor waits for company.

Theory of operation. To wait for rows that would join a batch of n costs at most the time that the
executor stays idle; it saves what two batches take more than one, t(n) + t(m) - t(n + m), if m more
come. So an executor waits only while more is expected to be saved than lost, and never for longer
than the head's deadline allows. Company is expected in two cases:

1. Callers in a closed loop ask again as soon as they are answered. Without a wait they fall into
   groups that take turns, each in a small batch. How many of them come back is learned (`Echo`);
   for a lone caller or a Poisson stream there is nothing to wait for.
2. Of several executors one is idle before the rows have come that the load needs in each batch.
   Without a wait all of them run batches too small to keep up.

Where batching saves little, or less than a timer can measure, no wait is worth it.
"""

from __future__ import annotations

from collections.abc import Hashable

from headrace.batcher.cost import CostTable
from headrace.batcher.policy import TIMER_GRAIN
from headrace.batcher.sizing import SizePlan
from headrace.batcher.state import State

# Fewer than this share coming back may be chance.
_LEAST_SHARE = 0.5


def wait_until(state: State, key: Hashable, table: CostTable, rate: float, now: float) -> float:
    """The instant to wait for with a batch of `key`, whose rows arrive at `rate`; `now` for none.

    Something may make it worth while to dispatch earlier: it is asked again at every event.
    """
    plan = table.plan
    if plan is None or len(state.queues) > 1:  # other keys have work for the executor
        return now
    all_idle = len(state.idle) == len(state.kinds)
    until = _for_those_answered(state, key, plan, now) if all_idle else now
    if until <= now and len(state.kinds) > 1:
        until = _for_what_the_load_needs(state, key, table, rate, now)
    queue = state.queues[key]
    largest = min(queue.rows + 1, plan.largest)
    return min(until, queue.head.deadline - plan.seconds[largest] * table.guard)


def _for_those_answered(state: State, key: Hashable, plan: SizePlan, now: float) -> float:
    echo, rows = state.demands.of(key).echo, state.queues[key].rows
    missing = min(round(echo.missing(now)), plan.largest - rows)
    if missing < 1 or echo.share < _LEAST_SHARE:
        return now
    incomplete = 1 - echo.share**missing  # how likely it is that some do not come
    lost = incomplete * max(echo.until - now, TIMER_GRAIN)
    return echo.until if echo.share * _saved(plan, rows, missing) > lost else now


def _for_what_the_load_needs(
    state: State, key: Hashable, table: CostTable, rate: float, now: float
) -> float:
    plan, queue, executors = table.plan, state.queues[key], len(state.kinds)
    assert plan is not None
    patience = state.demands.of(key).patience / table.guard
    needed = min(plan.needed(rate, patience, executors), plan.sustaining(rate / executors))
    if queue.rows >= needed:
        return now
    until = queue.head.arrival + needed / rate
    lost = max(until - now, TIMER_GRAIN)
    return until if _saved(plan, queue.rows, needed - queue.rows) > lost else now


def _saved(plan: SizePlan, rows: int, more: int) -> float:
    """Seconds of an executor that one batch saves over one of `rows` and another of `more`."""
    return plan.seconds[rows] + plan.seconds[more] - plan.seconds[rows + more]
