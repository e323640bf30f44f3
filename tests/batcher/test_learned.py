"""What the learned policy decides when it knows what batches cost."""

from __future__ import annotations

import statistics
from collections.abc import Callable

import pytest

from headrace.batcher.learned import Learned
from headrace.batcher.request import Batch, Reason, Request
from headrace.batcher.scheduler import Scheduler
from headrace.batcher.sizing import SizePlan
from headrace.batcher.state import Limits
from support.learned import batches, loses, pays, scheduler, submit


def test_it_takes_all_where_batching_pays() -> None:
    sched = scheduler(pays)
    submit(sched, 20)
    (batch,) = batches(sched, 0.0)
    assert batch.rows == 20
    assert batch.reason is Reason.EXECUTOR_IDLE
    assert batch.expected == pytest.approx(pays(20), rel=0.05)


def test_it_never_makes_a_batch_that_is_worse_than_two() -> None:
    sched = scheduler(loses)
    submit(sched, 20)
    (batch,) = batches(sched, 0.0)
    assert batch.rows == 1
    assert batch.reason is Reason.NO_GAIN


def test_executors_take_equal_shares() -> None:
    sched = scheduler(loses, executors=2)
    submit(sched, 2)
    assert [b.rows for b in batches(sched, 0.0)] == [1, 1]


def test_a_deadline_makes_the_batch_smaller() -> None:
    sched = scheduler(lambda n: 0.001 * n + 0.001)
    submit(sched, 1)
    sched.step(0.0)
    submit(sched, 8, arrival=0.0, deadline=0.0115)
    sched.complete("e0", 0.002)
    (batch,) = batches(sched, 0.006)  # later than predicted when they were accepted
    assert 1 < batch.rows < 8
    assert batch.reason is Reason.DEADLINE
    assert batch.expected <= 0.0115 - 0.006


def test_without_costs_it_works_all_the_same() -> None:
    sched = Scheduler({"e0": "cpu"}, Learned(), Limits(max_batch_rows=4))
    submit(sched, 6)
    assert [b.rows for b in batches(sched, 0.0)] == [4]


