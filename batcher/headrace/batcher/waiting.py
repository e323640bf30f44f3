"""When an idle executor waits for company.

Theory of operation. To wait for rows that would join a batch of n costs at most the time that the
executor stays idle; it saves what two batches take more than one, t(n) + t(m) - t(n + m), if m more
come. So an executor waits only while more is expected to be saved than lost, and never for longer
than deadlines allow. Company is expected in three cases:

1. Callers in a closed loop ask again as soon as they are answered. Without a wait they fall into
   groups that take turns, each in a small batch. How many of them come back is learned (`Echo`);
   for a lone caller or a Poisson stream there is nothing to wait for.
2. Of several executors one is idle before the rows have come that the load needs in each batch.
   Without a wait all of them run batches too small to keep up.
3. The device is pressed: the processors that run batches also bring the requests, and have no time
   left. An executor that stays idle then loses nothing, the others use its time; every small batch
   costs them some. For as long as an efficient batch takes, it waits for as many as are usually
   here.

Where batching saves little, or less than a timer can measure, no wait is worth it.
"""

from __future__ import annotations

from typing import Final

from headrace.batcher.group import Group
from headrace.batcher.policy import TIMER_GRAIN
from headrace.batcher.sizing import SizePlan
from headrace.batcher.state import State

# Fewer than this share coming back may be chance.
_LEAST_SHARE: Final = 0.5


def wait_until(state: State, seen: Group, now: float) -> float:
    """The instant until which an idle executor waits with a batch of `seen`; `now` for none.

    Something may make it worth while to dispatch earlier: it is asked again after every event.
    """
    if len(state.queues) > 1:  # other keys have work for the executor
        return now
    until = now
    if now < seen.demand.echo.until and all(state.running[peer] is None for peer in seen.peers):
        until = _for_those_answered(seen, now)
    if until <= now and len(seen.peers) > 1:
        until = _for_what_the_load_needs(seen, now)
    if until <= now and state.device.pressed:
        until = _for_those_under_way(state, seen, now)
    deadline = state.next_deadline()
    if deadline is None:
        return until
    largest = min(seen.queue.rows + 1, seen.plan.largest)
    return min(until, deadline - seen.plan.seconds[largest] * seen.table.guard)


def _for_those_answered(seen: Group, now: float) -> float:
    echo, plan, rows = seen.demand.echo, seen.plan, seen.queue.rows
    missing = min(round(echo.missing(now)), plan.largest - rows)
    if missing < 1 or echo.share < _LEAST_SHARE:
        return now
    incomplete = 1 - echo.share**missing  # how likely it is that some do not come
    lost = incomplete * max(echo.until - now, TIMER_GRAIN)
    return echo.until if echo.share * _saved(plan, rows, missing) > lost else now


def _for_what_the_load_needs(seen: Group, now: float) -> float:
    plan, queue, rate, executors = seen.plan, seen.queue, seen.rate, len(seen.peers)
    needed = plan.sustaining(rate / executors)
    if queue.rows < needed:
        needed = min(needed, plan.needed(rate, seen.patience, executors))
    if queue.rows >= needed:
        return now
    until = queue.head.arrival + needed / rate
    lost = max(until - now, TIMER_GRAIN)
    return until if _saved(plan, queue.rows, needed - queue.rows) > lost else now


def _for_those_under_way(state: State, seen: Group, now: float) -> float:
    queue, plan = seen.queue, seen.plan
    if queue.rows >= min(plan.efficient, 1 + state.crowd):
        return now
    return queue.head.arrival + max(plan.seconds[plan.efficient], TIMER_GRAIN)


def _saved(plan: SizePlan, rows: int, more: int) -> float:
    """Seconds of an executor that one batch saves over one of `rows` and another of `more`."""
    return plan.seconds[rows] + plan.seconds[more] - plan.seconds[rows + more]
