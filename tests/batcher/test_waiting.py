"""An idle executor waits for company where that saves more time than it costs, and only there."""

from __future__ import annotations

import math
import random
from collections.abc import Callable

import pytest

from headrace.batcher.learned import Learned
from headrace.batcher.request import Action, Batch, Dispatch, Request, WakeAt
from headrace.batcher.scheduler import Scheduler
from headrace.batcher.state import Limits

BACK = 0.0005  # how soon a caller asks again


def pays(n: int) -> float:
    return 0.010 + 0.0001 * n


def scheduler(cost: Callable[[int], float] = pays, executors: int = 1) -> Scheduler:
    kinds = {f"e{n}": "gpu" for n in range(executors)}
    sched = Scheduler(kinds, Learned(), Limits(max_batch_rows=32))
    table = sched.state.cost.table("gpu", "k", 0.0)
    for _ in range(20):
        for n in range(1, 33):
            table.observe(n, cost(n))
    return sched


def submit(sched: Scheduler, count: int, now: float, patience: float = math.inf) -> None:
    for _ in range(count):
        request = Request(key="k", payload=None, arrival=now, deadline=now + patience)
        assert sched.submit(request) is None


def batch_of(actions: list[Action]) -> Batch:
    (batch,) = [action.batch for action in actions if isinstance(action, Dispatch)]
    return batch


def taking_turns(
    sched: Scheduler, cost: Callable[[int], float] = pays, rounds: int = 60
) -> tuple[float, int]:
    """Two groups of four callers, one always on the executor. Ends at a completion: when, and how
    many are waiting then. Callers who were answered are about to come back."""
    now, away = 0.0, 4
    submit(sched, 4, now)
    batch = batch_of(sched.step(now))
    for _ in range(rounds):
        submit(sched, away, now + BACK)
        now += cost(batch.rows)
        sched.complete("e0", cost(batch.rows), now=now)
        away = batch.rows
        actions = sched.step(now)
        if isinstance(actions[-1], WakeAt):
            return now, away
        batch = batch_of(actions)
    return now, 0


def test_callers_who_come_back_at_once_are_waited_for_and_served_together() -> None:
    sched = scheduler()
    now, away = taking_turns(sched)
    assert away == 4, "it never waited"
    submit(sched, 3, now + BACK)
    (wake,) = sched.step(now + BACK)
    assert isinstance(wake, WakeAt)
    submit(sched, 1, now + 2 * BACK)
    assert batch_of(sched.step(now + 2 * BACK)).rows == 8, "nobody is missing any more"


def test_a_wait_for_those_who_do_not_come_ends() -> None:
    sched = scheduler()
    now, _ = taking_turns(sched)
    (wake,) = sched.step(now)
    assert isinstance(wake, WakeAt)
    assert now < wake.time <= now + 0.2 * pays(1) * 1.01
    assert batch_of(sched.step(wake.time)).rows == 4


def test_a_deadline_ends_a_wait() -> None:
    sched = scheduler()
    now, _ = taking_turns(sched)
    table = sched.state.cost.table("gpu", "k", 0.0)
    patience = table.seconds(6) * table.guard + 0.0001  # room for one more
    submit(sched, 1, now, patience)
    (wake,) = sched.step(now)
    assert isinstance(wake, WakeAt)
    assert wake.time <= now + 0.0001
    assert batch_of(sched.step(now + 0.0001)).rows == 5


def test_nobody_waits_where_batching_saves_nothing() -> None:
    def linear(n: int) -> float:
        return 0.01 * n

    assert taking_turns(scheduler(linear), linear)[1] == 0


def test_nobody_waits_for_less_than_a_timer_can_measure() -> None:
    """All is twenty times as fast, and what could be saved is less than the grain of a timer."""

    def fast(n: int) -> float:
        return pays(n) / 20

    assert taking_turns(scheduler(fast), fast)[1] == 0


def test_a_lone_caller_is_served_at_once() -> None:
    sched, now = scheduler(), 0.0
    for _ in range(100):
        submit(sched, 1, now)
        assert batch_of(sched.step(now)).rows == 1
        now += pays(1)
        sched.complete("e0", pays(1), now=now)
        assert sched.step(now) == []
        now += BACK


@pytest.mark.parametrize("load", [0.2, 0.8, 3.0])
def test_independent_arrivals_are_never_kept_waiting_by_one_executor(load: float) -> None:
    sched, dice = scheduler(), random.Random(1)
    now, ends = 0.0, math.inf
    for _ in range(3000):
        now += dice.expovariate(load / pays(1))
        while ends <= now:
            sched.complete("e0", 0.01, now=ends)
            actions = sched.step(ends)
            assert not any(isinstance(action, WakeAt) for action in actions)
            ends = ends + pays(batch_of(actions).rows) if actions else math.inf
        submit(sched, 1, now)
        actions = sched.step(now)
        if actions:
            ends = now + pays(batch_of(actions).rows)


def test_one_of_several_executors_waits_for_what_the_load_needs() -> None:
    """At 1000 rows a second, two executors need batches of five or more."""
    sched = scheduler(executors=2)
    now = 0.0
    sizes = []
    for _ in range(3000):
        now += 0.001
        submit(sched, 1, now)
        sizes += [a.batch.rows for a in sched.step(now) if isinstance(a, Dispatch)]
        for name, batch in sched.state.running.items():
            if batch is not None and batch.started + batch.expected <= now:
                sched.complete(name, batch.expected, now=now)
    assert min(sizes[-20:]) >= 5


def pressed(cost: Callable[[int], float] = pays, executors: int = 2) -> Scheduler:
    """One whose processors have no time left, where four others are usually here."""
    sched = scheduler(cost, executors)
    sched.state.device.pressed = True
    sched.state.crowd = 4.0
    return sched


def test_on_a_pressed_device_small_batches_wait_for_those_who_are_usually_here() -> None:
    sched = pressed(executors=1)
    submit(sched, 2, 0.0)
    (wake,) = sched.step(0.0)
    assert isinstance(wake, WakeAt)
    assert 0 < wake.time <= pays(32) * 1.05
    submit(sched, 3, 0.001)
    sched.state.crowd = 4.0
    assert batch_of(sched.step(0.001)).rows == 5
    sched.complete("e0", pays(5))
    submit(sched, 1, 0.02)
    (wake,) = sched.step(0.02)
    assert isinstance(wake, WakeAt)
    assert batch_of(sched.step(wake.time)).rows == 1


def test_a_lone_caller_does_not_wait_on_a_pressed_device() -> None:
    sched = pressed()
    sched.state.crowd = 0.0
    submit(sched, 1, 0.0)
    assert batch_of(sched.step(0.0)).rows == 1


def test_a_pressed_device_makes_nobody_wait_where_batching_does_not_pay() -> None:
    sched = pressed(lambda n: 0.01 * n)
    submit(sched, 1, 0.0)
    assert batch_of(sched.step(0.0)).rows == 1


def test_deadlines_come_before_the_press() -> None:
    sched = pressed()
    table = sched.state.cost.table("gpu", "k", 0.0)
    submit(sched, 1, 0.0, table.seconds(2) * table.guard + 0.0002)
    (wake,) = sched.step(0.0)
    assert isinstance(wake, WakeAt)
    assert wake.time <= 0.0002 + 1e-9
