"""What is counted once can be told exactly in two kinds of buckets."""

from __future__ import annotations

import bisect
import math

from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.server.telemetry.histogram import RATIO, ROWS, SECONDS, Histogram, Scale

VALUES = st.lists(st.floats(0, 1e4, allow_nan=False))


def filled(scale: Scale, values: list[float]) -> Histogram:
    histogram = Histogram(scale)
    for value in values:
        histogram.observe(value)
    return histogram


@settings(deadline=None)
@given(VALUES, st.sampled_from([SECONDS, ROWS, RATIO]))
def test_each_decimal_bucket_has_what_belongs_there(values: list[float], scale: Scale) -> None:
    histogram = filled(scale, values)
    expected = [0] * (len(scale.decimal) + 1)
    for value in values:
        expected[bisect.bisect_left(scale.decimal, value)] += 1
    assert scale.decimal_counts(histogram.counts) == expected
    assert histogram.count == len(values)
    assert math.isclose(histogram.sum, math.fsum(values), abs_tol=1e-9)


@settings(deadline=None)
@given(st.floats(2.0**-16, 2.0**6.9), st.sampled_from([SECONDS]))
def test_each_exponential_bucket_holds_its_values(value: float, scale: Scale) -> None:
    found = scale.exponential(filled(scale, [value]).counts)
    place = found.counts.index(1)
    base = 2**2.0**-found.scale
    low, high = base ** (found.offset + place), base ** (found.offset + place + 1)
    assert low * (1 - 1e-12) < value <= high * (1 + 1e-12)


@settings(deadline=None)
@given(VALUES)
def test_nothing_is_lost_at_the_ends(values: list[float]) -> None:
    assert sum(SECONDS.exponential(filled(SECONDS, values).counts).counts) == len(values)


def test_a_bound_belongs_to_its_bucket() -> None:
    histogram = filled(SECONDS, [0.005, math.nextafter(0.005, 1)])
    counts = dict(zip(SECONDS.decimal, SECONDS.decimal_counts(histogram.counts), strict=False))
    assert (counts[0.005], counts[0.0075]) == (1, 1)


def test_ten_bounds_and_more_lie_below_five_milliseconds() -> None:
    assert sum(bound < 0.005 for bound in SECONDS.decimal) >= 10


def test_a_copy_stands_still() -> None:
    histogram = filled(ROWS, [1, 2])
    twin = histogram.copy()
    histogram.observe(4)
    assert (twin.count, twin.sum) == (2, 3.0)
    assert (histogram.count, histogram.sum) == (3, 7.0)
