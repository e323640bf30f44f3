"""Arrivals against the laws they claim to follow."""

from __future__ import annotations

import math
import pathlib
import statistics

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.bench.arrivals import TraceError, length, schedule
from headrace.bench.spec import BurstLoad, OpenLoad, Step, SteppedLoad, TraceLoad

rates = st.floats(0.1, 500)
seeds = st.integers(0, 2**32)


def times(
    load: OpenLoad | SteppedLoad | TraceLoad | BurstLoad, seconds: float, seed: int = 0
) -> list[float]:
    return [due for due, _ in schedule(load, seconds, seed)]


def kolmogorov(values: list[float]) -> float:
    """The distance of the values' distribution from the uniform one on 0 to 1, times √n: above
    1.95 with probability 0.001 where they are uniform."""
    ordered = np.sort(values)
    steps = np.arange(len(ordered) + 1) / len(ordered)
    distance = max((steps[1:] - ordered).max(), (ordered - steps[:-1]).max())
    return float(distance * math.sqrt(len(ordered)))


@settings(deadline=None)
@given(
    rate=rates,
    arrivals=st.sampled_from(["poisson", "constant", "gamma"]),
    burstiness=st.floats(0.05, 50),
    seconds=st.floats(0.01, 20),
    seed=seeds,
)
def test_times_ascend_end_in_time_and_repeat(
    rate: float, arrivals: str, burstiness: float, seconds: float, seed: int
) -> None:
    load = OpenLoad.model_validate(
        {"rate": rate, "arrivals": arrivals, "burstiness": burstiness, "kind": "open"}
    )
    found = times(load, seconds, seed)
    assert found == sorted(found)
    assert all(0 <= due < seconds for due in found)
    assert found == times(load, seconds, seed)
    shorter = times(load, seconds / 2, seed)
    assert shorter == found[: len(shorter)]


@settings(deadline=None)
@given(
    steps=st.lists(st.tuples(st.floats(0.1, 5), st.floats(0, 200)), min_size=1, max_size=6),
    ramp=st.booleans(),
    seed=seeds,
)
def test_steps_end_with_the_last(steps: list[tuple[float, float]], ramp: bool, seed: int) -> None:
    load = SteppedLoad(steps=tuple(Step(seconds=s, rate=r) for s, r in steps), ramp=ramp)
    found = times(load, 1000.0, seed)
    assert found == sorted(found)
    assert all(due <= math.fsum(s for s, _ in steps) + 1e-9 for due in found)


def test_different_seeds_differ() -> None:
    assert times(OpenLoad(rate=50), 1, 1) != times(OpenLoad(rate=50), 1, 2)


def test_constant_gaps_are_exact_and_begin_at_once() -> None:
    found = times(OpenLoad(rate=10, arrivals="constant"), 2)
    assert found == [n / 10 for n in range(20)]


def test_poisson_gaps_are_exponential() -> None:
    found = times(OpenLoad(rate=200), 100, seed=3)
    gaps = np.diff(found)
    assert kolmogorov((1 - np.exp(-200 * gaps)).tolist()) < 1.95


def test_a_poisson_process_given_its_count_is_uniform() -> None:
    found = times(OpenLoad(rate=200), 100, seed=4)
    assert abs(len(found) - 20_000) < 4 * math.sqrt(20_000)
    assert kolmogorov([due / 100 for due in found]) < 1.95


@pytest.mark.parametrize("burstiness", [0.25, 1.0, 4.0, 16.0])
def test_gamma_gaps_have_the_mean_and_the_variation_asked_for(burstiness: float) -> None:
    gaps = np.diff(times(OpenLoad(rate=100, arrivals="gamma", burstiness=burstiness), 2000, 5))
    assert gaps.mean() * 100 == pytest.approx(1, abs=0.04)
    squared = gaps.var() / gaps.mean() ** 2
    assert squared == pytest.approx(burstiness, rel=0.06)


