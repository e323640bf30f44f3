"""What the learned policy decides when it knows what batches cost."""

from __future__ import annotations

import heapq
import statistics
from collections.abc import Callable
from random import Random

import pytest

from headrace.batcher.admission import come_again, come_back
from headrace.batcher.learned import Learned
from headrace.batcher.request import Batch, Dispatch, Drop, Reason, Request, Why
from headrace.batcher.scheduler import Scheduler
from headrace.batcher.sizing import SizePlan
from headrace.batcher.state import Limits


def scheduler(cost: Callable[[int], float], executors: int = 1, cap: int = 32) -> Scheduler:
    """One whose costs are known: `cost(n)` seconds for n rows."""
    kinds = {f"e{n}": "cpu" for n in range(executors)}
    sched = Scheduler(kinds, Learned(), Limits(max_batch_rows=cap))
    table = sched.state.cost.table("cpu", "k", 0.0)
    for _ in range(20):
        for n in range(1, cap + 1):
            table.observe(n, cost(n))
    return sched


def pays(n: int) -> float:
    return 0.010 + 0.0001 * n


def loses(n: int) -> float:
    return 0.004 * n * (1 + 0.01 * n)


def submit(
    sched: Scheduler, count: int, arrival: float = 0.0, deadline: float = float("inf")
) -> list[Request]:
    requests = [
        Request(key="k", payload=None, arrival=arrival, deadline=deadline) for _ in range(count)
    ]
    for request in requests:
        assert sched.submit(request) is None
    return requests


def batches(sched: Scheduler, now: float) -> list[Batch]:
    return [action.batch for action in sched.step(now) if isinstance(action, Dispatch)]


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


def test_what_cannot_be_in_time_is_refused_on_arrival_with_the_predicted_wait() -> None:
    sched = scheduler(loses)
    submit(sched, 100, deadline=100.0)
    refusal = sched.submit(Request(key="k", payload=None, arrival=0.0, deadline=0.005))
    assert refusal is None, "it is the most urgent: nothing stands before it"
    refusal = sched.submit(Request(key="k", payload=None, arrival=0.0, deadline=0.0055))
    assert refusal is not None
    assert refusal.why is Why.TOO_LATE
    assert "it is 5.5 ms away, the answer is predicted in 8.1 ms" in refusal.message
    assert refusal.retry_after > 0


def test_a_deadline_shorter_than_the_run_is_no_overload() -> None:
    sched = scheduler(loses)
    submit(sched, 100, deadline=100.0)
    refusal = sched.submit(Request(key="k", payload=None, arrival=0.0, deadline=0.003))
    assert refusal is not None
    assert refusal.why is Why.TOO_SHORT
    assert "a run of 1 row takes about 4.0 ms" in refusal.message
    assert refusal.retry_after > 0.004, "its time may have gone by on the way, for others"


def test_a_lone_caller_whose_deadline_is_too_short_is_not_told_to_come_back() -> None:
    sched = scheduler(loses)
    for now in (1.0, 2.0):  # the first is let in, to try
        request = Request(key="k", payload=None, arrival=now, deadline=now + 0.003)
        refusal = sched.submit(request)
        sched.cancel(request)
    assert refusal is not None
    assert refusal.why is Why.TOO_SHORT
    assert refusal.retry_after == 0.0


def test_who_comes_when_his_time_is_over_is_told_when_to_come_where_others_are_here() -> None:
    sched = scheduler(loses)
    assert come_again(sched.state, "c", 5.0) is None
    submit(sched, 100, arrival=5.0)
    told = [come_again(sched.state, caller, 5.0) for caller in "cde"]
    assert all(wait is not None and wait > 0 for wait in told)
    assert sched.submit(Request("k", None, 5.0, deadline=5.003, caller="c")) is not None
    later = come_again(sched.state, "c", 5.0)
    assert later is not None
    assert later > 0.004, "a place in the line"


@pytest.mark.parametrize(
    ("takes", "failed", "answered"), [(0.002, False, 400), (0.004, False, 25), (0.002, True, 25)]
)
def test_a_hopeless_one_tries_now_and_then_and_the_next_where_that_was_in_time(
    takes: float, failed: bool, answered: int
) -> None:
    """The machine was slow when costs were learned, and every caller wants less than they say."""
    sched = scheduler(loses)
    ran, now = 0, 0.0
    for _ in range(400):
        now += 0.01
        request = Request(key="k", payload=None, arrival=now, deadline=now + 0.003)
        if sched.submit(request) is None:
            (batch,) = batches(sched, now)
            assert batch.requests == [request]
            sched.complete("e0", takes, failed=failed)
            ran += 1
    assert ran == answered


