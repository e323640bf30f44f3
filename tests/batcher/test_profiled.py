"""What was measured at load, or long ago, follows what is run since."""

from __future__ import annotations

import random

import pytest

from headrace.batcher.cost import CostTable


def linear(n: int) -> float:
    return 0.002 + 0.00015 * n


def profiled() -> CostTable:
    table = CostTable(64)
    table.profile([(n, linear(n)) for n in (1, 2, 4, 8, 16, 32, 64) for _ in range(2)])
    return table


def test_a_profile_of_few_runs_is_believed_at_once() -> None:
    table = CostTable(64)
    table.profile([(1, 0.033), (2, 0.057), (4, 0.104)])
    assert table.seconds(2) == pytest.approx(0.057, rel=0.05)
    assert table.seconds(29) / 29 == pytest.approx(table.seconds(4) / 4, rel=0.01)


def test_what_was_only_profiled_follows_what_is_run() -> None:
    table = profiled()
    for _ in range(40):
        table.observe(8, 2 * linear(8))
    assert table.seconds(64) == pytest.approx(2 * linear(64), rel=0.2)
    assert table.seconds(1) == pytest.approx(2 * linear(1), rel=0.2)


def test_a_profile_stands_where_runs_agree_with_it() -> None:
    table = profiled()
    for _ in range(40):
        table.observe(8, 1.08 * linear(8))
    assert table.seconds(64) == pytest.approx(linear(64), rel=0.02)


def test_a_size_that_was_run_itself_follows_no_other() -> None:
    table = profiled()
    for _ in range(40):
        table.observe(64, linear(64))
        table.observe(8, 2 * linear(8))
    assert table.seconds(64) == pytest.approx(linear(64), rel=0.1)


def test_what_is_not_run_is_not_carried_off_by_those_that_are() -> None:
    """Short runs are thrown back by others on their cores now and then. Their costs learn of each
    such run by themselves, and what is better than that by all sizes together: again and again."""
    table = CostTable(64)
    for _ in range(60):
        for size in (1, 2, 4, 8, 16, 32, 64):
            table.observe(size, linear(size))
    rng = random.Random(0)
    for _ in range(6000):
        size = rng.choice((1, 2, 4))
        thrown_back = 3 if rng.random() < 0.2 / size else 1
        table.observe(size, thrown_back * rng.lognormvariate(0, 0.1) * linear(size))
    assert table.seconds(64) > 0.85 * linear(64)


def test_a_size_that_was_not_run_for_long_follows_those_that_are() -> None:
    """In its own terms: what it took when it was run, as much slower as they have become since."""
    table = CostTable(64)
    for _ in range(60):
        for size in (8, 16, 32):
            table.observe(size, linear(size))
    for _ in range(1200):
        for size in (8, 16):
            table.observe(size, linear(size))
    for slower in (1.2, 1.4, 1.6, 1.8, 2.0):
        for _ in range(200):
            table.observe(8, slower * linear(8))
            table.observe(16, slower * linear(16))
    assert table.seconds(32) == pytest.approx(2 * linear(32), rel=0.25)
    for _ in range(1200):  # smaller than all that was known: it says nothing of the level
        table.observe(1, linear(1) / 4)
    assert table.seconds(32) > linear(32)
    assert not table.told(32, 1.25)


def test_what_was_measured_does_not_change_for_having_been_long_ago() -> None:
    """The profile was another shape's, by which batching pays; here it does not."""
    table, rng = CostTable(64), random.Random(1)
    table.profile([(n, linear(n)) for n in (1, 2, 4, 8, 16, 32, 64) for _ in range(2)])
    measured = (2, 3, 9, 18, 36)
    for _ in range(60):
        for size in measured:
            table.observe(size, 0.003 * size)
    for size in (4, 8, 16, 17, 33):  # few runs of each among many of one
        for _ in range(500):
            table.observe(2, rng.lognormvariate(0, 0.03) * 0.003 * 2)
        for _ in range(6):
            table.observe(size, 0.003 * size)
    for size in measured:
        assert table.seconds(size) == pytest.approx(0.003 * size, rel=0.1)


def test_slow_changes_add_up_for_sizes_that_are_not_run() -> None:
    """Each is too small to be believed by itself. A few runs of other sizes, now and then, do not
    make them forgotten."""
    table, slower = CostTable(64), 1.0
    table.profile([(n, linear(n)) for n in (1, 2, 4, 8, 16, 32, 64) for _ in range(2)])
    for other in (8, 10, 12, 14, 18, 20, 22, 24, 8, 10, 12, 14, 18, 20, 22, 24):
        slower *= 1.05
        for size, runs in ((16, 600), (other, 4), (16, 500)):
            for _ in range(runs):
                table.observe(size, slower * linear(size))
    for size in (1, 64):
        assert table.seconds(size) > 0.8 * slower * linear(size)
