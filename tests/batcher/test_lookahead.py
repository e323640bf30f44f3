"""Sizes under pressure: what is played out, and what it saves."""

from __future__ import annotations

import heapq
import random
from collections.abc import Sequence
from functools import lru_cache

import pytest

from headrace.batcher import learned
from headrace.batcher.group import Group, group
from headrace.batcher.learned import Learned
from headrace.batcher.lookahead import choose, deadlines_press
from headrace.batcher.request import Batch, Dispatch, Request
from headrace.batcher.scheduler import Scheduler
from headrace.batcher.state import Limits

FIXED, EACH = 0.004, 0.002  # seconds: of a batch, and of a row in it
CAP = 8


def cost(rows: int) -> float:
    return FIXED + EACH * rows


def scheduler(executors: int = 1) -> Scheduler:
    sched = Scheduler(
        {f"e{n}": "cpu" for n in range(executors)}, Learned(), Limits(max_batch_rows=CAP)
    )
    table = sched.state.cost.table("cpu", "k", 0.0)
    for _ in range(20):
        for rows in range(1, CAP + 1):
            table.observe(rows, cost(rows))
    return sched


def seen(sched: Scheduler, now: float) -> Group:
    found = group(sched.state, "k", "e0", now)
    assert found is not None
    return found


def answered(deadlines: Sequence[float]) -> int:
    """Of requests that come at once, those who are answered in time by one executor."""
    sched = scheduler()
    for deadline in deadlines:
        sched.submit(Request(key="k", payload=None, arrival=0.0, deadline=deadline))
    running: list[tuple[float, int, Batch]] = []
    now, in_time = 0.0, 0
    while True:
        for action in sched.step(now):
            if isinstance(action, Dispatch):
                end = now + cost(action.batch.rows)
                heapq.heappush(running, (end, id(action.batch), action.batch))
        if not running:
            return in_time
        began = now
        now, _, batch = heapq.heappop(running)
        in_time += sum(request.deadline >= now for request in batch.requests)
        sched.complete(batch.executor, now - began, now=now)


def most_answered(deadlines: Sequence[float]) -> int:
    """The same if every way of cutting the queue into batches and leaving some out is tried, with
    as much to spare for each run as the policy leaves."""
    slacks = sorted(deadlines)
    guard = scheduler().state.cost.table("cpu", "k", 0.0).guard

    @lru_cache
    def best(at: int, now: float) -> int:
        found = 0
        for size in range(1, CAP + 1):
            end = round(now + cost(size) * guard, 9)
            first = next((i for i in range(at, len(slacks)) if slacks[i] >= end), len(slacks))
            taken = min(size, len(slacks) - first)
            if taken == size:
                found = max(found, size + best(first + size, end))
        return found

    return best(0, 0.0)


@pytest.mark.interpreted
def test_of_a_queue_most_are_in_time_who_could_be(monkeypatch: pytest.MonkeyPatch) -> None:
    """Over many queues of more than can be served, and more than without playing sizes out."""
    dice = random.Random(1)
    slacks = (0.007, 0.011, 0.017, 0.023, 0.03, 0.045)
    queues = [[dice.choice(slacks) for _ in range(20)] for _ in range(200)]
    found, best = sum(map(answered, queues)), sum(map(most_answered, queues))
    assert found >= 0.84 * best
    monkeypatch.setattr(learned, "deadlines_press", lambda *_: False)
    assert sum(map(answered, queues)) < found


def test_a_batch_leaves_time_for_the_next() -> None:
    """All eight together are in time, and cost those behind them their deadline."""
    sched = scheduler()
    for deadline in (0.0205,) * 8 + (0.0285,) * 4:
        sched.submit(Request(key="k", payload=None, arrival=0.0, deadline=deadline))
    assert deadlines_press(sched.state, seen(sched, 0.0), 8, 0.0)


def test_nothing_presses_without_deadlines() -> None:
    sched = scheduler()
    for _ in range(30):
        sched.submit(Request(key="k", payload=None, arrival=0.0))
    assert not deadlines_press(sched.state, seen(sched, 0.0), 8, 0.0)


def test_the_size_is_one_that_the_queue_has() -> None:
    sched = scheduler()
    sched.submit(Request(key="k", payload=None, arrival=0.0, deadline=0.0065))
    size = choose(sched.state, seen(sched, 0.0), 1, 0.0)
    assert size is not None
    assert size.rows == 1


def test_those_too_late_for_every_size_are_not_chosen_for() -> None:
    sched = scheduler()
    sched.submit(Request(key="k", payload=None, arrival=0.0, deadline=0.007))
    assert choose(sched.state, seen(sched, 0.005), 1, 0.005) is None
