"""The simulator's engine and rules, by hand-computed cases and by what must hold of all."""

from __future__ import annotations

import math
import statistics
from dataclasses import replace
from pathlib import Path

import pytest

from headrace.batcher.fixed import Fixed
from simulation.bound import most_on_time
from simulation.engine import Rule, Simulation
from simulation.report import BEGIN, END, geometric_mean, markdown, verdicts, write
from simulation.rules import FixedRule, Knobs, PolicyRule, TritonRule
from simulation.sections import SECTIONS, Row
from simulation.shared import MODELS, shared_cores
from simulation.tuning import QUICK, RuleOf, games, run, sustained, tune
from simulation.workloads import TABLES, Profile, Trace, Workload, trace


def by_hand(arrivals: list[float], shapes: list[int] | None = None) -> Trace:
    """One row takes 1 s, two take 1.5 s, three 2 s; nothing is random."""
    return Trace(
        tables=[[0.0, 1.0, 1.5, 2.0]] * 2,
        shapes=shapes or [0] * len(arrivals),
        arrivals=arrivals,
        pauses=[],
        noise=[1.0],
    )


def batches(rule: Rule, given: Trace, executors: int = 1) -> tuple[list[list[int]], list[float]]:
    """What ran together, and when each request was answered."""
    workload = Workload("GPU CNN", executors, requests=len(given.shapes), shapes=2)
    simulation = Simulation(workload, rule, given)
    simulation.run()
    return simulation.batches, simulation.finish


def test_greedy_takes_all_that_waits() -> None:
    ran, finish = batches(FixedRule(Knobs(3)), by_hand([0.0, 0.1, 0.2]))
    assert ran == [[0], [1, 2]]
    assert finish == [1.0, 2.5, 2.5]


def test_a_delay_waits_for_company_but_no_longer() -> None:
    ran, finish = batches(FixedRule(Knobs(3, delay=0.5)), by_hand([0.0, 0.3, 5.0, 5.1, 5.2]))
    assert ran == [[0, 1], [2, 3, 4]]
    assert finish == pytest.approx([2.0, 2.0, 7.2, 7.2, 7.2])


def test_what_waited_past_the_timeout_is_lost() -> None:
    ran, finish = batches(FixedRule(Knobs(1, timeout=0.5)), by_hand([0.0, 0.1, 0.9]))
    assert ran == [[0], [2]]
    assert finish == [1.0, math.inf, 2.0]


def test_two_executors_run_at_once() -> None:
    _, finish = batches(FixedRule(Knobs(1)), by_hand([0.0, 0.5, 0.6]), executors=2)
    assert finish == [1.0, 1.5, 2.0]


def test_a_queue_for_each_shape_groups_what_triton_flushes() -> None:
    given = by_hand([0.0, 0.1, 0.2, 0.3, 0.4], shapes=[0, 1, 0, 1, 1])
    assert batches(FixedRule(Knobs(3)), given)[0] == [[0], [1, 3, 4], [2]]
    assert batches(TritonRule(Knobs(3)), given)[0] == [[0], [1], [2], [3, 4]]


def test_in_tritons_rule_another_shape_ends_the_delay() -> None:
    given = by_hand([0.0, 0.1, 0.2], shapes=[0, 0, 1])
    ran, finish = batches(TritonRule(Knobs(3, delay=0.5)), given)
    assert ran == [[0, 1], [2]]
    assert finish == pytest.approx([1.7, 1.7, 2.7])


def test_without_batches_it_is_an_md1_queue() -> None:
    workload = Workload("GPU CNN", deadline=math.inf, requests=40_000)
    half = workload.at(0.5 / (workload.alone * workload.capacity))
    rule = FixedRule(Knobs(1))
    outcome = Simulation(half, rule, replace(trace(half), noise=[1.0])).run()
    # Pollaczek and Khinchine: at half load a request waits for half a service on average.
    assert outcome.mean == pytest.approx(1.5 * workload.alone, rel=0.05)


