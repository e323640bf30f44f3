"""The policy that needs no knobs: sizes from learned costs, deadlines kept, the doomed let go.

Theory of operation, in the order in which a decision is made:

1. What no executor can still finish in time is dropped.
2. An idle executor takes the most urgent group; where executors are not alike, `placement.py` says
   which. It waits for company only where that saves more time than it costs: see `waiting.py`.
3. The size minimises the total waiting of the queue by the learned costs (`sizing.py`), the queue
   being inflated by the load: 1/(1 - rho) of it will be there before it is empty. It is at least
   what sustains the arrival rate, and with several executors at most an equal share of what will
   have come by the time the others are free; without deadlines no more of it than is efficient,
   nor more, beyond that, than leaves callers time who have deadlines and come meanwhile.
4. A batch too slow for its head's deadline is made smaller, but not below the size that the load
   needs: below that every later batch would be late too. Then the head is let go instead, and the
   batch is made of those it can still serve.
5. Where no gain is expected of a larger batch but few runs have told of one, twice the size is
   tried now and then; and so are the smallest and half the size, if few have told of those.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Final

from headrace.batcher.group import Group, group
from headrace.batcher.lookahead import choose, deadlines_press
from headrace.batcher.placement import ALONE, place
from headrace.batcher.policy import WorkConserving, close, most_urgent, wake
from headrace.batcher.request import Action, Dispatch, Drop, Reason, Request, WakeAt, Why
from headrace.batcher.state import State
from headrace.batcher.waiting import wait_until

# Where costs have decided the size, another may be tried: by costs that few runs have told of.
_TRIED: Final = (Reason.NO_GAIN, Reason.FULL)
# Who has been here for less than this share of his time has just come.
_MOMENT: Final = 0.25
# Of the time that a caller has, a run that he finds here takes no more than this share.
_HALF: Final = 0.5


class Learned:
    """See the head of this file. Falls back on WorkConserving while a key's costs are unknown."""

    def __init__(self) -> None:
        self._without_costs = WorkConserving()

    def decide(self, state: State, now: float) -> Sequence[Action]:
        if not state.queues:  # it is asked after every answer, too
            return ()
        drops = [Drop(request, Why.EXPIRED) for request in state.expired(now)]
        drops = drops or [Drop(request, Why.OVERTAKEN) for request in _too_late(state, now)]
        if drops:
            return drops
        if not state.idle:
            return wake(state)
        key, queue = most_urgent(state)
        chosen = place(state, key, queue, now)
        if chosen is None:
            return wake(state)
        executor = chosen.executor
        lone = state.queued_requests == 1 and state.crowd < ALONE
        if queue.head.solo or lone:  # nothing to size, nor to wait for
            return (Dispatch(close(state, key, executor, 1, Reason.SOLO, now)),)
        seen = group(state, key, executor, now)
        if seen is None:
            return self._without_costs.decide(state, now)
        until = wait_until(state, seen, now)
        if until > now:
            return (WakeAt(min([until, *(w.time for w in wake(state))])),)
        wanted, reason = _wanted(state, seen, now)
        if chosen.most < wanted:
            wanted, reason = chosen.most, Reason.SHARED
        skip, rows = _in_time(state, seen, wanted, now)
        if skip:
            return [Drop(request, Why.OVERTAKEN) for request in skip]
        if rows < wanted:
            reason = Reason.DEADLINE
        elif reason in _TRIED and (trial := _trial(seen, rows, chosen.most, now)):
            rows, reason = trial, Reason.TRIAL
        return (Dispatch(close(state, key, executor, rows, reason, now)),)


def _too_late(state: State, now: float) -> Iterator[Request]:
    """The waiting requests that would be late even if they ran alone as soon as possible.

    Not one that has just come and has nobody beside it: it has lost but a moment since it was let
    in, predictions are not exact, and it takes nothing from anybody.
    """
    first = state.next_deadline()
    if first is None:
        return
    executors = state.candidates
    soonest = {
        key: min(
            state.free_in(executor, now) + (table.seconds(1) if table.known else 0.0)
            for executor, table in ((e, state.table(e, key, queue.row_bytes)) for e in executors)
        )
        for key, queue in state.queues.items()
    }
    horizon = max(soonest.values(), default=0.0)
    if first > now + horizon:
        return
    alone = state.queued_requests == 1 and not state.device.running
    for request in state.expired(now + horizon):
        moment = _MOMENT * (request.deadline - request.arrival) if alone else 0.0
        doomed = request.deadline < now + soonest[request.key] and now >= request.arrival + moment
        if doomed and not request.trial:
            yield request


def _wanted(state: State, seen: Group, now: float) -> tuple[int, Reason]:
    """The size to want when no deadline presses, and what keeps it from being larger."""
    queue, plan, peers = seen.queue, seen.plan, seen.peers
    limit = min(queue.rows, plan.largest)
    if limit == 1:
        return 1, Reason.FULL
    executors = len(peers)
    pressed = state.device.pressed
    # On a pressed device a second batch would only take time from what both wait for.
    idle = 1 if pressed else sum(state.running[e] is None for e in peers)
    size = plan.best(queue.rows / (1 - seen.load) / idle, limit)
    sustaining = min(limit, plan.sustaining(seen.rate / executors))
    if len(state.queues) == 1:
        size = max(size, sustaining)
    reason = Reason.NO_GAIN if size < limit else Reason.FULL
    if len(state.queues) < executors and not pressed:  # else the others will have keys of their own
        share = min(limit, max(1, math.ceil(_equal_share(state, seen, now) - 1e-9)))
        if math.isinf(seen.demand.patience):  # else what is left for the next batch may be late
            share = plan.edge(share)
        enough = max(sustaining, share)
        if enough < size:
            size, reason = enough, Reason.SHARED
    brief = _brief(state, seen, size, now)
    return (brief, Reason.BRIEF) if brief < size else (size, reason)


