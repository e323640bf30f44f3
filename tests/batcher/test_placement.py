"""Which executor takes a batch where they are not alike: teams that take turns, and helpers."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest

from headrace.batcher.learned import Learned
from headrace.batcher.placement import lone_was_measured
from headrace.batcher.request import Batch, Dispatch, Phase, Request, WakeAt, Why
from headrace.batcher.scheduler import Scheduler
from headrace.batcher.state import Device, Limits

Cost = Callable[[int], float]


def scheduler(
    kinds: dict[str, str], costs: dict[str, Cost], teams: dict[str, int] | None = None
) -> Scheduler:
    """One that knows `costs` of each kind."""
    sched = Scheduler(kinds, Learned(), Limits(max_batch_rows=16), teams, Device())
    for kind, cost in costs.items():
        table = sched.state.cost.table(kind, "k", 0.0)
        for _ in range(20):
            for n in range(1, 17):
                table.observe(n, cost(n))
        table.observations += 5  # no trial is due
    return sched


def narrow_and_wide() -> Scheduler:
    """Two executors of a core each, or one of both: as a real model was measured."""
    kinds = {"n0": "cpu", "n1": "cpu", "w0": "cpux2"}
    costs: dict[str, Cost] = {"cpu": lambda n: 4.1 * n, "cpux2": lambda n: 0.6 + 2.2 * n}
    return scheduler(kinds, costs, {"n0": 0, "n1": 0, "w0": 1})


def fast_and_slow() -> Scheduler:
    """A device on which batching pays, and a helper four times as slow for one row."""
    kinds = {"gpu": "cuda", "cpu": "cpu"}
    return scheduler(kinds, {"cuda": lambda n: 1 + 0.1 * n, "cpu": lambda n: 4.0 * n})


def submit(sched: Scheduler, count: int, now: float, deadline: float = math.inf) -> list[Request]:
    requests = [Request("k", None, now, deadline=deadline) for _ in range(count)]
    for request in requests:
        assert sched.submit(request) is None
    return requests


def batches(sched: Scheduler, now: float) -> list[Batch]:
    return [action.batch for action in sched.step(now) if isinstance(action, Dispatch)]


def test_a_lone_request_has_every_core() -> None:
    sched = narrow_and_wide()
    for now in range(0, 100, 10):
        submit(sched, 1, now)
        assert [batch.executor for batch in batches(sched, now)] == ["w0"]
        sched.complete("w0", 2.8)


def test_a_crowd_is_served_by_the_team_of_the_highest_rate() -> None:
    sched = narrow_and_wide()
    submit(sched, 8, 0.0)
    assert {batch.executor for batch in batches(sched, 0.0)} == {"n0", "n1"}


def test_who_only_the_other_team_could_serve_in_time_is_not_run_by_this_one() -> None:
    """A crowd keeps one executor busy; the other is idle, and takes 4.1."""
    sched = narrow_and_wide()
    submit(sched, 8, 0.0)
    running = batches(sched, 0.0)
    while sched.state.queued_requests:
        sched.complete("n1", 4.1)
        batches(sched, 0.0)
    sched.complete("n1", 4.1)
    assert [batch.executor for batch in running if sched.state.running[batch.executor]] == ["n0"]
    late = Request("k", None, 12.1, deadline=15.6)  # n0 ends at 12.3; all cores would take 2.8
    refusal = sched.submit(late)
    assert refusal is not None
    assert refusal.why is Why.TOO_LATE
    assert sched.submit(Request("k", None, 12.1, deadline=16.6)) is None
    assert [batch.executor for batch in batches(sched, 12.1)] == ["n1"]


def test_an_idle_helper_is_no_reason_to_refuse_what_a_fast_one_will_serve_in_time() -> None:
    """The fast one is free at 1.1 and takes 1.1, the helper would take 4."""
    sched = fast_and_slow()
    submit(sched, 1, 0.0)
    assert [batch.executor for batch in batches(sched, 0.0)] == ["gpu"]
    (request,) = submit(sched, 1, 0.1, deadline=3.0)
    assert batches(sched, 0.1) == []
    sched.complete("gpu", 1.1)
    (batch,) = batches(sched, 1.1)
    assert (batch.executor, batch.requests) == ("gpu", [request])


def test_teams_never_run_at_the_same_time() -> None:
    sched = narrow_and_wide()
    submit(sched, 1, 0.0)
    assert [batch.executor for batch in batches(sched, 0.0)] == ["w0"]
    submit(sched, 1, 1.0)
    assert batches(sched, 1.0) == []
    sched.complete("w0", 2.8)
    assert len(batches(sched, 2.8)) == 1


def test_two_callers_in_turn_are_a_crowd() -> None:
    sched = narrow_and_wide()
    sched.state.crowd = 1.0
    submit(sched, 1, 0.0)
    assert [batch.executor for batch in batches(sched, 0.0)] == ["n0"]
    submit(sched, 1, 0.0)
    assert [batch.executor for batch in batches(sched, 0.0)] == ["n1"]


def test_the_wide_team_leaves_the_device_to_others() -> None:
    sched = narrow_and_wide()
    sched.state.device.running += 1
    submit(sched, 1, 0.0)
    assert [batch.executor for batch in batches(sched, 0.0)] == ["n0"]


def test_what_was_learned_in_a_bad_moment_is_unlearned() -> None:
    sched = narrow_and_wide()
    for _ in range(200):
        sched.state.cost.table("cpux2", "k", 0.0).observe(1, 40.0)
    used = []
    now = 0.0
    for _ in range(3000):
        submit(sched, 1, now)
        (batch,) = batches(sched, now)
        used.append(batch.executor)
        seconds = 2.8 if batch.executor == "w0" else 4.1
        now += seconds
        sched.complete(batch.executor, seconds)
    assert used[0] == "n0"
    assert used[-128:].count("w0") >= 120


def lone(sched: Scheduler, runs: int, seconds: dict[str, float]) -> list[str]:
    """The executors of as many lone requests as `runs`, each taking the executor's `seconds`."""
    used, now = [], 0.0
    for _ in range(runs):
        submit(sched, 1, now)
        (action,) = sched.step(now)
        if isinstance(action, WakeAt):  # for a second caller, who does not come
            now = action.time
            (action,) = sched.step(now)
        assert isinstance(action, Dispatch)
        executor = action.batch.executor
        used.append(executor)
        now += seconds[executor]
        sched.complete(executor, seconds[executor])
    return used


