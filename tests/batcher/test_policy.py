"""What the work-conserving policy decides, state by state."""

from __future__ import annotations

import math

import pytest

from headrace.batcher.policy import WorkConserving
from headrace.batcher.request import PATIENCE, Batch, Dispatch, Drop, Reason, Request, WakeAt
from headrace.batcher.scheduler import Scheduler
from headrace.batcher.state import Limits


def scheduler(executors: int = 1, cap: int = 4) -> Scheduler:
    kinds = {f"e{n}": "cpu" for n in range(executors)}
    return Scheduler(kinds, WorkConserving(), Limits(max_batch_rows=cap))


def request(key: str = "k", arrival: float = 0.0, **fields: object) -> Request:
    return Request(key=key, payload=None, arrival=arrival, **fields)  # type: ignore[arg-type]


def batches(sched: Scheduler, now: float) -> list[Batch]:
    return [action.batch for action in sched.step(now) if isinstance(action, Dispatch)]


def test_a_lone_request_goes_at_once() -> None:
    sched = scheduler()
    one = request()
    sched.submit(one)
    (batch,) = batches(sched, 0.0)
    assert batch.requests == [one]
    assert batch.reason is Reason.EXECUTOR_IDLE
    assert batch.waiting == 0


def test_requests_gather_while_the_executor_is_busy() -> None:
    sched = scheduler()
    sched.submit(request())
    sched.step(0.0)
    late = [request(arrival=0.001 * n) for n in range(6)]
    for one in late:
        sched.submit(one)
    assert batches(sched, 0.01) == []
    sched.complete("e0", 0.02)
    (batch,) = batches(sched, 0.02)
    assert batch.requests == late[:4]
    assert (batch.reason, batch.waiting) == (Reason.FULL, 2)


def test_idle_executors_share_a_group() -> None:
    sched = scheduler(executors=2, cap=8)
    for _ in range(6):
        sched.submit(request())
    first, second = batches(sched, 0.0)
    assert (first.rows, second.rows) == (3, 3)
    assert first.reason is Reason.SHARED
    assert {first.executor, second.executor} == {"e0", "e1"}


def test_unequal_keys_never_share_and_never_flush_each_other() -> None:
    sched = scheduler()
    sched.submit(request("a"))
    sched.step(0.0)
    for n in range(6):
        sched.submit(request("ab"[n % 2], arrival=0.001 * (n + 1)))
    sched.complete("e0", 0.1)
    (first,) = batches(sched, 0.1)
    sched.complete("e0", 0.2)
    (second,) = batches(sched, 0.2)
    assert (first.key, first.rows, second.key, second.rows) == ("a", 3, "b", 3)


def test_the_earliest_deadline_goes_first() -> None:
    sched = scheduler(cap=1)
    for n, deadline in enumerate((0.9, 0.5, math.inf, 0.7)):
        sched.submit(request(f"k{n}", deadline=deadline))
    order = []
    for n in range(4):
        (batch,) = batches(sched, 0.01 * n)
        order.append(batch.key)
        sched.complete("e0", 0.01 * n)
    assert order == ["k1", "k3", "k0", "k2"]


def test_a_higher_priority_goes_first_until_the_lower_has_aged() -> None:
    sched = scheduler(cap=1)
    old = request("old", arrival=0.0, priority=2)
    sched.submit(old)
    sched.submit(request("new", arrival=5.0, priority=1))
    (batch,) = batches(sched, 5.0)
    assert batch.key == "new"
    sched.submit(request("newer", arrival=11.0, priority=1))
    sched.complete("e0", 11.0)
    (batch,) = batches(sched, 11.0)
    assert batch.key == "old"


def test_a_flood_of_tight_deadlines_starves_nobody() -> None:
    """A patient request of a rare shape is served within PATIENCE and a batch, whatever comes."""
    sched = scheduler(cap=2)
    patient = request("rare", arrival=0.0)
    now, step = 0.0, 0.05
    sched.submit(patient)
    while math.isnan(patient.started):
        for _ in range(4):
            sched.submit(request("flood", arrival=now, deadline=now + 0.2))
        sched.step(now)
        now += step
        for name, batch in sched.state.running.items():
            if batch is not None:
                sched.complete(name, now)
        assert now < PATIENCE + 2 * step
    assert patient.started <= PATIENCE + step


def test_what_has_expired_is_dropped_and_the_rest_runs() -> None:
    sched = scheduler()
    late, good = request(deadline=0.5), request(deadline=2.0)
    sched.submit(late)
    sched.submit(good)
    drop, dispatch = sched.step(0.5)
    assert isinstance(drop, Drop)
    assert drop.request is late
    assert isinstance(dispatch, Dispatch)
    assert dispatch.batch.requests == [good]


