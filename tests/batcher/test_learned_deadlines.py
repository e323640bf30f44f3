"""What the learned policy does for those who have deadlines, and beside whom."""

from __future__ import annotations

import heapq
from collections.abc import Callable
from random import Random

import pytest

from headrace.batcher.admission import come_again, come_back
from headrace.batcher.request import Batch, Dispatch, Drop, Reason, Request, Why
from headrace.batcher.scheduler import Scheduler
from support.learned import batches, loses, pays, scheduler, submit


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