def test_the_team_that_is_worse_for_lone_requests_costs_them_little() -> None:
    used = lone(narrow_and_wide(), 2000, {"n0": 4.1, "w0": 2.8})
    assert used[:400].count("n0") == 0
    assert 4 <= used.count("n0") <= 16


def test_lone_requests_begin_where_they_were_answered_sooner_though_its_profile_was_unlucky() -> (
    None
):
    kinds, teams = {"n0": "cpu", "n1": "cpu", "w0": "cpux2"}, {"n0": 0, "n1": 0, "w0": 1}
    sched = Scheduler(kinds, Learned(), Limits(max_batch_rows=16), teams, Device())
    ours, theirs = (sched.state.table(name, "k", 0.0) for name in ("n0", "w0"))
    ours.profile([(n, 4.1 * n) for n in (1, 2, 4, 8, 16)])
    theirs.profile([(n, 5.0 * n) for n in (1, 2, 4, 8, 16)])  # beside something else
    lone_was_measured(ours, theirs, main=4.1, other=2.8)
    used = lone(sched, 400, {"n0": 4.1, "w0": 2.8})
    assert used[0] == "w0"
    assert used.count("n0") <= 16


def test_a_main_team_that_was_measured_in_a_bad_moment_is_found_out() -> None:
    """It takes half of what was measured, and few runs may tell of it."""
    used = lone(narrow_and_wide(), 2000, {"n0": 2.1, "w0": 2.8})
    assert used[0] == "w0"
    assert used[-512:].count("n0") >= 480


def test_a_cold_first_run_of_a_shape_decides_nothing() -> None:
    """Costs are borrowed from a shape at which every core is of no use, and the first run of a
    shape takes ten times as long on either team."""
    costs: dict[str, Cost] = {"cpu": lambda n: 1.0 * n, "cpux2": lambda n: 1.2 * n}
    teams = {"n0": 0, "n1": 0, "w0": 1}
    sched = scheduler({"n0": "cpu", "n1": "cpu", "w0": "cpux2"}, costs, teams)
    seen, used, now = set(), [], 0.0
    for _ in range(20):
        assert sched.submit(Request("longer", None, now)) is None
        (action,) = sched.step(now)
        if isinstance(action, WakeAt):  # for a second caller, who does not come
            now = action.time
            (action,) = sched.step(now)
        assert isinstance(action, Dispatch)
        batch = action.batch
        used.append(batch.executor)
        seconds = 8.0 if batch.executor == "w0" else 13.0
        if batch.executor not in seen:
            seconds *= 10
        seen.add(batch.executor)
        now += seconds
        sched.complete(batch.executor, seconds)
    assert used[6:] == ["w0"] * 14


