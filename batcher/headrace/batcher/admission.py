"""Who may wait: the answer a request gets on arrival."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping
from typing import Final

from headrace.batcher.request import Reject, Request, Why
from headrace.batcher.state import State

# What a refused caller is told while nothing is known of costs.
_UNKNOWN_WAIT: Final = 0.1
_TRIAL_EVERY: Final = 16
# What runs take by themselves is told where it is less than this share of what they take.
_TELLING: Final = 0.9
_TWICE: Final = 2.0
_SHORTEST_WAIT: Final = 0.001
_LONGEST_WAIT: Final = 30.0


def full(state: State, request: Request) -> Reject | None:
    """None when the queue has room for `request`, else the bound that is reached."""
    limits = state.limits
    if state.queued_requests >= limits.max_queued_requests:
        message = (
            f"the queue is full: {state.queued_requests} requests wait, "
            f"the limit is {limits.max_queued_requests}"
        )
        return _refuse(state, request, Why.QUEUE_FULL, message)
    total = state.queued_bytes + request.nbytes
    if state.queued_requests and total > limits.max_queued_bytes:
        message = (
            f"the queue is full: {state.queued_bytes} bytes wait and this request has "
            f"{request.nbytes}, the limit is {limits.max_queued_bytes}"
        )
        return _refuse(state, request, Why.QUEUE_BYTES, message)
    return None


def late(state: State, request: Request) -> Reject | None:
    """Refuses what could not be in time if everything more urgent were served as fast as can be."""
    if request.deadline == math.inf or ample(state, request):
        return None
    return predicted_late(state, request)


def predicted_late(state: State, request: Request) -> Reject | None:
    """`late`, looked at closely."""
    now = request.arrival
    runs = {executor: _seconds_alone(state, executor, request) for executor in state.there}
    alone = min(state.free_in(executor, now) + runs[executor] for executor in state.candidates)
    run = min(runs.values())
    if now + run > request.deadline:
        return _hopeless(state, request, run)
    finish = alone
    if state.queued_requests:
        predicted = predicted_finish(state, request) * _margin(state, request)
        finish = max(alone, min(predicted, _finish_in_overload(state, request)))
    overdue = now + finish - request.deadline
    if overdue <= 0:
        return None
    message = (
        f"the deadline cannot be met: it is {(request.deadline - now) * 1e3:.1f} ms away, the "
        f"answer is predicted in {finish * 1e3:.1f} ms"
    )
    return Reject(request, Why.TOO_LATE, _in_line(state, request, now, overdue), message)


def ample(state: State, request: Request) -> bool:
    """Whether it will be in time even if all that is here takes twice as long, one by one, as it is
    expected to. Most requests are let in by this, and need not be looked at more closely."""
    executor, rows = state.executors[0], request.rows
    queue = state.queues.get(request.key)
    table = state.table(executor, request.key, request.nbytes / rows)
    if not table.known or len(state.queues) > (queue is not None):
        return False
    waiting = 0 if queue is None else queue.rows
    seconds = table.seconds(rows) + (waiting + rows) * table.seconds(1)
    free = max([state.free_in(each, request.arrival) for each in state.there])
    return request.arrival + _TWICE * (free + seconds) < request.deadline


def _hopeless(state: State, request: Request, run: float) -> Reject | None:
    """Refuses a deadline that the run alone would miss, but for one that finds nobody here and that
    an undisturbed run would not miss: what takes `run` seconds did so beside others.

    And one in so many may try: a cost that was learned in a bad moment would otherwise never be
    learned again. Where one that tried was in time, so does the next (`Scheduler.complete`).

    Where others are here they are to blame, too: an undisturbed run would not miss it, or the time
    that is missing went by on the way. Whoever is not told when to come back may do so at once, and
    many who do keep the processors from all others.
    """
    idle = not state.queued_requests and bool(state.idle)
    undisturbed = min(_seconds_undisturbed(state, executor, request) for executor in state.there)
    promising = (
        not state.device.running
        and request.arrival - state.demands.last >= undisturbed
        and request.arrival + undisturbed <= request.deadline
    )
    request.trial = idle and (promising or state.hopeless % _TRIAL_EVERY == 0)
    state.hopeless += 1
    if request.trial:
        return None
    rows = "1 row" if request.rows == 1 else f"{request.rows} rows"
    message = (
        f"the deadline is {(request.deadline - request.arrival) * 1e3:.1f} ms away, a run of "
        f"{rows} takes about {run * 1e3:.1f} ms"
    )
    if undisturbed < _TELLING * run:
        message += f" beside others, {undisturbed * 1e3:.1f} ms by itself"
    if not _company(state, request.arrival, run):
        return Reject(request, Why.TOO_SHORT, 0.0, message)
    in_time = request.arrival + undisturbed <= request.deadline
    why = Why.TOO_LATE if in_time else Why.TOO_SHORT
    return Reject(request, why, come_back(state, request, request.arrival), message)


def _between(state: State, request: Request) -> float:
    """Seconds between two such requests that can be served, when as many come as can be."""
    executor, size = state.executors[0], request.nbytes / request.rows
    plan = state.table(executor, request.key, size).plan
    if plan is None:
        return 0.0
    rows = max(1, plan.within((request.deadline - request.arrival) / 2, plan.largest))
    return request.rows * plan.seconds[rows] / rows / _strength(state, request)


def _margin(state: State, request: Request) -> float:
    """The factor on the shortest time in which a queue can be served: runs differ, and what they
    cost was never all learned. Without it a burst is let in that is a part too long.

    Where several keys wait, others will join the batches that are predicted for each: the shortest
    time is long enough.
    """
    if len(state.queues) > 1:
        return 1.0
    row_bytes = request.nbytes / request.rows
    return 1 + state.table(state.executors[0], request.key, row_bytes).spread


def _seconds_alone(state: State, executor: str, request: Request) -> float:
    table = state.table(executor, request.key, request.nbytes / request.rows)
    return table.seconds(request.rows) if table.known else 0.0


def _seconds_undisturbed(state: State, executor: str, request: Request) -> float:
    table = state.table(executor, request.key, request.nbytes / request.rows)
    return table.seconds_undisturbed(request.rows) if table.known else 0.0


def predicted_finish(state: State, request: Request) -> float:
    """Seconds from its arrival until `request` and all that is more urgent can have been answered.

    The shortest time: executors share the work evenly and run it in the best sizes. 0 where nothing
    is known of costs.
    """
    return _finish_after(state, request, request.rank, request.arrival)


def _finish_after(state: State, request: Request, rank: tuple[float, ...], now: float) -> float:
    """`predicted_finish` from `now` for one like `request` that has `rank`."""
    ahead = {key: queue.rows_before(rank) for key, queue in state.queues.items()}
    ahead[request.key] = ahead.get(request.key, 0.0) + request.rows
    return _spread(state, request, ahead, now)


def _finish_in_overload(state: State, request: Request) -> float:
    """In overload the policy passes over requests that a batch of the needed size cannot serve in
    time, in favour of fresh ones such as this: then only those in between stand in its way.

    Infinite where it would pass over nobody: of a burst that came all at once none is fresher.
    """
    now, executor = request.arrival, state.executors[0]
    queue = state.queues.get(request.key)
    plan = state.table(executor, request.key, request.nbytes / request.rows).plan
    demand = state.demands.of(request.key)
    rate, executors = demand.rate(now), len(state.executors)
    if queue is None or plan is None or not plan.overloaded(rate, demand.patience, executors):
        return math.inf
    free = min(state.free_in(e, now) for e in state.executors)
    needed = plan.seconds[plan.needed(rate, demand.patience, executors)]
    passed_over = queue.rows_before((now + free + needed, math.inf))
    if not passed_over:
        return math.inf
    ahead = max(0.0, queue.rows_before(request.rank) - passed_over)
    # It is answered with a batch of that size, though only those before it count as work.
    spread = _spread(state, request, {request.key: ahead + request.rows}, now)
    return max(spread, free + needed)


def _spread(state: State, request: Request, rows: Mapping[Hashable, float], now: float) -> float:
    """Seconds for all executors together to end what they run and then `rows` of each key."""
    executors = state.executors
    work = sum(state.free_in(executor, now) for executor in executors)
    for key, count in rows.items():
        queue = state.queues.get(key)
        size = request.nbytes / request.rows if queue is None else queue.row_bytes
        plan = state.table(executors[0], key, size).plan
        if count and plan is not None:
            work += plan.serial(math.ceil(count))
    return work / _strength(state, request)


def _strength(state: State, request: Request) -> float:
    """The executors that carry the load, and what their helpers are worth beside them."""
    strength = float(len(state.executors))
    fast = state.table(state.executors[0], request.key, request.nbytes / request.rows).plan
    for helper in state.helpers:
        slow = state.table(helper, request.key, request.nbytes / request.rows).plan
        if fast is not None and slow is not None:
            strength += slow.peak_rate / fast.peak_rate
    return strength


def _refuse(state: State, request: Request, why: Why, message: str) -> Reject:
    return Reject(request, why, _until_empty(state, request, request.arrival), message)


def come_back(state: State, request: Request, now: float) -> float:
    """Seconds from `now` after which the caller of `request`, which is let go of, may try again:
    when all can have been answered that is more urgent than what he would send now."""
    fresh = (now + request.urgency - request.arrival, math.inf)
    return _in_line(state, request, now, _finish_after(state, request, fresh, now))


def come_again(state: State, caller: Hashable, now: float) -> float | None:
    """As `come_back`, for one whose deadline had passed when his request came; None where nobody
    else was here lately."""
    if not _company(state, now, _UNKNOWN_WAIT):
        return None
    return state.line.again(caller, now, _SHORTEST_WAIT)


def _company(state: State, now: float, lately: float) -> bool:
    """Whether others are here, or came in the last `lately` seconds."""
    busy = state.queued_requests or state.device.running
    return bool(busy) or now - state.demands.last < lately


def _until_empty(state: State, request: Request, now: float) -> float:
    """Seconds until all that waits can have been answered."""
    everything = {key: float(queue.rows) for key, queue in state.queues.items()}
    known = state.table(state.executors[0], request.key, request.nbytes / request.rows).known
    seconds = _spread(state, request, everything, now) if known else _UNKNOWN_WAIT
    return min(max(seconds, _SHORTEST_WAIT), _LONGEST_WAIT)


def _in_line(state: State, request: Request, now: float, room: float) -> float:
    """Seconds after which to come back, where there is room after `room` seconds for some."""
    each = _between(state, request)
    after = state.line.back(request.caller, now, max(room, _SHORTEST_WAIT), each)
    state.demands.refused(request, now, after)
    return after
