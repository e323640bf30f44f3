"""What a run takes with nobody else here, and who may hope for it."""

from __future__ import annotations

import math

import pytest

from headrace.batcher.learned import Learned
from headrace.batcher.policy import Policy, WorkConserving
from headrace.batcher.request import Dispatch, Request, Why
from headrace.batcher.scheduler import Scheduler
from headrace.batcher.state import Limits
from headrace.batcher.undisturbed import Undisturbed

QUIET, BESIDE_OTHERS = 0.002, 0.008


def after_a_crowd(policy: Policy | None = None) -> Scheduler:
    """One whose model was profiled alone and has run beside a crowd since."""
    sched = Scheduler({"e0": "cpu"}, policy or Learned(), Limits(max_batch_rows=8))
    table = sched.state.table("e0", "k", 0.0)
    table.profile([(rows, QUIET * rows) for rows in (1, 2, 4, 8)])
    for _ in range(1_000):
        table.observe(1, BESIDE_OTHERS)
    assert table.seconds(1) == pytest.approx(BESIDE_OTHERS, rel=0.1)
    return sched


def asks(sched: Scheduler, now: float, within: float = 0.005) -> bool:
    """Whether one who wants his answer `within` so many seconds is let in."""
    request = Request(key="k", payload=None, arrival=now, deadline=now + within)
    return sched.submit(request) is None


def runs(sched: Scheduler, now: float, seconds: float) -> None:
    (action,) = sched.step(now)
    assert isinstance(action, Dispatch)
    sched.complete("e0", seconds)


def test_what_fewer_rows_take_more_do_and_nothing_is_known_beyond() -> None:
    known = Undisturbed()
    known.observe(1, 0.1)
    known.observe(4, 0.2)
    assert [known.seconds(rows) for rows in (1, 2, 4, 5)] == [0.1, 0.2, 0.2, math.inf]


def test_one_slow_run_is_not_a_slow_machine_but_several_are() -> None:
    known = Undisturbed()
    known.observe(1, 0.1)
    known.observe(1, 9.9)
    assert known.seconds(1) < 0.15
    for _ in range(12):
        known.observe(1, 0.4)
    assert known.seconds(1) == pytest.approx(0.4, rel=0.1)


def test_who_finds_nobody_after_a_crowd_is_not_refused_for_what_runs_took_beside_it() -> None:
    sched = after_a_crowd()
    for turn in range(100):
        assert asks(sched, now=1.0 + turn)
        runs(sched, 1.0 + turn + 0.0004, QUIET)  # and is not let go of when it is decided, either


def test_who_has_just_come_and_is_alone_is_not_let_go_of_for_a_moment() -> None:
    """Within 2.1 ms, where a run takes 2.0: 0.2 ms later there is less time than that."""
    sched = Scheduler({"e0": "cpu"}, Learned(), Limits(max_batch_rows=8))
    sched.state.table("e0", "k", 0.0).profile([(rows, QUIET * rows) for rows in (1, 2, 4, 8)])
    assert asks(sched, now=1.0, within=QUIET + 0.0001)
    runs(sched, 1.0 + 0.0002, QUIET)


def test_beside_others_what_runs_take_there_counts() -> None:
    sched = after_a_crowd()
    assert asks(sched, now=1.0)
    sched.step(1.0)
    request = Request(key="k", payload=None, arrival=1.001, deadline=1.006)
    refusal = sched.submit(request)
    assert refusal is not None
    assert refusal.why is Why.TOO_LATE, "the others are to blame"
    assert refusal.retry_after > 0.005, "when they are served"
    assert refusal.message == (
        "the deadline is 5.0 ms away, a run of 1 row takes about 8.0 ms beside others, 2.0 ms by "
        "itself"
    )


def test_a_crowd_that_is_refused_is_not_nobody() -> None:
    """Whoever is refused leaves at once, so that the next one finds nobody here."""
    sched = after_a_crowd()
    let_in = 0
    for turn in range(160):
        now = 1.0 + turn * 0.0005
        if asks(sched, now):
            let_in += 1
            sched.step(now)
            sched.complete("e0", BESIDE_OTHERS, now=now + 0.0004)  # late, as far as it knows
            sched.state.hopeless = 1
    assert let_in <= 160 / 16 + 1


def test_where_the_machine_itself_is_slow_nobody_hopes_for_long() -> None:
    sched = after_a_crowd()
    let_in = 0
    for turn in range(160):
        if asks(sched, now=1.0 + turn):
            runs(sched, 1.0 + turn, BESIDE_OTHERS)
            let_in += 1
    assert let_in <= 4 + 160 / 16


def test_a_run_during_which_others_come_says_nothing_of_undisturbed_ones() -> None:
    sched = after_a_crowd(WorkConserving())
    now = 1.0
    assert asks(sched, now, within=1.0)
    for _ in range(100):
        sched.step(now)
        assert asks(sched, now + 0.001, within=1.0)
        now += BESIDE_OTHERS
        sched.complete("e0", BESIDE_OTHERS)
    table = sched.state.table("e0", "k", 0.0)
    assert table.seconds_undisturbed(1) == QUIET