def test_what_a_crowd_made_slow_is_not_held_against_those_who_come_after_it() -> None:
    sched = scheduler(loses)
    table = sched.state.table("e0", "k", 0.0)
    for _ in range(2_000):
        table.observe(1, 0.012)
    refused = 0
    for turn in range(100):
        now = 1.0 + turn
        if sched.submit(Request(key="k", payload=None, arrival=now, deadline=now + 0.005)) is None:
            batches(sched, now)
            sched.complete("e0", 0.004)
        else:
            refused += 1
    assert refused == 0


def test_an_overload_is_refused_not_computed_for_nobody() -> None:
    """400 requests with a deadline of 1 s at once, at 64 a second: what runs is in time."""
    sched = scheduler(lambda n: n / 64, cap=8)
    accepted, refused = [], 0
    for _ in range(400):
        request = Request(key="k", payload=None, arrival=0.0, deadline=1.0)
        if sched.submit(request) is None:
            accepted.append(request)
        else:
            refused += 1
    assert refused >= 400 - 64 - 8
    now, late = 0.0, 0
    while sched.state.queued_requests or any(sched.state.running.values()):
        for batch in batches(sched, now):
            now += batch.rows / 64
            late += sum(request.deadline < now - 1e-9 for request in batch.requests)
            sched.complete("e0", batch.rows / 64)
    assert late <= 8
    assert len(accepted) - late >= 50


def test_what_became_hopeless_is_let_go_before_its_deadline() -> None:
    sched = scheduler(pays)
    submit(sched, 1)
    sched.step(0.0)
    (hopeful,) = submit(sched, 1, arrival=0.001, deadline=0.025)
    actions = sched.step(0.020)  # the run that was to take 10 ms still runs
    assert [type(action) for action in actions] == [Drop]
    assert actions[0].request is hopeful  # type: ignore[union-attr]
    assert actions[0].why is Why.OVERTAKEN  # type: ignore[union-attr]


def test_in_an_overload_little_is_computed_for_who_is_hardly_in_time() -> None:
    """Three times what two executors can do, with 20 ms each; runs take 5 to 9 ms."""
    sched, random = scheduler(lambda n: 0.007 * n, executors=2, cap=4), Random(0)
    events: list[tuple[float, int, str]] = [(n / 850, n, "") for n in range(3400)]
    took: dict[str, float] = {}
    members: dict[str, list[Request]] = {}
    late = run = 0
    while events:
        now, number, executor = heapq.heappop(events)
        if executor:
            sched.complete(executor, took[executor])
            late += sum(request.deadline < now for request in members[executor])
            run += len(members[executor])
        else:
            sched.submit(Request(key="k", payload=None, arrival=now, deadline=now + 0.020))
        for batch in batches(sched, now):
            took[batch.executor] = batch.rows * random.uniform(0.005, 0.009)
            members[batch.executor] = batch.requests
            heapq.heappush(events, (now + took[batch.executor], number, batch.executor))
    assert run > 1000
    assert late < 0.05 * run


def unsteady_and_busy() -> Scheduler:
    """Runs of a row take 8 to 12 ms, and one has begun at 0."""
    sched = scheduler(loses, cap=4)
    table = sched.state.cost.table("cpu", "k", 0.0)
    for turn in range(400):
        table.observe(1, 0.008 if turn % 2 else 0.012)
    submit(sched, 1)
    sched.step(0.0)
    return sched


def test_who_is_hardly_in_time_is_served_where_nobody_else_waits() -> None:
    sched = unsteady_and_busy()
    (tight,) = submit(sched, 1, deadline=0.030)
    sched.complete("e0", 0.010)
    (batch,) = batches(sched, 0.019)
    assert batch.requests == [tight]