@pytest.mark.parametrize("burstiness", [0.1, 9.0])
def test_the_expected_count_is_rate_times_seconds_from_the_first_moment(burstiness: float) -> None:
    """An ordinary renewal process of burstiness 9 would send (9 - 1) / 2 = 4 too many here."""
    load = OpenLoad(rate=10, arrivals="gamma", burstiness=burstiness)
    counts = [len(times(load, 2, seed)) for seed in range(2000)]
    error = statistics.stdev(counts) / math.sqrt(len(counts))
    assert statistics.mean(counts) == pytest.approx(20, abs=4 * error)


def test_steps_have_their_rates() -> None:
    steps = (Step(seconds=10, rate=100), Step(seconds=5, rate=0), Step(seconds=10, rate=400))
    found = np.array(times(SteppedLoad(steps=steps), 1000, seed=6))
    assert abs((found < 10).sum() - 1000) < 4 * math.sqrt(1000)
    assert ((found >= 10) & (found < 15)).sum() == 0
    assert abs((found >= 15).sum() - 4000) < 4 * math.sqrt(4000)


def test_constant_arrivals_keep_to_their_steps() -> None:
    steps = (Step(seconds=1, rate=4), Step(seconds=1, rate=0), Step(seconds=1, rate=2))
    found = times(SteppedLoad(steps=steps, arrivals="constant"), 10)
    assert found == [0.0, 0.25, 0.5, 0.75, 2.0, 2.5]


def test_a_ramp_is_rescaled_exactly() -> None:
    """Under the true Λ(t) = r·t²/(2·s), rising, the times become uniform; so do those of a fall."""
    steps = (Step(seconds=20, rate=500), Step(seconds=20, rate=1e-9))
    found = times(SteppedLoad(steps=steps, ramp=True), 100, seed=7)
    rising = [due for due in found if due < 20]
    falling = [due for due in found if due >= 20]
    assert abs(len(rising) - 5000) < 4 * math.sqrt(5000)
    assert abs(len(falling) - 5000) < 4 * math.sqrt(5000)
    assert kolmogorov([(due / 20) ** 2 for due in rising]) < 1.95
    assert kolmogorov([1 - ((40 - due) / 20) ** 2 for due in falling]) < 1.95


def test_a_constant_ramp_hits_the_roots() -> None:
    found = times(SteppedLoad(steps=(Step(seconds=4, rate=4),), ramp=True, arrivals="constant"), 9)
    assert found == pytest.approx([math.sqrt(2 * n) for n in range(8)])


def test_bursts() -> None:
    assert times(BurstLoad(count=3), 10) == [0, 0, 0]
    assert times(BurstLoad(count=2, period=2.5), 5.0) == [0, 0, 2.5, 2.5]


def test_a_trace_keeps_its_gaps_and_its_requests(tmp_path: pathlib.Path) -> None:
    file = tmp_path / "trace.csv"
    file.write_text("# seconds, request\n1000.5, 1\n\n1000.25\n1002.25,0\n")
    load = TraceLoad(file=str(file))
    assert list(schedule(load, 10, 0)) == [(0, None), (0.25, 1), (2.0, 0)]
    assert list(schedule(load, 2.0, 0)) == [(0, None), (0.25, 1)]
    twice = TraceLoad(file=str(file), speed=2)
    assert list(schedule(twice, 10, 0)) == [(0, None), (0.125, 1), (1.0, 0)]
    lasts = length(load)
    assert lasts is not None
    assert len(times(load, lasts)) == 3


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("", "no line"),
        ("1\nsoon\n", "line 2"),
        ("1,first", "line 1"),
        ("1,-1", "line 1"),
        ("nan", "line 1"),
    ],
)
def test_a_bad_trace_is_refused_by_its_line(tmp_path: pathlib.Path, text: str, named: str) -> None:
    file = tmp_path / "trace.csv"
    file.write_text(text)
    with pytest.raises(TraceError, match=named) as raised:
        schedule(TraceLoad(file=str(file)), 1, 0)
    assert str(file) in str(raised.value)


def test_a_missing_trace_is_named() -> None:
    with pytest.raises(TraceError, match=r"nowhere\.csv"):
        schedule(TraceLoad(file="nowhere.csv"), 1, 0)


def test_how_long_loads_last() -> None:
    steps = (Step(seconds=10, rate=1), Step(seconds=5, rate=2))
    assert length(SteppedLoad(steps=steps)) == 15
    assert length(OpenLoad(rate=1)) is None