@pytest.mark.parametrize("rule_of", [FixedRule, TritonRule, lambda _: PolicyRule()])
@pytest.mark.parametrize("table", TABLES)
@pytest.mark.parametrize("executors", [1, 4])
def test_every_request_ends_once(rule_of: RuleOf, table: str, executors: int) -> None:
    workload = Workload(table, executors, "gamma", 1.5, shapes=4, requests=600)
    knobs = Knobs(8, 0.5 * workload.alone, 0.5 * workload.patience)
    simulation = Simulation(workload, rule_of(knobs))
    outcome = simulation.run()
    ran = [request for batch in simulation.batches for request in batch]
    assert len(ran) == len(set(ran)) == 600 - outcome.lost
    assert simulation.lost == sum(map(math.isinf, simulation.finish))
    for batch in simulation.batches:
        assert len({simulation.trace.shapes[request] for request in batch}) == 1


def test_the_projects_own_fixed_rule_does_the_same() -> None:
    workload = Workload("CPU MLP", 1, "gamma", 0.6, math.inf, requests=800)
    delay = 0.5 * workload.alone
    mine = Simulation(workload, FixedRule(Knobs(16, delay)))
    real = Simulation(workload, PolicyRule(Fixed(delay=delay), max_batch=16))
    assert mine.run() == real.run()
    assert mine.batches == real.batches


def test_a_closed_loop_has_no_more_waiting_than_callers() -> None:
    workload = Workload("GPU CNN", 2, "closed", 0, math.inf, callers=5, requests=500)
    for rule in (FixedRule(Knobs(128)), PolicyRule()):
        simulation = Simulation(workload, rule)
        outcome = simulation.run()
        assert outcome.on_time == 1
        assert max(map(len, simulation.batches)) <= 5
        # Little's law, the callers' pauses included.
        assert outcome.throughput * (outcome.mean + workload.think) == pytest.approx(5, rel=0.05)


@pytest.mark.parametrize("arrivals", ["poisson", "gamma", "on-off"])
def test_the_load_is_what_it_says(arrivals: str) -> None:
    workload = Workload("GPU tiles", 4, arrivals, 0.7, requests=3000)
    came = trace(workload).arrivals
    assert came == sorted(came)
    assert len(came) == 3000
    assert 3000 / came[-1] == pytest.approx(0.7 * workload.capacity)


def test_numbers_are_reproducible() -> None:
    workload = Workload("GPU tiles", 1, "on-off", shapes=4, requests=500)
    assert run(workload, PolicyRule()) == run(workload, PolicyRule())


def test_an_executor_is_busy_beside_its_run() -> None:
    given = replace(by_hand([0.0, 0.1]), overhead=0.25)
    assert batches(FixedRule(Knobs(1)), given)[1] == [1.25, 2.5]


def test_the_policy_knows_what_was_profiled_and_learns_the_rest() -> None:
    """Of a model whose batches cost nothing more at load, and each row its own beside callers."""
    given = replace(by_hand([0.0] * 60), noise=[1.0] * 99)
    given = replace(given, profile=Profile([0.0, 1.0, 1.0, 1.0], share=0.5))
    workload = Workload("GPU CNN", 1, requests=60, deadline=math.inf)
    simulation = Simulation(workload, PolicyRule(max_batch=3), given)
    simulation.run()
    assert len(simulation.batches[1]) == 3  # as the profile has it: the first came alone
    slow = replace(given, tables=[[0.0, 1.0, 2.4, 3.9]])
    simulation = Simulation(workload, PolicyRule(max_batch=3), slow)
    simulation.run()
    assert len(simulation.batches[-1]) == 1


@pytest.mark.parametrize("model", MODELS)
def test_what_runs_take_on_shared_cores_is_noisy_about_its_table(model: str) -> None:
    noise = shared_cores(model, 8).trace.noise
    assert statistics.mean(noise) == pytest.approx(1)
    assert statistics.median(noise) < 1  # skewed
    assert max(noise) > 3
    assert shared_cores(model, 32).trace.noise == noise