def test_a_crowd_is_not_left_to_the_wide_team_by_hearsay() -> None:
    """What the narrow team takes for a new shape is borrowed, and far too much."""
    costs: dict[str, Cost] = {"cpu": lambda n: 40.0 * n, "cpux2": lambda n: 2.0 * n}
    teams = {"n0": 0, "n1": 0, "w0": 1}
    sched = scheduler({"n0": "cpu", "n1": "cpu", "w0": "cpux2"}, costs, teams)
    table = sched.state.cost.table("cpux2", "longer", 0.0)
    for _ in range(4):
        table.observe(1, 11.0)
    used, now = [], 0.0
    for _ in range(40):
        for _ in range(4):
            assert sched.submit(Request("longer", None, now)) is None
        begun = batches(sched, now)
        used += [batch.executor for batch in begun]
        now += 100.0
        for batch in begun:
            each = 11.0 if batch.executor == "w0" else 17.0
            sched.complete(batch.executor, each * batch.rows)
    assert used[:3] == ["n0", "n1", "n0"]
    assert used[-20:].count("w0") == 0


@pytest.mark.parametrize("really", [1.6, 3.0])
def test_a_crowd_is_left_to_the_wide_team_by_what_it_was_seen_to_take(really: float) -> None:
    """By its profile, made with all cores to itself, the wide team is the better one: it has one
    in so many of the crowds until its runs have told, and then all of them or none."""
    kinds = {"n0": "cpu", "n1": "cpu", "w0": "cpux2"}
    costs: dict[str, Cost] = {"cpu": lambda n: 4.1 * n, "cpux2": lambda n: really * n}
    sched = scheduler(kinds, {"cpu": costs["cpu"]}, {"n0": 0, "n1": 0, "w0": 1})
    wide = sched.state.cost.table("cpux2", "k", 0.0)
    wide.profile((n, 1.6 * n) for n in (1, 2, 4, 8, 16) for _ in range(2))
    first, now = [], 0.0
    for _ in range(100):
        submit(sched, 8, now)
        begun = batches(sched, now)
        first.append(begun[0].executor)
        while begun:
            for batch in begun:
                now += costs[kinds[batch.executor]](batch.rows)
                sched.complete(batch.executor, costs[kinds[batch.executor]](batch.rows), now=now)
            begun = batches(sched, now)
        now += 1000.0
    assert "w0" not in first[:7]
    assert first[:32].count("w0") >= 3
    assert first[-20:].count("w0") == (20 if really == 1.6 else 0)


def test_a_fast_executor_comes_first() -> None:
    sched = fast_and_slow()
    submit(sched, 1, 0.0)
    assert [batch.executor for batch in batches(sched, 0.0)] == ["gpu"]


def test_a_helper_leaves_alone_what_it_would_end_later() -> None:
    sched = fast_and_slow()
    submit(sched, 1, 0.0)
    assert len(batches(sched, 0.0)) == 1
    waiting = submit(sched, 3, 0.1)
    assert batches(sched, 0.1) == []
    assert all(request.phase is Phase.QUEUED for request in waiting)
    sched.complete("gpu", 1.1)
    assert [batch.executor for batch in batches(sched, 1.1)] == ["gpu"]


def test_a_helper_takes_its_part_of_a_long_queue() -> None:
    sched = fast_and_slow()
    submit(sched, 100, 0.0)
    first, second = batches(sched, 0.0)
    assert (first.executor, second.executor) == ("gpu", "cpu")
    # Six more batches of the fast one take about 16: the helper ends no later.
    assert 1 <= second.rows <= 4


def test_a_helper_saves_what_the_fast_one_cannot() -> None:
    sched = scheduler(
        {"gpu": "cuda", "cpu": "cpu"}, {"cuda": lambda n: 5.0, "cpu": lambda n: 6.0 * n}
    )
    submit(sched, 1, 0.0)
    assert len(batches(sched, 0.0)) == 1
    (request,) = submit(sched, 1, 0.1, deadline=7.0)
    (batch,) = batches(sched, 0.1)
    assert (batch.executor, batch.requests) == ("cpu", [request])


