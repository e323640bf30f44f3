"""The fixed rule: sizes and delay as configured, exactly."""

from __future__ import annotations

from headrace.batcher.fixed import Fixed
from headrace.batcher.request import Batch, Dispatch, Request, WakeAt
from headrace.batcher.scheduler import Scheduler
from headrace.batcher.state import Limits


def scheduler(policy: Fixed, cap: int = 8) -> Scheduler:
    return Scheduler({"e0": "cpu"}, policy, Limits(max_batch_rows=cap))


def submit(sched: Scheduler, count: int, arrival: float = 0.0, key: str = "k") -> None:
    for _ in range(count):
        sched.submit(Request(key=key, payload=None, arrival=arrival))


def batches(sched: Scheduler, now: float) -> list[Batch]:
    return [action.batch for action in sched.step(now) if isinstance(action, Dispatch)]


def test_without_delay_all_that_waits_goes_up_to_the_cap() -> None:
    sched = scheduler(Fixed())
    submit(sched, 11)
    assert [b.rows for b in batches(sched, 0.0)] == [8]


def test_it_waits_for_company_and_says_until_when() -> None:
    sched = scheduler(Fixed(delay=0.005))
    submit(sched, 3, arrival=1.0)
    assert sched.step(1.001) == [WakeAt(1.005)]
    assert [b.rows for b in batches(sched, 1.005)] == [3]


def test_a_full_batch_does_not_wait() -> None:
    sched = scheduler(Fixed(delay=10.0))
    submit(sched, 8)
    assert [b.rows for b in batches(sched, 0.0)] == [8]


def test_the_largest_preferred_size_closes_a_batch_at_once() -> None:
    sched = scheduler(Fixed((2, 4), delay=10.0))
    submit(sched, 5)
    assert [b.rows for b in batches(sched, 0.0)] == [4]


def test_after_the_delay_the_largest_preferred_size_that_can_be_had() -> None:
    sched = scheduler(Fixed((2, 4), delay=0.5))
    submit(sched, 3)
    assert batches(sched, 0.4) == []
    assert [b.rows for b in batches(sched, 0.5)] == [2]


def test_a_key_that_waits_does_not_hold_back_one_that_is_due() -> None:
    sched = scheduler(Fixed((2,), delay=10.0))
    submit(sched, 1, key="waits")
    submit(sched, 2, arrival=0.1, key="due")
    assert [b.key for b in batches(sched, 0.1)] == ["due"]
