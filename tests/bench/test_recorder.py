"""What rows come to: sums, edges, percentiles."""

from __future__ import annotations

import numpy as np
import pytest
from hdrh.histogram import HdrHistogram
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.bench.recorder import FIRST_ERROR, GOOD, LATE, UNFINISHED, Recorder
from headrace.bench.times import Times, buckets

BEGAN = 100.0
STATUSES = ("INTERNAL", "HTTP 503")


def recorded(*rows: tuple[float, float, float, int], seconds: float = 2.0) -> Recorder:
    """Rows of due, sent and ended seconds from the beginning, and the code."""
    recorder = Recorder(BEGAN, seconds)
    offset = np.array([BEGAN, BEGAN, BEGAN, 0.0])
    recorder.add(np.array(rows, np.float64).reshape(-1, 4) + offset, STATUSES)
    return recorder


def test_latency_counts_from_the_due_time_and_service_from_the_sending() -> None:
    totals = recorded((0.0, 0.25, 0.5, GOOD)).totals()
    assert totals.latency is not None
    assert totals.service is not None
    assert totals.behind is not None
    assert totals.latency.mean_ms == pytest.approx(500)
    assert totals.service.mean_ms == pytest.approx(250)
    assert totals.behind.mean_ms == pytest.approx(250)


def test_each_way_to_end_is_counted_as_itself() -> None:
    totals = recorded(
        (0.0, 0.0, 0.1, GOOD),
        (0.0, 0.0, 0.2, LATE),
        (0.0, 0.0, 0.3, UNFINISHED),
        (0.0, 0.0, 0.4, FIRST_ERROR),
        (0.0, 0.0, 0.5, FIRST_ERROR + 1),
        (0.0, 0.0, 0.6, FIRST_ERROR + 1),
    ).totals()
    assert (totals.sent, totals.ok, totals.good, totals.unfinished) == (6, 2, 1, 1)
    assert totals.errors == {"HTTP 503": 2, "INTERNAL": 1}
    assert (totals.throughput, totals.goodput) == (1.0, 0.5)
    assert totals.latency is not None
    assert totals.latency.count == 3  # errors have none
    assert totals.latency.max_ms == pytest.approx(300)


def test_intervals_count_what_ended_and_totals_what_was_due() -> None:
    recorder = recorded(
        (-0.2, -0.2, 0.1, GOOD),  # of the warm-up, answered in the first second
        (-0.2, -0.2, -0.1, GOOD),  # of the warm-up alone
        (0.9, 0.9, 1.0, GOOD),  # due in the first second, answered in the second
        (1.9, 1.9, 2.0, GOOD),  # answered after the end
        (1.9, 1.9, 1.95, FIRST_ERROR),
        (2.0, 2.0, 2.1, GOOD),  # due after the end
    )
    first, second = recorder.intervals()
    assert (first.start, first.seconds, first.ok, first.errors) == (0.0, 1.0, 1, 0)
    assert (second.start, second.seconds, second.ok, second.errors) == (1.0, 1.0, 1, 1)
    assert first.p50_ms == pytest.approx(300)
    totals = recorder.totals()
    assert (totals.sent, totals.ok) == (3, 2)
    assert totals.throughput == 1.0


def test_the_last_interval_may_be_short_and_empty() -> None:
    intervals = recorded(seconds=1.5).intervals()
    assert [interval.seconds for interval in intervals] == [1.0, 0.5]
    assert [interval.p99_ms for interval in intervals] == [None, None]


def test_nothing_sent_has_no_distribution() -> None:
    totals = recorded().totals()
    assert (totals.sent, totals.throughput, totals.latency) == (0, 0.0, None)


@settings(deadline=None, max_examples=40)
@given(st.lists(st.integers(0, 3_600_000_000), min_size=1, max_size=50))
def test_buckets_are_those_of_the_histogram(micros: list[int]) -> None:
    histogram = HdrHistogram(1, 3_600_000_000, 3)
    expected = [histogram._counts_index_for(value) for value in micros]
    assert buckets(np.array(micros)).tolist() == expected


@settings(deadline=None, max_examples=40)
@given(st.lists(st.integers(0, 10**8), min_size=1, max_size=200))
def test_the_distribution_is_what_recording_one_by_one_gives(micros: list[int]) -> None:
    one_by_one = HdrHistogram(1, 3_600_000_000, 3)
    for value in micros:
        one_by_one.record_value(value)
    times = Times()
    for part in np.array_split(np.array(micros) / 1e6, 3):
        times.add(part)
    found = times.distribution()
    assert found is not None
    decoded = HdrHistogram.decode(found.histogram)
    assert found.count == decoded.get_total_count() == len(micros)
    for percentile in (10, 50, 90, 99, 99.9):
        ours, theirs = (h.get_value_at_percentile(percentile) for h in (decoded, one_by_one))
        assert ours == theirs
    assert found.mean_ms == pytest.approx(sum(micros) / len(micros) / 1e3)
    assert found.max_ms == pytest.approx(max(micros) / 1e3)
    assert found.p999_ms <= found.max_ms