def test_a_crowd_on_shared_cores_is_served_nearly_as_well_as_by_the_best_size() -> None:
    workload = replace(shared_cores("convolution", 32), requests=3000)
    fixed = Simulation(workload, FixedRule(Knobs(8)), workload.trace).run()
    ours = Simulation(workload, PolicyRule(), workload.trace).run()
    assert ours.lost == 0
    assert ours.throughput > 0.93 * fixed.throughput


def test_the_sustained_load_is_the_last_that_holds() -> None:
    workload = Workload("CPU transformer", requests=2000)

    def rule() -> Rule:
        return FixedRule(Knobs(2))

    for near in (0.1, 0.5, 0.9):
        load = sustained(workload, rule, near)
        assert run(workload.at(load), rule()).on_time >= 0.99
        assert run(workload.at(load + 0.005), rule()).on_time < 0.99


def test_tuned_is_no_worse_than_greedy() -> None:
    played = games(Workload("GPU CNN", 1, "gamma", requests=500), 2)
    assert played[0] != played[1]
    tuned = tune(played, FixedRule, lambda outcome: outcome.on_time, QUICK)
    alone = [
        [run(game, FixedRule(knobs)).on_time for game in played]
        for knobs in (Knobs(128), tuned.knobs)
    ]
    greedy, best = map(statistics.mean, alone)
    assert best == tuned.score >= greedy


def test_the_report_says_which_goals_are_missed() -> None:
    rows = [Row("easy", 1.2, {"tuned": 1.0}, ""), Row("hard", 0.9, {"tuned": 1.0}, "")]
    (line,) = verdicts(SECTIONS[0], rows)
    assert geometric_mean([1.2, 0.9]) == pytest.approx(1.0392, abs=1e-4)
    assert "goal of 1.03 for the mean met" in line
    assert "worst 0.900 (hard)" in line
    assert "NOT met on 1 of 2" in line


def test_tables_are_written_between_the_marks(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")
    write(page, [markdown(SECTIONS[0], [Row("w", 1.0, {"tuned": 0.5}, "max 1")])])
    text = page.read_text()
    assert "| w | 1.000 | 0.500 | 2.00 | max 1 |" in text
    assert "old" not in text
    assert text.startswith("before\n")
    assert text.endswith("\nafter\n")
    page.write_text("no marks")
    with pytest.raises(ValueError, match="expected the marks"):
        write(page, [])


@pytest.mark.parametrize("load", [0.3, 1.5, 3.0])
def test_no_rule_surpasses_the_bound(load: float) -> None:
    workload = Workload("GPU CNN", 2, "poisson", load, requests=2000)
    bound = most_on_time(workload)
    for rule in (PolicyRule(), FixedRule(Knobs(32, timeout=0.5 * workload.patience))):
        assert run(workload, rule).on_time <= bound
    assert bound <= 1.0


def test_the_bound_is_what_the_executors_can_do_in_overload() -> None:
    workload = Workload("CPU transformer", 1, "poisson", 3.0, deadline=5.0, requests=20000)
    rows = max(n for n, t in enumerate(TABLES[workload.table]) if t <= workload.patience)
    share = rows / TABLES[workload.table][rows] / (3.0 * workload.capacity)
    assert most_on_time(workload) == pytest.approx(share, rel=0.01)


def test_the_bound_is_for_one_shape() -> None:
    with pytest.raises(ValueError, match="one shape"):
        most_on_time(Workload("GPU CNN", shapes=4))


@pytest.mark.parametrize("executors", [1, 4])
def test_playing_sizes_out_earns_its_place(executors: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """In bursts far beyond capacity more is in time with it than without, by a twentieth."""
    workload = Workload("GPU CNN", executors, "on-off", 0.8, 5.0, requests=3000, seed=2)
    with_it = run(workload, PolicyRule()).on_time
    monkeypatch.setattr("headrace.batcher.learned.deadlines_press", lambda *_: False)
    assert with_it > 1.05 * run(workload, PolicyRule()).on_time
