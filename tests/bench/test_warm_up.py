"""When a warm-up is over."""

from __future__ import annotations

import numpy as np
import pytest

from headrace.bench.recorder import FIRST_ERROR, GOOD
from headrace.bench.spec import (
    BurstLoad,
    ClosedLoad,
    OpenLoad,
    Step,
    SteppedLoad,
    TraceLoad,
)
from headrace.bench.warm_up import LEAST, MOST, WINDOW, Windows, stable, steady, truncation


def noisy(means: list[float], seed: int = 0) -> list[float]:
    noise = np.random.default_rng(seed).normal(0, 0.05, len(means))
    return [mean * (1 + n) for mean, n in zip(means, noise, strict=True)]


def test_a_slow_start_is_dropped_and_nothing_more() -> None:
    means = noisy([50.0, 20.0, 8.0] + [2.0] * 20)
    assert 3 <= truncation(means) <= 5
    assert stable(means)


def test_a_slow_start_that_is_still_half_of_what_was_seen_is_not_over() -> None:
    assert not stable(noisy([50.0] * 6 + [2.0] * 4))


def test_a_latency_that_grows_never_settles() -> None:
    """As in overload, where the queue becomes longer and longer."""
    means = noisy([1.0 + window for window in range(MOST)])
    assert not any(stable(means[:count]) for count in range(MOST + 1))


def test_a_latency_that_falls_steadily_has_not_settled() -> None:
    means = [100.0 - window for window in range(MOST)]
    assert not any(stable(means[:count]) for count in range(MOST + 1))


def test_steady_latencies_settle_soon() -> None:
    """Of a hundred, all within the longest warm-up, and half of them at the first look."""
    first = 0
    for seed in range(100):
        means = noisy([2.0] * MOST, seed)
        assert any(stable(means[:count]) for count in range(MOST + 1))
        first += stable(means[:LEAST])
    assert first >= 50


def test_few_windows_say_nothing() -> None:
    assert not stable([1.0] * (LEAST - 1))
    assert stable([1.0] * LEAST)


def test_windows_are_means_of_ok_answers_by_when_they_came() -> None:
    windows = Windows(10.0)
    rows = [
        (10.0, 10.0, 10.1, GOOD),
        (10.0, 10.0, 10.2, GOOD),
        (10.0, 10.0, 10.2, FIRST_ERROR),
        (10.0, 10.0, 10.0 + 2.5 * WINDOW, GOOD),
        (10.0, 10.0, 1e6, GOOD),  # long after the longest warm-up
    ]
    windows.add(np.array(rows))
    assert windows.means(10.0) == []
    assert windows.means(10.0 + 1.5 * WINDOW) == [pytest.approx(0.15)]
    assert windows.means(10.0 + 3 * WINDOW) == [pytest.approx(0.15), pytest.approx(2.5 * WINDOW)]
    assert len(windows.means(1e9)) == 2


def test_what_has_no_steady_state_is_warmed_up_with_one_and_begins_on_an_idle_server() -> None:
    steps = SteppedLoad(steps=(Step(seconds=1, rate=10), Step(seconds=3, rate=50)))
    assert steady(steps) == (OpenLoad(rate=40), False)
    assert steady(BurstLoad(count=5)) == (ClosedLoad(callers=5), False)
    load, goes_on = steady(TraceLoad(file="trace.csv"))
    assert isinstance(load, ClosedLoad)
    assert not goes_on
    for load in (ClosedLoad(callers=3), OpenLoad(rate=7)):
        assert steady(load) == (load, True)