def test_it_wakes_at_the_next_deadline_while_executors_are_busy() -> None:
    sched = scheduler()
    sched.submit(request())
    sched.step(0.0)
    sched.submit(request(deadline=3.0))
    soon = request(deadline=2.0)
    sched.submit(soon)
    assert sched.step(0.1) == [WakeAt(2.0)]
    sched.cancel(soon)
    assert sched.step(0.2) == [WakeAt(3.0)]


def test_a_request_larger_than_the_cap_runs_alone() -> None:
    sched = scheduler(cap=4)
    big, small = request(rows=9), request()
    sched.submit(big)
    sched.submit(small)
    (batch,) = batches(sched, 0.0)
    assert batch.requests == [big]


def test_who_asked_to_run_alone_neither_joins_a_batch_nor_leads_one() -> None:
    sched = scheduler(cap=8)
    sched.submit(request())
    sched.step(0.0)
    waiting = [request(arrival=0.001 * n, solo=n == 3) for n in range(1, 6)]
    for one in waiting:
        sched.submit(one)
    ran = []
    for end in (0.1, 0.2, 0.3):
        sched.complete("e0", 0.1)
        ran += [batch.requests for batch in batches(sched, end)]
    assert ran == [waiting[:2], waiting[2:3], waiting[3:]]


def test_halves_of_a_failed_batch_run_apart() -> None:
    sched = scheduler()
    members = [request() for _ in range(4)]
    for one in members:
        sched.submit(one)
    sched.step(0.0)
    assert sched.complete("e0", 0.1, failed=True) == []
    newcomer = request(arrival=0.1)
    sched.submit(newcomer)
    (batch,) = batches(sched, 0.2)
    assert (batch.requests, batch.reason) == (members[:2], Reason.RETRY)
    assert sched.complete("e0", 0.1, failed=True) == []
    for one in members[:2]:
        (batch,) = batches(sched, 0.2)
        assert (batch.requests, batch.reason) == ([one], Reason.SOLO)
        assert sched.complete("e0", 0.1, failed=True) == [one]
    (batch,) = batches(sched, 0.2)
    assert (batch.requests, batch.reason) == (members[2:], Reason.RETRY)
    assert sched.complete("e0", 0.1) == members[2:]
    (batch,) = batches(sched, 0.2)
    assert (batch.requests, batch.reason) == ([newcomer], Reason.EXECUTOR_IDLE)


@pytest.mark.parametrize("bad", [0, 21, 63])
def test_one_bad_row_in_64_is_found_in_13_runs(bad: int) -> None:
    sched = scheduler(cap=64)
    members = [request() for _ in range(64)]
    for one in members:
        sched.submit(one)
    runs, ended = 0, []
    while found := batches(sched, 0.0):
        (batch,) = found
        runs += 1
        failed = members[bad] in batch.requests
        ended += sched.complete("e0", 0.1, failed=failed)
    assert runs == 1 + 2 * 6
    assert ended == members


def test_one_that_failed_in_company_is_dropped_once() -> None:
    """Its deadline is known twice by then: from before the run, and from after."""
    sched = scheduler()
    early = request(priority=3, deadline=0.4)
    both = [request(deadline=0.5) for _ in range(2)]
    for one in both:
        sched.submit(one)
    sched.submit(early)
    sched.state.limits = Limits(max_batch_rows=2)
    assert [batch.requests for batch in batches(sched, 0.0)] == [both]
    sched.complete("e0", 0.1, failed=True)
    assert sorted(a.request.sequence for a in sched.step(0.6) if isinstance(a, Drop)) == [
        one.sequence for one in (early, *both)
    ]


@pytest.mark.parametrize("field", ["max_batch_rows", "max_queued_requests", "max_queued_bytes"])
def test_limits_below_one_are_refused(field: str) -> None:
    with pytest.raises(ValueError, match=f"{field}: expected at least 1, got 0"):
        Limits(**{field: 0})


def test_cancelled_requests_do_not_pile_up_behind_distant_deadlines() -> None:
    """The deadline heap lets go of what has left, or a day-long deadline would hold its payload."""
    sched = scheduler()
    sched.submit(request())
    sched.step(0.0)
    for _ in range(5000):
        one = request(deadline=1e6)
        sched.submit(one)
        sched.cancel(one)
    assert len(sched.state._deadlines) < 200