@pytest.mark.parametrize("patient", [True, False])
def test_every_request_is_served_whatever_the_helpers_do(patient: bool) -> None:
    sched = fast_and_slow()
    now, served = 0.0, 0
    running: dict[str, float] = {}
    for turn in range(400):
        now += 0.3
        if turn < 300:
            request = Request("k", None, now, deadline=math.inf if patient else now + 30)
            assert sched.submit(request) is None
        for name in [name for name, end in running.items() if end <= now]:
            del running[name]
            served += len(sched.complete(name, 1.0))
        for batch in batches(sched, now):
            running[batch.executor] = now + batch.expected
    assert served == 300


def test_where_the_queue_never_empties_the_rate_decides() -> None:
    """Three that come alone are answered sooner by all cores, one after the other; as part of a
    stream that keeps the cores busy they leave less time to those behind them."""

    def first(more: int) -> str:
        kinds = {"n0": "cpu", "n1": "cpu", "w0": "cpux2"}
        costs: dict[str, Cost] = {"cpu": lambda n: 0.0041 * n, "cpux2": lambda n: 0.0022 * n}
        sched = scheduler(kinds, costs, {"n0": 0, "n1": 0, "w0": 1})
        for n in range(more):
            sched.state.demands.arrived(Request("k", None, 9.0 + n / more))
        sched.state.demands.arrived(Request("k", None, 0.0))
        submit(sched, 3, 10.0)
        return batches(sched, 10.0)[0].executor

    assert first(0) == "w0"
    assert first(400) == "n0"


def test_a_team_that_was_asleep_is_tried_until_it_is_awake() -> None:
    """After others have run, the wide team's first five runs take four times as long."""
    sched = narrow_and_wide()
    for _ in range(200):
        sched.state.cost.table("cpux2", "k", 0.0).observe(1, 40.0)
    used, now, runs = [], 0.0, 0
    for _ in range(2000):
        submit(sched, 1, now)
        (batch,) = batches(sched, now)
        runs = runs + 1 if batch.executor == "w0" else 0
        seconds = 4.1 if not runs else 2.8 if runs > 5 else 11.0
        used.append(batch.executor)
        now += seconds
        sched.complete(batch.executor, seconds)
    assert used[-512:].count("w0") >= 480


def test_a_bad_moment_after_long_costs_a_lone_caller_little() -> None:
    """The wide team, right for thousands of runs, is slow for forty: others use its cores."""
    sched = narrow_and_wide()
    used, now, slow = [], 0.0, 0
    for turn in range(6000):
        submit(sched, 1, now)
        (batch,) = batches(sched, now)
        slow += turn > 5000 and batch.executor == "w0" and slow < 40
        seconds = 4.1 if batch.executor == "n0" else 11.0 if 0 < slow < 40 else 2.8
        used.append(batch.executor)
        now += seconds
        sched.complete(batch.executor, seconds)
    assert used[1000:5000].count("n0") <= 64
    assert used[5000:].count("n0") <= 300


def test_what_is_always_cold_is_learned_all_the_same() -> None:
    """Lone requests and crowds in turn: the wide team never gets warm, and is left."""
    sched = narrow_and_wide()
    used, now = [], 0.0
    for turn in range(2000):
        sched.state.crowd = 2.0 if turn % 2 else 0.0
        submit(sched, 1, now)
        (batch,) = batches(sched, now)
        seconds = 11.0 if batch.executor == "w0" else 4.1
        if not turn % 2:
            used.append(batch.executor)
        now += seconds
        sched.complete(batch.executor, seconds)
    assert used[-256:].count("n0") >= 200


@pytest.mark.parametrize("slowed", [8, 40])
def test_a_slow_moment_of_the_main_team_is_over_soon(slowed: int) -> None:
    """Lone requests are right on it, and some runs in a row take a third longer: the other team is
    a tenth worse than what those make believe, which few of its own runs must be enough to mend."""
    costs: dict[str, Cost] = {"cpu": lambda n: 0.9 * n, "cpux2": lambda n: 1.25 * n}
    sched = scheduler({"n0": "cpu", "n1": "cpu", "w0": "cpux2"}, costs, {"n0": 0, "n1": 0, "w0": 1})
    used = lone(sched, 3000, {"n0": 0.9, "w0": 1.25})
    assert used[-1000:].count("w0") <= 16
    lone(sched, slowed, {"n0": 1.2, "w0": 1.25})
    used = lone(sched, 3000, {"n0": 0.9, "w0": 1.25})
    assert used.count("w0") <= 200
    assert used[-1000:].count("w0") <= 16
