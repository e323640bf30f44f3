"""Learned costs: right on average, monotone, deaf to outliers, quick to follow a change."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.batcher.cost import CostTable, sizes_to_profile
from headrace.batcher.cost_model import CostModel
from headrace.batcher.curve import isotonic


def linear(n: int) -> float:
    return 0.002 + 0.00015 * n


def learned(largest: int = 64, runs: int = 600, noise: float = 0.05, seed: int = 0) -> CostTable:
    rng = np.random.default_rng(seed)
    table = CostTable(largest)
    for n in itertools.chain([1, 2, 4, 8, 16, 32, 64], rng.integers(1, largest + 1, runs)):
        table.observe(int(n), linear(int(n)) * float(np.exp(rng.normal(0, noise))))
    return table


def test_it_learns_a_noisy_line_within_a_few_per_cent() -> None:
    table = learned()
    errors = [abs(table.seconds(n) / linear(n) - 1) for n in range(1, 65)]
    assert max(errors) < 0.15
    assert np.mean(errors) < 0.04


def test_outliers_move_it_little() -> None:
    table, clean = learned(seed=1), learned(seed=1)
    table.observe(8, 100 * linear(8))
    assert table.seconds(8) < 1.15 * clean.seconds(8)


def test_a_cold_first_run_is_forgotten() -> None:
    table = CostTable(8)
    for seconds in (0.128, 0.008, 0.009):
        table.observe(1, seconds)
    assert table.seconds(1) == pytest.approx(0.0085, rel=0.1)


def test_it_follows_when_everything_becomes_slower() -> None:
    table = learned()
    rng = np.random.default_rng(2)
    for n in rng.integers(1, 65, 120):
        table.observe(int(n), 2 * linear(int(n)))
    ratios = [table.seconds(n) / linear(n) for n in (1, 8, 32, 64)]
    assert ratios == pytest.approx([2.0] * 4, rel=0.15)


@pytest.mark.parametrize("recovery", [1, 300])
def test_a_slow_moment_leaves_the_sizes_beside_each_other_as_they_were(recovery: int) -> None:
    """It comes at once, and goes at once or little by little, while one size alone is run."""
    table = CostTable(64)
    for _ in range(60):
        for n in (4, 16):
            table.observe(n, linear(n))
    for _ in range(100):
        table.observe(16, 1.4 * linear(16))
    table.refresh()
    assert [table.seconds(n) / linear(n) for n in (4, 16)] == pytest.approx([1.4] * 2, rel=0.05)
    for run in range(recovery + 100):
        table.observe(16, (1 + 0.4 * max(0.0, 1 - run / recovery)) * linear(16))
    table.refresh()
    assert [table.seconds(n) / linear(n) for n in (4, 16)] == pytest.approx([1.0] * 2, rel=0.05)


def test_a_size_that_alone_has_changed_is_found_out() -> None:
    table = CostTable(64)
    for _ in range(60):
        for n in (4, 16):
            table.observe(n, linear(n))
    for _ in range(600):
        table.observe(16, 1.1 * linear(16))
        table.observe(4, linear(4))
    table.refresh()
    assert table.seconds(16) / table.seconds(4) == pytest.approx(
        1.1 * linear(16) / linear(4), rel=0.02
    )


@given(st.lists(st.tuples(st.integers(1, 32), st.floats(1e-5, 1.0)), min_size=1, max_size=60))
def test_a_larger_batch_is_never_predicted_to_take_less(runs: list[tuple[int, float]]) -> None:
    table = CostTable(32)
    for n, seconds in runs:
        table.observe(n, seconds)
    assert all(a <= b * (1 + 1e-9) for a, b in itertools.pairwise(table.table))
    assert all(value > 0 for value in table.table[1:])
    assert table.seconds(40) >= table.seconds(32)


def test_sizes_never_tried_promise_no_cheaper_rows() -> None:
    table = CostTable(64)
    for n in (1, 2, 4):
        table.observe(n, 0.010 + 0.001 * n)
    assert table.seconds(64) / 64 >= table.seconds(4) / 4 * 0.999


def test_an_unseen_key_borrows_from_its_nearest_neighbour() -> None:
    model = CostModel(16)
    for row_bytes, scale in ((100.0, 1.0), (1000.0, 8.0)):
        for n in (1, 2, 4, 8, 16) * 20:
            model.table("cpu", row_bytes, row_bytes).observe(n, scale * linear(n))
    borrowed = model.table("cpu", "new", 2000.0)
    expected = 8.0 * linear(2) * 2**0.8
    assert borrowed.seconds(2) == pytest.approx(expected, rel=0.05)
    assert not model.table("gpu", "new", 2000.0).known, "another kind of executor says nothing"


def test_rows_borrow_nothing_from_what_has_none() -> None:
    model = CostModel(16)
    for n in (1, 2, 4, 8, 16) * 20:
        model.table("cpu", "rows", 1000.0).observe(n, linear(n))
        model.table("cpu", "none", 0.0).observe(1, 1e-6)
    assert model.table("cpu", "small", 2.0).seconds(1) == pytest.approx(linear(1) * 0.002**0.8)


def borrowing() -> CostTable:
    """Of a key of larger rows than those that were seen, for which batching pays much."""
    model = CostModel(64)
    for n in (1, 2, 4, 8, 16, 32, 64) * 4:
        model.table("cpu", "small", 100.0).observe(n, 0.01 + 0.0001 * n)
    return model.table("cpu", "large", 1000.0)


def by_the_row(table: CostTable, rows: int) -> float:
    return table.seconds(rows) / rows


def test_what_was_borrowed_promises_no_gain_beyond_eight_rows_at_first() -> None:
    table = borrowing()
    assert by_the_row(table, 8) < 0.2 * by_the_row(table, 1)
    assert by_the_row(table, 64) == pytest.approx(by_the_row(table, 8))


def test_the_first_run_sets_the_level_of_what_was_borrowed() -> None:
    table = borrowing()
    table.observe(1, 0.5)
    assert table.seconds(1) == pytest.approx(0.5)
    assert 0.5 < table.seconds(2) < 0.6


def test_what_was_borrowed_is_trusted_once_a_second_size_agrees() -> None:
    table = borrowing()
    table.observe(1, 0.010)
    table.observe(2, 0.0101)
    assert by_the_row(table, 64) < 0.05 * by_the_row(table, 1)


def test_what_was_borrowed_is_forgotten_once_it_has_misled() -> None:
    """Batching does not pay: larger sizes must not be tried one after the other to find out."""
    table = borrowing()
    table.observe(1, 0.5)
    table.observe(2, 1.0)
    assert by_the_row(table, 64) > 0.99 * by_the_row(table, 2)
    assert table.sizes == [1, 2]


def test_it_is_forgotten_too_where_one_size_was_run_for_long_before() -> None:
    table = borrowing()
    for _ in range(40):
        table.observe(1, 0.5)
    table.observe(2, 1.0)
    assert table.sizes == [1, 2]
    for _ in range(1200):  # long enough for all else to be of another time
        table.observe(1, 0.5)
    assert table.seconds(2) == pytest.approx(1.0, rel=0.05)


def test_after_that_a_gain_is_found_step_by_step() -> None:
    table = borrowing()
    table.observe(1, 0.5)
    table.observe(8, 3.0)  # far from what was borrowed, and still a gain
    assert by_the_row(table, 16) < 0.98 * by_the_row(table, 8)
    assert by_the_row(table, 64) == pytest.approx(by_the_row(table, 16))


def test_a_run_that_was_stopped_tells_only_that_it_takes_longer() -> None:
    table, known = learned(), learned().seconds(32)
    table.outlasted(32, known / 2)
    assert table.seconds(32) == pytest.approx(known)
    for _ in range(40):
        table.outlasted(32, 3 * known)
    assert table.seconds(32) > 2 * known


def test_tables_are_bounded_in_number() -> None:
    model = CostModel(4)
    for key in range(2000):
        model.table("cpu", key, 1.0).observe(1, 0.001)
    assert len(model._tables) <= 512


def test_isotonic_pools_what_decreases() -> None:
    got = isotonic(np.array([1.0, 3.0, 2.0, 4.0]), np.array([1.0, 1.0, 3.0, 1.0]))
    assert got.tolist() == [1.0, 2.25, 2.25, 4.0]


def test_steps_of_a_tiled_device_are_seen_by_the_first_measurements() -> None:
    """9 rows cost what 16 do: not a slope between 8 and 16, and no drift of everything else."""

    def tiled(n: int) -> float:
        return 0.002 * (1 << (n - 1).bit_length())

    table = CostTable(32)
    for size in sizes_to_profile(32):
        for _ in range(3):
            table.observe(size, tiled(size))
    for n in (1, 4, 6, 8, 9, 12, 16, 20, 32):
        assert table.seconds(n) == pytest.approx(tiled(n), rel=0.1), n


def test_what_is_profiled_fits_the_largest_batch() -> None:
    assert sizes_to_profile(1) == [1]
    assert sizes_to_profile(8) == [1, 2, 4, 8, 3, 5]
    assert sizes_to_profile(12) == [1, 2, 4, 8, 3, 5, 9]


@pytest.mark.parametrize(("usual", "others"), [(0.125, 1.0), (0.02, 1.2)])
def test_five_runs_in_a_row_tell_of_others_if_they_are_unusual(usual: float, others: float) -> None:
    """Where runs differ by an eighth anyway, five that are a fifth too slow are chance. Of other
    sizes, which may not be run again to find out, they say nothing."""
    table = CostTable(32)
    for turn in range(400):
        for n in (4, 16):
            table.observe(n, (1.0 + n) * (1 + usual if turn % 2 else 1 - usual))
    for _ in range(5):
        table.observe(4, 5.0 * 1.2)
    assert table.seconds(16) == pytest.approx(17.0 * others, rel=0.05)


@pytest.mark.parametrize(
    ("first", "expected"),
    [
        ((4.5, 4.6, 2.0), 2.0),
        ((4.5, 4.6, 4.7, 2.0), 2.0),
        ((4.5, 4.6, 3.8), 4.3),  # runs differ by as much
        ((4.5, 4.5, 4.5, 4.5, 2.0), 4.0),  # too late to be a start
    ],
)
def test_first_runs_that_were_cold_are_forgotten_for_one_that_was_not(
    first: tuple[float, ...], expected: float
) -> None:
    table = CostTable(8)
    for seconds in first:
        table.observe(1, seconds)
    table.observe(4, 100.0)  # has the table built
    assert table.seconds(1) == pytest.approx(expected, rel=0.01)
