"""Saturation, the curve up to it and beyond, and what is answered in time."""

from __future__ import annotations

import numpy as np
import pytest

from bench.fakes import deterministic_server, job, measurement
from headrace.bench.errors import BenchError
from headrace.bench.questions import Measure
from headrace.bench.questions.curve import SHARES, curve, saturation
from headrace.bench.questions.goodput import goodput
from headrace.bench.results import Measurement
from headrace.bench.spec import ClosedLoad, Job, OpenLoad


def batching(most: int) -> Measure:
    """A server that answers 10 requests a second for each caller, up to `most` of them."""

    def measure(job: Job) -> Measurement:
        assert isinstance(job.load, ClosedLoad)
        rate = 10 * min(job.load.callers, most)
        return measurement(job, [0.1] * round(rate * job.duration))

    return measure


def test_callers_are_doubled_until_they_add_nothing() -> None:
    found = saturation(job(), batching(64))
    assert (found.rate, found.callers) == (640, 64)
    assert found.section.labels == (
        "8 callers", "16 callers", "32 callers", "64 callers", "128 callers",
    )  # fmt: skip


def test_a_server_that_answers_nothing_has_no_saturation() -> None:
    def measure(job: Job) -> Measurement:
        return measurement(job, [], errors={"UNAVAILABLE": 7}, sent=7)

    with pytest.raises(BenchError, match="server: nothing was answered OK, but UNAVAILABLE 7"):
        saturation(job(), measure)


def test_the_curve_of_a_queue_rises_towards_saturation() -> None:
    def measure(job: Job) -> Measurement:
        return deterministic_server(job, 0.002)

    closed, section = curve([job(duration=60)], measure)
    assert (closed.kind, section.kind) == ("load", "curve")
    assert section.facts == {"saturation": pytest.approx(500)}
    assert section.labels == tuple(f"{share:.0%}" for share in SHARES)
    rates = [measurement.load["rate"] for measurement in section.measurements]
    assert rates == pytest.approx([500 * share for share in SHARES])
    p99 = [m.latency.p99_ms for m in section.measurements if m.latency]
    assert len(p99) == len(SHARES)
    assert p99[0] < p99[4] < p99[8] < p99[10]


def test_sides_alternate_each_at_shares_of_its_own_saturation() -> None:
    order: list[str] = []

    def measure(job: Job) -> Measurement:
        if isinstance(job.load, OpenLoad):
            order.append(f"{job.target.name}{job.load.rate:.0f}")
        return deterministic_server(job, 0.002 if job.target.name == "a" else 0.004)

    *_, section = curve([job("a"), job("b")], measure, shares=(0.2, 0.4))
    assert order == ["a100", "b50", "b100", "a200"]
    assert section.facts == {"saturation of a": 500, "saturation of b": 250}


def test_goodput_counts_what_is_in_time() -> None:
    def measure(job: Job) -> Measurement:
        assert isinstance(job.load, OpenLoad)
        count = round(job.load.rate * job.duration)
        late = max(0, count - round(100 * job.duration)) * 2  # each too many spoils another
        return measurement(job, np.array([0.01] * max(0, count - late) + [1.0] * late))

    section = goodput(job(deadline=0.1), [50, 100, 150], measure)
    assert [m.goodput for m in section.measurements] == [50, 100, 50]
    assert section.facts == {
        "highest_goodput": 100,
        "goodput_at_the_highest_rate": 50,
        "share_kept": 0.5,
    }


def test_goodput_needs_a_deadline() -> None:
    with pytest.raises(BenchError, match="a request with a deadline"):
        goodput(job(), [1], measurement)
