"""Sides that alternate, and ratios that claim a difference only where there is one."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.fakes import job, measurement
from headrace.bench.errors import BenchError
from headrace.bench.questions.ratios import ENOUGH_TURNS, interval, ratio
from headrace.bench.questions.versus import versus
from headrace.bench.results import Measurement
from headrace.bench.spec import Job


def test_sides_alternate_and_each_turn_begins_with_another() -> None:
    order: list[tuple[str, int]] = []

    def measure(job: Job) -> Measurement:
        order.append((job.target.name, job.seed))
        return measurement(job)

    section = versus([job("a"), job("b"), job("c")], 4, measure)
    names = "".join(name for name, _ in order)
    assert names == "abcbcacababc"
    assert [seed for _, seed in order] == [0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3]
    assert [m.target for m in section.measurements] == list(names)
    assert section.labels[:4] == ("turn 1", "turn 1", "turn 1", "turn 2")
    assert {(r.side, r.base) for r in section.ratios} == {("a", "b"), ("a", "c")}


def test_drift_that_all_sides_share_does_not_count() -> None:
    """The machine gets three times slower over the run; one side is 1.2 times the other."""
    turns = 12

    def measure(job: Job) -> Measurement:
        slower = 1 + 2 * job.seed / turns
        rate = (120 if job.target.name == "a" else 100) / slower
        return measurement(job, [1 / rate] * round(rate * job.duration))

    section = versus([job("a"), job("b")], turns, measure)
    by_figure = {found.figure: found for found in section.ratios}
    throughput = by_figure["throughput"]
    assert throughput.median == pytest.approx(1.2, rel=0.01)
    assert throughput.high - throughput.low < 0.02
    assert throughput.real
    assert by_figure["p99_ms"].median == pytest.approx(1 / 1.2, rel=0.01)


def test_few_turns_are_never_real_and_the_section_says_so() -> None:
    def measure(job: Job) -> Measurement:
        return measurement(job, [0.001] * (200 if job.target.name == "a" else 100))

    few = versus([job("a"), job("b")], ENOUGH_TURNS - 1, measure)
    assert not any(found.real for found in few.ratios)
    assert "too few" in few.notes[-1]
    enough = versus([job("a"), job("b")], ENOUGH_TURNS, measure)
    assert any(found.real for found in enough.ratios)
    assert enough.notes == ()


def test_goodput_is_compared_where_there_are_deadlines() -> None:
    def measure(job: Job) -> Measurement:
        late = job.target.name == "b"
        return measurement(job, [0.001] * 50 + [0.2 if late else 0.001] * 50)

    with_deadlines = versus([job("a", deadline=0.1), job("b", deadline=0.1)], 3, measure)
    (goodput,) = (found for found in with_deadlines.ratios if found.figure == "goodput")
    assert goodput.median == 2
    without = versus([job("a"), job("b")], 3, measure)
    assert "goodput" not in {found.figure for found in without.ratios}


def test_a_turn_without_answers_is_left_out_and_told() -> None:
    def measure(job: Job) -> Measurement:
        dead = job.target.name == "b" and job.seed == 1
        return measurement(job, [] if dead else [0.001] * 10)

    section = versus([job("a"), job("b")], 4, measure)
    assert {found.turns for found in section.ratios} == {3}
    assert "1 of 4 turns are left out" in section.notes[0]


def test_what_the_targets_say_differs() -> None:
    def about(side: Job, **about: str) -> Job:
        return side.model_copy(update={"target": side.target.model_copy(update={"about": about})})

    sides = [
        about(job("a"), onnxruntime="1.23", model="m"),
        about(job("b"), onnxruntime="1.20", model="m"),
    ]
    section = versus(sides, 6, measurement)
    assert section.notes == ("onnxruntime: a 1.23; b 1.20",)


@pytest.mark.parametrize("names", [["a"], ["a", "a"]])
def test_sides_need_names_of_their_own(names: list[str]) -> None:
    with pytest.raises(BenchError, match="two or more sides of different names"):
        versus([job(name) for name in names], 1, measurement)


@settings(deadline=None)
@given(
    values=st.lists(st.floats(0.01, 100), min_size=1, max_size=30),
    seed=st.integers(0, 100),
)
def test_the_interval_repeats_and_lies_within_the_values(values: list[float], seed: int) -> None:
    low, high = interval(values, 0.95, seed)
    assert min(values) <= low <= high <= max(values)
    assert (low, high) == interval(values, 0.95, seed)


@pytest.mark.parametrize("turns", [6, 7, 10, 15])
def test_no_difference_is_seldom_called_real(turns: int) -> None:
    """Two equal sides with noise of heavy tails: about 5 % are allowed, and 9 % is more
    than chance makes of that in 300."""
    rng = np.random.default_rng(1)
    runs = 300
    false = sum(
        ratio(
            "throughput",
            ("a", np.exp(0.05 * rng.standard_t(4, turns)).tolist()),
            ("b", [1.0] * turns),
            seed=run,
        ).real
        for run in range(runs)
    )
    assert false / runs < 0.09


def test_a_difference_is_found() -> None:
    """5 % between sides whose turns differ by 2 %, ten turns: seldom missed."""
    rng = np.random.default_rng(2)
    found = [
        ratio(
            "throughput",
            ("a", (1.05 * np.exp(0.02 * rng.standard_normal(10))).tolist()),
            ("b", np.exp(0.02 * rng.standard_normal(10)).tolist()),
        )
        for _ in range(100)
    ]
    assert sum(one.real for one in found) > 90
    assert sum(one.low <= 1.05 <= one.high for one in found) > 85