def _brief(state: State, seen: Group, wanted: int, now: float) -> int:
    """`wanted`, or less where callers with deadlines come among others without: not so much that
    whoever comes during the run, and then has to run himself, is late; but no less than is
    efficient."""
    shortest = state.demands.shortest(now)
    if shortest == math.inf or not math.isinf(seen.demand.patience):
        return wanted
    within = seen.plan.within(_HALF * shortest / seen.table.guard, wanted)
    return min(wanted, max(within, seen.plan.efficient))


def _equal_share(state: State, seen: Group, now: float) -> float:
    """Rows for each executor, of those that will have come by the time the others are free."""
    rows = seen.queue.rows
    share = float(rows)
    others = sorted(state.free_in(e, now) for e in seen.peers if e != seen.executor)
    for sharing, free in enumerate(others, 2):
        share = min(share, (rows + seen.rate * free) / sharing)
    return share


def _in_time(state: State, seen: Group, wanted: int, now: float) -> tuple[list[Request], int]:
    """Requests to let go of, or none and the size that keeps the deadlines of those it takes.

    Where other keys wait, only the batch at hand is looked at.
    """
    if state.next_deadline() is None:
        return [], wanted
    if len(state.queues) == 1 and deadlines_press(state, seen, wanted, now):
        size = choose(state, seen, wanted, now)
        if size is not None:
            return _passed_over(seen, size.rows, now)[0], size.rows
    return _for_its_own(seen, wanted, now)


def _for_its_own(seen: Group, wanted: int, now: float) -> tuple[list[Request], int]:
    """As `_in_time`, with no regard for those who are not in the batch.

    Callers' turns can put a tight deadline behind a loose one, so it is not only the head's.
    """
    queue, plan, guard = seen.queue, seen.plan, seen.table.guard
    slack = _slack(seen, wanted, now)
    if plan.seconds[wanted] * guard <= slack:
        return [], wanted
    smaller = max(1, plan.within(slack / guard, wanted))
    needed = min(wanted, plan.needed(seen.rate, seen.patience, len(seen.peers)))
    tight = plan.seconds[smaller] * guard > slack
    if smaller >= queue.rows or (smaller >= needed and not tight):
        return [], smaller
    next_slack = _next_slack(seen, needed, now)
    if next_slack >= (2 * plan.seconds[smaller] * guard if smaller >= needed else math.inf):
        return [], smaller  # nobody else is served by that size, or who is can wait
    return _passed_over(seen, needed, now)[0], needed


def _next_slack(seen: Group, rows: int, now: float) -> float:
    """Of the first who is in time by a batch of `rows`: seconds until his deadline. Infinite where
    nobody is, or nobody has one."""
    taken = seen.plan.seconds[rows] * seen.table.guard
    waiting = (request.deadline - now for request in seen.queue)
    return next((slack for slack in waiting if slack >= taken), math.inf)


def _trial(seen: Group, rows: int, most: int, now: float) -> int:
    """Another size to run than `rows`, to find out what it takes; 0 for none."""
    size = _untold(seen, rows, most, now)
    if not size:
        return 0
    return size if seen.table.exploration.due_of(size, math.isinf(seen.demand.patience)) else 0


def _untold(seen: Group, rows: int, most: int, now: float) -> int:
    """A size that few runs have told of, by which nobody is late who would be in time by `rows`.

    Twice the size, for those who would wait anyway; or, before the rest, the smallest there can be
    or half the size: the first runs of a shape can be so slow that all of its later, larger batches
    look better, and so can any size's in a bad moment.
    """
    queue, table, least = seen.queue, seen.table, seen.queue.head.rows
    if queue.rows == 1:  # most requests where callers are few: there is nothing else to run
        return 0
    double, half = 2 * rows, (rows + 1) // 2
    untold: list[tuple[int, float]] = []  # and until the last of those concerned is answered
    if double <= min(queue.rows, most, seen.plan.largest) and not table.told(double, 2.0):
        untold.append((double, table.seconds(double)))
    untold += [
        (fewer, table.seconds(fewer) + table.seconds(rows - fewer))
        for fewer in (least, half)
        if least <= fewer < rows and not table.told(fewer, 1.25)
    ]
    for size, taken in untold:
        if taken * table.guard <= _slack(seen, max(size, rows), now):
            return size
    return 0


def _slack(seen: Group, rows: int, now: float) -> float:
    """Seconds until the first deadline among the first `rows` requests."""
    return min(request.deadline for request in islice(seen.queue, rows)) - now


def _passed_over(seen: Group, rows: int, now: float) -> tuple[list[Request], int]:
    """The first requests that a batch of `rows` is too slow for, and the rows that it serves."""
    late = now + seen.plan.seconds[rows] * seen.table.guard
    doomed: list[Request] = []
    served = 0
    for request in seen.queue:
        if request.deadline < late:
            doomed.append(request)
        else:
            served += request.rows
            if served >= rows:
                break
    return doomed, served
