"""A change of everything is told once, and chance is none."""

from __future__ import annotations

import random

import pytest

from headrace.batcher.drift import CLIP, Drift


def run(drift: Drift, ratio: float, observations: int = 1_000) -> float | None:
    drift.missed(ratio)
    return drift.follow(ratio, observations)


@pytest.mark.parametrize("actual", [0.5, 0.8, 1.25, 1.8, 4.0])
def test_a_change_is_found_out_and_then_nothing_is_off(actual: float) -> None:
    drift, expected = Drift(), 1.0
    assert not any(run(drift, 1.0) for _ in range(100))
    for _ in range(40):
        expected *= run(drift, actual / expected) or 1.0
    assert expected == pytest.approx(actual, rel=0.15)
    assert not any(run(drift, 1.0) for _ in range(100))


def test_five_runs_that_agree_tell_how_much_it_is() -> None:
    drift = Drift()
    factors = [run(drift, 1.13) for _ in range(5)]
    assert factors == [None] * 4 + [1.13]


def test_a_slow_change_is_told_though_no_run_is_unusual() -> None:
    drift = Drift()
    rng = random.Random(2)
    factors = [run(drift, 1.2 * rng.uniform(0.85, 1.15)) for _ in range(200)]
    assert any(factor is not None and 1.1 < factor < 1.35 for factor in factors)


def test_what_varies_by_chance_is_no_change() -> None:
    drift = Drift()
    rng = random.Random(1)
    assert not any(run(drift, rng.lognormvariate(0, 0.05)) for _ in range(5_000))


def test_no_run_counts_for_more_than_twice_what_was_expected() -> None:
    held_up, slower = Drift(), Drift()
    assert [run(held_up, 50.0) for _ in range(5)] == [run(slower, CLIP) for _ in range(5)]


def test_at_first_nothing_is_known_that_could_have_changed() -> None:
    drift = Drift()
    assert all(run(drift, 3.0, observations) is None for observations in range(1, 21))
    assert run(drift, 3.0, 21) is not None
