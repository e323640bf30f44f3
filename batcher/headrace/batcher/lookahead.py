"""What a choice of batch size does to those who wait, when deadlines press.

Theory of operation, after the project's scheduling study. A size that is best for the queue as a
whole may be too slow for its head, or for those behind it. So a few sizes are tried: each is played
out over a short time, with the costs that were learned, the requests that wait and as many as are
expected to come, and whoever would be late in it is counted. The size that loses the fewest is
taken. Where even that loses many, nobody's loss can be avoided by waiting one's turn, and the size
is taken that answers the most rows in time for each second of the executors: what it cannot serve
is let go of, in favour of fresher requests.

Several executors that no size lets keep up are in a steady overload, for which `SizePlan.needed`
knows the size without trying.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Iterator
from itertools import islice
from typing import Final, NamedTuple

from headrace.batcher.group import Group
from headrace.batcher.sizing import SizePlan
from headrace.batcher.state import State

# More than this share of those who wait or come being lost is an overload.
_OVERLOAD: Final = 0.1
# How far ahead: so many times the wanted batch, and at most so many batches. Queues beyond so many
# times the largest batch are not looked at: their tail is lost, whatever is done.
_BATCHES_LONG: Final = 12.0
_STEPS: Final = 12
_LARGEST_BATCHES: Final = 4
# Of a queue of more rows than this, shares of it are tried as well.
_LONG: Final = 8
# Rows a second: where nothing has come for long the rate that was learned is 0.
_SLOWEST: Final = 1e-9
# Those to come are expected in the middle of their intervals.
_HALF: Final = 0.5


class Size(NamedTuple):
    """A choice. lost: rows expected to be late, those among them that are too late for this batch.
    rate: rows answered for each second of an executor."""

    rows: int
    lost: int
    rate: float


class _Ahead(NamedTuple):
    """What the time ahead is expected to bring, all times in seconds from now.

    slacks: until the deadlines of the waiting rows, ascending. coming: of those to come, in the
    order in which they will have come. free: when each other executor is free. most: rows of the
    largest batch that deadlines allow; needed: of the smallest that the load needs. load: the share
    of the executors' time that is asked for.
    """

    plan: SizePlan
    guard: float
    slacks: list[float]
    coming: list[float]
    free: list[float]
    rate: float
    load: float
    most: int
    needed: int
    until: float


def deadlines_press(state: State, seen: Group, wanted: int, now: float) -> bool:
    """Whether a batch of `wanted` rows, or the one after it, is likely to be late for somebody."""
    queue, seconds, guard = seen.queue, seen.plan.seconds, seen.table.guard
    if math.isinf(seen.demand.patience) or math.isinf(queue.head.deadline):
        return False
    if seconds[wanted] * guard > queue.head.deadline - now:
        return True
    free = [state.free_in(peer, now) for peer in seen.peers if peer != seen.executor]
    until = min([seconds[wanted], *free]) if all(free) else 0.0
    rows = round(queue.rows - wanted + seen.rate * until)
    slack = seen.demand.patience
    for request in islice(queue, wanted, wanted + 1):
        slack = min(slack, request.deadline - now)
    return (until + seconds[min(max(rows, 1), seen.plan.largest)]) * guard > slack


def choose(state: State, seen: Group, wanted: int, now: float) -> Size | None:
    """The size to take under pressure; None where a steady overload decides it.

    wanted: the size to take if nothing pressed.
    """
    ahead = _expected(state, seen, wanted, now)
    tried = [_played_out(ahead, size) for size in _candidates(ahead, wanted)]
    found = [size for size in tried if size is not None]
    if not found:
        return None
    best = min(found, key=lambda size: (size.lost, abs(size.rows - wanted), size.rows))
    if best.lost <= _OVERLOAD * (len(ahead.slacks) + seen.rate * ahead.until):
        return best
    if len(seen.peers) > 1 and seen.plan.overloaded(seen.rate, seen.patience, len(seen.peers)):
        return None
    return max(found, key=lambda size: (size.rate, size.rows))


def _expected(state: State, seen: Group, wanted: int, now: float) -> _Ahead:
    plan, rate, patience = seen.plan, max(seen.rate, _SLOWEST), seen.demand.patience
    most = _LARGEST_BATCHES * plan.largest
    waiting = (request.deadline - now for request in seen.queue for _ in range(request.rows))
    slacks = sorted(islice(waiting, most))
    until = patience + plan.seconds[min(len(slacks), plan.largest)]
    until = min(until, _BATCHES_LONG * plan.seconds[wanted])
    return _Ahead(
        plan,
        seen.table.guard,
        slacks,
        [patience + (n + _HALF) / rate for n in range(min(int(rate * until), most))],
        [state.free_in(peer, now) for peer in seen.peers if peer != seen.executor],
        rate,
        seen.load,
        plan.allowed(rate, seen.patience, len(seen.peers)),
        plan.needed(rate, seen.patience, len(seen.peers)),
        until,
    )


def _candidates(ahead: _Ahead, wanted: int) -> set[int]:
    plan = ahead.plan
    every = min(len(ahead.slacks), plan.largest)
    fits = max(1, plan.within(ahead.slacks[0] / ahead.guard, every))
    sizes = {wanted, fits, every, fits // 2, (fits + every + 1) // 2, wanted // 2, fits + 1}
    sizes |= {ahead.needed, ahead.most}
    if every > _LONG:
        sizes |= {every * 3 // 4, every // 4}
    return {min(max(size, 1), every) for size in sizes}


def _played_out(ahead: _Ahead, rows: int) -> Size | None:
    """What becomes of everybody if a batch of `rows` begins now; None where it can serve nobody."""
    slacks, seconds = ahead.slacks, ahead.plan.seconds
    skipped = bisect_left(slacks, seconds[rows] * ahead.guard)
    if len(slacks) - skipped < rows:  # a smaller batch is sooner done, for some of those
        rows = len(slacks) - skipped
        if not rows:
            return None
        skipped = bisect_left(slacks, seconds[rows] * ahead.guard)
        rows = min(rows, len(slacks) - skipped)
    if not rows:
        return None
    free = [*ahead.free, seconds[rows] + ahead.plan.overhead]
    later = lost = 0
    for taken, missed in _batches(ahead, slacks[skipped + rows :], free):
        later += taken
        lost += missed
    return Size(rows, skipped + lost, (rows + later) * len(free) / sum(free, 0.0))


def _batches(ahead: _Ahead, waiting: list[float], free: list[float]) -> Iterator[tuple[int, int]]:
    """The rows taken and the rows lost by each batch that follows; `free` is kept up to date.

    They are made as the policy makes them when nothing is tried: of the size that the queue wants,
    smaller for a tight head, but not below what the load needs, or the head is passed over.
    """
    plan, seconds, rate = ahead.plan, ahead.plan.seconds, ahead.rate
    rows, at = waiting + ahead.coming, 0
    for _ in range(_STEPS):
        now = min(free)
        if now >= ahead.until:
            break
        here = min(len(rows), len(waiting) + int(rate * now + _HALF))
        start = bisect_left(rows, now + seconds[1], at, here)
        if start >= len(rows):
            yield 0, start - at
            return
        if start >= here:  # nobody is left: until the next one comes
            yield 0, start - at
            at = start
            free[free.index(now)] = max(now, (at - len(waiting) + _HALF) / rate)
            continue
        size = min(ahead.most, plan.best((here - start) / (1 - ahead.load), here - start))
        fits = max(1, plan.within(rows[start] - now, size))
        if fits < min(size, ahead.needed):
            start = bisect_left(rows, now + seconds[min(size, ahead.needed)], start, here)
            size = min(ahead.needed, max(1, here - start))
        else:
            size = min(size, fits)
        yield size, start - at
        at = start + size
        free[free.index(now)] = now + seconds[size] + plan.overhead
    here = min(len(rows), len(waiting) + int(rate * min(free) + _HALF))
    yield 0, max(0, bisect_left(rows, min(free) + seconds[1], at, max(at, here)) - at)
