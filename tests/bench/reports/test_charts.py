"""Axes and places: round ticks that cover the data, and labels that keep their distance."""

import math
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.bench.reports import charts, svg
from headrace.bench.reports.plots import spectrum
from support import reports

positive = st.floats(1e-4, 1e8)


@given(st.lists(positive, max_size=20))
def test_a_linear_axis_covers_its_values_with_few_round_ticks(values: list[float]) -> None:
    axis = svg.linear(values)
    assert axis.low == 0
    assert axis.high >= max(values, default=0) * (1 - 1e-9)
    assert 2 <= len(axis.ticks) <= 6
    assert len({name for _, name in axis.ticks}) == len(axis.ticks)


@given(st.lists(positive, max_size=20), st.integers(3, 10))
def test_a_logarithmic_axis_covers_its_values(values: list[float], most: int) -> None:
    axis = svg.logarithmic(values, most)
    assert 0 < axis.low < axis.high
    assert all(axis.low * (1 - 1e-9) <= v <= axis.high * (1 + 1e-9) for v in values)
    assert 1 <= len(axis.ticks) <= most


@given(
    st.lists(st.floats(0, 100), min_size=1, max_size=8),
)
def test_spread_labels_keep_their_gap_and_their_order(places: list[float]) -> None:
    moved = svg.spread(places, 12, 0, 100)
    ordered = sorted(zip(places, moved, strict=True))
    assert all(
        b - a >= 12 - 1e-6 for (_, a), (_, b) in pairwise(sorted(ordered, key=lambda p: p[1]))
    )
    assert all(a[1] <= b[1] for a, b in pairwise(ordered) if a[0] < b[0])
    assert min(moved) >= 0 - 1e-6
    assert max(moved) <= 100 + 1e-6


@given(st.floats(0.001, 1000), st.floats(1.0, 3.0))
def test_the_axis_of_ratios_has_1_in_its_middle(median: float, spread: float) -> None:
    axis = charts.ratio_axis([reports.ratio("p99_ms", median, median / spread, median * spread)])
    assert axis.at(1, 0, 100) == pytest.approx(50)
    assert axis.at(2, 0, 100) - 50 == pytest.approx(50 - axis.at(0.5, 0, 100))


def test_the_spectrum_is_that_of_the_times() -> None:
    times = np.random.default_rng(1).exponential(20.0, 20_000) + 0.01
    points = spectrum([reports.distribution(times[:12_000]), reports.distribution(times[12_000:])])
    assert points[0][0] == 2
    assert points[-1][0] == len(times)
    assert points[-1][1] == pytest.approx(times.max(), rel=0.002)
    assert [x for x, _ in points] == sorted(x for x, _ in points)
    ordered = np.sort(times)
    for depth, value in points:
        # The histogram rounds the rank to the nearest, and the value to three digits.
        rank = len(times) * (1 - 1 / depth)
        low, high = ordered[max(math.floor(rank) - 1, 0)], ordered[min(math.ceil(rank), 19_999)]
        assert low * 0.998 <= value <= high * 1.002


def test_of_nothing_there_is_no_spectrum() -> None:
    assert spectrum([]) == []
    assert spectrum([reports.distribution([])]) == []