@pytest.mark.parametrize(("others", "served"), [(float("inf"), "tight"), (0.050, "other")])
def test_who_is_hardly_in_time_gives_way_to_none_who_can_wait(others: float, served: str) -> None:
    sched, names = unsteady_and_busy(), {}
    for name, deadline in (("tight", 0.040), ("other", others)):
        (request,) = submit(sched, 1, deadline=deadline)
        names[request] = name
    assert sched.submit(Request(key="another", payload=None, arrival=0.0)) is None
    sched.complete("e0", 0.010)
    (batch,) = batches(sched, 0.029)
    assert [names[request] for request in batch.requests] == [served]


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
    assert len(tried) <= 4
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
    for _ in range(300):
        while sched.state.queued_requests < 8:
            sched.submit(Request("k", None, now, rows=4))
        (batch,) = batches(sched, now)
        ran.append(batch)
        now += tiled(batch.rows)
        sched.complete("e0", tiled(batch.rows), now=now)
    tried = [batch.rows for batch in ran if batch.reason is Reason.TRIAL]
    assert len(tried) <= 8
    assert tried == [batch.rows for batch in ran[:150] if batch.reason is Reason.TRIAL]


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


def flat(n: int) -> float:
    """Batching gains a twentieth at most."""
    return 0.005 * n * (0.95 + 0.05 / n)


@pytest.mark.parametrize(("executors", "flood", "rows"), [(1, 32, 1), (2, 32, 1), (2, 4, 8)])
@pytest.mark.parametrize("impatient", [False, True])
def test_who_has_a_deadline_is_not_let_go_of_for_a_flood_that_has_none(
    executors: int, flood: int, rows: int, impatient: bool
) -> None:
    """What the flood asks for is more than can be served within his time: it has more. Nor does it
    matter that others are refused all the time, who have no time at all."""

    def heavy(n: int) -> float:
        return 0.005 * n

    sched, served, inf = scheduler(heavy, executors), 0, float("inf")
    running: dict[str, tuple[float, Batch]] = {}
    for turn in range(400):
        now = 0.001 * turn
        for _ in range(flood - sched.state.queued_requests):
            sched.submit(Request("k", None, now, rows))
        for _ in range(8 * impatient):
            assert sched.submit(Request("k", None, now, deadline=now + 0.001)) is not None
        if turn % 20 == 19:
            submit(sched, 1, now, now + 0.09)
        for name, (end, batch) in list(running.items()):
            if end <= now:
                served += sum(now < request.deadline < inf for request in batch.requests)
                del running[name]
                sched.complete(name, heavy(batch.rows), now=now)
        actions = sched.step(now)
        assert not [action for action in actions if isinstance(action, Drop)]
        for action in actions:
            if isinstance(action, Dispatch):
                one = action.batch
                running[one.executor] = now + heavy(one.rows), one
    assert served >= 16


@pytest.mark.parametrize(
    ("cost", "within", "rows", "brief"),
    [
        (flat, 0.1, range(8, 11), True),
        (flat, 10.0, range(12, 33), False),
        (pays, 0.011, range(25, 32), True),
    ],
    ids=["a tight deadline", "a loose one", "where batches pay"],
)
def test_a_flood_leaves_time_for_those_who_have_deadlines(
    cost: Callable[[int], float], within: float, rows: range, brief: bool
) -> None:
    """As far as that costs the flood little."""
    sched = scheduler(cost)
    submit(sched, 1, deadline=within)
    submit(sched, 200, arrival=0.001)
    (first,) = batches(sched, 0.001)
    sched.complete("e0", cost(first.rows))
    (batch,) = batches(sched, 0.1)
    assert batch.rows in rows
    assert (batch.reason is Reason.BRIEF) is brief
    sched.complete("e0", cost(batch.rows))
    (later,) = batches(sched, 2.0)
    assert later.reason is not Reason.BRIEF, "nobody with a deadline has come for long"


def test_batches_stay_brief_until_those_come_who_were_told_when() -> None:
    sched = scheduler(flat)
    submit(sched, 1, deadline=0.1)
    submit(sched, 200, arrival=0.001)
    (first,) = batches(sched, 0.001)
    told = come_back(sched.state, Request("k", None, 0.001, deadline=0.101), 0.001)
    sched.complete("e0", flat(first.rows))
    (batch,) = batches(sched, 1.0 + told)
    assert batch.reason is Reason.BRIEF
    sched.complete("e0", flat(batch.rows))
    (later,) = batches(sched, 1.1 + told)
    assert later.reason is not Reason.BRIEF


def test_one_whose_deadline_nobody_could_meet_makes_no_batch_longer() -> None:
    sched = scheduler(flat)
    submit(sched, 1, deadline=0.1)
    submit(sched, 200, arrival=0.001)
    (first,) = batches(sched, 0.001)
    assert sched.submit(Request("k", None, 0.001, deadline=0.003)) is not None
    sched.complete("e0", flat(first.rows))
    (batch,) = batches(sched, 0.1)
    assert batch.reason is Reason.BRIEF