def tiles(n: int) -> float:
    return 0.004 + 0.004 * -(-n // 8)


@pytest.mark.parametrize(("deadline", "rows"), [(float("inf"), 16), (100.0, 18)])
def test_a_share_without_deadlines_ends_where_a_tile_does(deadline: float, rows: int) -> None:
    sched = scheduler(tiles, executors=2)
    submit(sched, 1, arrival=-10.0, deadline=deadline)
    sched.step(0.0)  # one of two is busy, so that 36 are 18 for each
    submit(sched, 36, arrival=-10.0, deadline=deadline)
    (batch,) = batches(sched, 0.0)
    assert (batch.rows, batch.reason) == (rows, Reason.SHARED)


def test_the_edge_is_the_smallest_size_of_the_highest_rate() -> None:
    plan = SizePlan([0.0, *map(tiles, range(1, 33))])
    assert [plan.edge(rows) for rows in (1, 7, 8, 9, 11, 15)] == [1, 7, 8, 8, 8, 15]


def test_a_size_that_outlasts_its_callers_is_not_taken_for_ever() -> None:
    """It takes three times what is believed, so that all have left before it ends."""
    sched, now, patience = scheduler(pays, cap=64), 0.0, 2 * pays(64)
    table, stopped = sched.state.cost.table("cpu", "k", 0.0), 0
    for _ in range(30):
        for _ in range(64):
            sched.submit(Request(key="k", payload=None, arrival=now, deadline=now + patience))
        for batch in batches(sched, now):
            now += min(3 * pays(batch.rows), patience)
            left = now == batch.started + patience
            for request in batch.requests if left else ():
                sched.cancel(request)
            sched.complete("e0", now - batch.started, failed=left, now=now)
            stopped += left
        now += 0.001
    assert stopped
    assert table.seconds(64) > 1.9 * pays(64)


def run_alone(
    sched: Scheduler,
    cost: Callable[[int], float],
    batches_: int,
    overhead: float = 0.0,
    start: float = 0.0,
) -> list[Batch]:
    """So many batches of a queue that is never short; each takes what it really `cost`s, and is
    known to have ended `overhead` seconds later."""
    now, ran = start, []
    for _ in range(batches_):
        submit(sched, 64 - sched.state.queued_requests, now)
        (batch,) = batches(sched, now)
        ran.append(batch)
        now += cost(batch.rows) + overhead
        sched.complete("e0", cost(batch.rows), now=now)
    return ran


def wrongly_profiled(believed: Callable[[int], float]) -> Scheduler:
    sched = Scheduler({"e0": "cpu"}, Learned(), Limits(max_batch_rows=64))
    table = sched.state.cost.table("cpu", "k", 0.0)
    table.profile([(n, believed(n)) for n in (1, 2, 4) for _ in range(2)])
    return sched


def test_a_profile_of_a_bad_moment_is_found_out() -> None:
    """By it batches do not pay, and none would ever be run: here they do."""
    ran = run_alone(wrongly_profiled(loses), pays, 200)
    assert ran[0].rows == 1
    assert any(batch.reason is Reason.TRIAL for batch in ran)
    assert ran[-1].rows >= 32


def test_where_batches_do_not_pay_that_is_found_out_too() -> None:
    ran = run_alone(wrongly_profiled(loses), loses, 400)
    tried = [batch for batch in ran if batch.reason is Reason.TRIAL]
    assert {batch.rows for batch in tried} == {2}
    assert len(tried) <= 8
    assert ran[-1].rows == 1


def test_larger_batches_are_made_where_each_costs_something_besides_its_run() -> None:
    """By their runs alone rows would go one by one."""
    ran = run_alone(wrongly_profiled(loses), loses, 400, overhead=loses(1))
    assert statistics.median(batch.rows for batch in ran[-100:]) > 4


def test_what_was_found_out_in_another_time_is_looked_at_again() -> None:
    """While others kept the machine busy batches did not pay; now they do. A lone row, which is all
    that is run, takes as long as before."""

    def pays_now(n: int) -> float:
        return loses(1) * (1 + 0.05 * (n - 1))

    sched = wrongly_profiled(loses)
    assert run_alone(sched, loses, 400)[-1].rows == 1
    assert run_alone(sched, pays_now, 3000, start=1000.0)[-1].rows >= 32


def test_small_batches_that_were_only_slow_at_first_are_found_out() -> None:
    """The first runs of one row were cold, and all later ones had more: each would have taken a
    third longer for good."""

    def best_alone(n: int) -> float:
        return 0.019 if n == 1 else 0.026 * n

    sched = Scheduler({"e0": "cpu"}, Learned(), Limits(max_batch_rows=64))
    table = sched.state.cost.table("cpu", "k", 0.0)
    for n in (1, 2, 4):
        for _ in range(2):
            table.observe(n, 0.05 if n == 1 else best_alone(n))
    ran = run_alone(sched, best_alone, 60)
    assert ran[0].rows > 1
    assert any(batch.reason is Reason.TRIAL and batch.rows == 1 for batch in ran)
    assert {batch.rows for batch in ran[-20:]} == {1}


def test_half_the_size_that_was_only_slow_in_a_bad_moment_is_found_out() -> None:
    """Neither the smallest size nor a larger one would tell."""

    def tiled(n: int) -> float:
        return 0.002 + 0.001 * n if n <= 8 else 0.0014 * n

    sched = Scheduler({"e0": "cpu"}, Learned(), Limits(max_batch_rows=16))
    table = sched.state.cost.table("cpu", "k", 0.0)
    for n in (1, 2, 4, 8, 16):
        for _ in range(2):
            table.observe(n, tiled(n) * (1 if n in (1, 16) else 2))
    ran = run_alone(sched, tiled, 300)
    assert ran[0].rows > 8
    assert any(batch.reason is Reason.TRIAL and batch.rows in (7, 8) for batch in ran)
    assert {batch.rows for batch in ran[-20:]} == {8}


def test_a_size_that_no_batch_can_have_is_not_tried_for_ever() -> None:
    """Requests of four rows: a batch of one row is never made, whatever is asked for."""

    def tiled(n: int) -> float:
        return 0.01 + (0.002 * n if n > 8 else 0.0)

    sched, now, ran = wrongly_profiled(tiled), 0.0, []
    for _ in range(1200):
        while sched.state.queued_requests < 8:
            sched.submit(Request("k", None, now, rows=4))
        (batch,) = batches(sched, now)
        ran.append(batch)
        now += tiled(batch.rows)
        sched.complete("e0", tiled(batch.rows), now=now)
    tried = [[b.reason for b in part].count(Reason.TRIAL) for part in (ran[:600], ran[600:])]
    assert tried[0] <= 12
    assert tried[1] <= 6


@pytest.mark.parametrize(("patience", "tried"), [(0.140, {1, 2}), (0.090, set())])
def test_a_smaller_size_is_tried_only_if_the_rest_is_in_time(
    patience: float, tried: set[int]
) -> None:
    """Four rows are expected to take 60 ms; one, and then three, 50 and 58; twice two 55."""
    sched, ran = Scheduler({"e0": "cpu"}, Learned(), Limits(max_batch_rows=8)), []
    table = sched.state.cost.table("cpu", "k", 0.0)
    for n, seconds in ((1, 0.05), (2, 0.055), (4, 0.06), (8, 0.3)):
        for _ in range(2):
            table.observe(n, seconds)
    submit(sched, 100)
    sched.withdraw_all()  # most have no deadline
    for now in range(30):
        submit(sched, 4, now, now + patience)
        submit(sched, 4, now)
        (batch,) = batches(sched, now)
        sched.withdraw_all()
        if batch.reason is Reason.TRIAL:
            ran.append(batch.rows)
        sched.complete("e0", table.seconds(batch.rows), now=now + table.seconds(batch.rows))
    assert set(ran) == tried


def test_nothing_is_tried_that_somebody_would_be_late_for() -> None:
    """One after the other two are in time, together they are not."""

    def heavy(n: int) -> float:
        return 0.004 * n * (1 + 0.2 * (n - 1))

    sched, now = wrongly_profiled(heavy), 0.0
    for _ in range(100):
        submit(sched, 2, now, now + 0.009)
        for _ in range(2):
            (batch,) = batches(sched, now)
            assert batch.rows == 1
            now += heavy(1)
            sched.complete("e0", heavy(1), now=now)
