"""Which size to want by what batches cost, and by what they cost besides their runs."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.batcher.cost_model import CostModel
from headrace.batcher.overhead import Overhead
from headrace.batcher.sizing import SizePlan


def linear(n: int) -> float:
    return 0.002 + 0.00015 * n


def plan(times: list[float]) -> SizePlan:
    return SizePlan([0.0, *times])


def test_where_batching_loses_rows_go_alone() -> None:
    loses = plan([4.0 * n * (1 + 0.01 * n) for n in range(1, 33)])
    assert loses.best(200, 32) == 1


def test_what_a_batch_costs_besides_its_run_is_shared_by_its_rows() -> None:
    runs = [0.0, *(4.0 * n * (1 + 0.01 * n) for n in range(1, 33))]
    assert SizePlan(runs, overhead=0.0).best(200, 32) == 1
    shared = SizePlan(runs, overhead=2.0)
    assert 4 <= shared.best(200, 32) <= 16
    assert shared.peak_rate < SizePlan(runs).peak_rate
    assert shared.within(runs[8], 32) == 8  # answers are there when the run has ended


def test_the_overhead_is_an_average_without_outliers() -> None:
    overhead = Overhead()
    for number in range(400):
        overhead.observe(1, 1.0 if number % 50 == 0 else 0.001)
    assert overhead.seconds == pytest.approx(0.001, rel=0.1)
    overhead.observe(1, -1.0)  # a clock that was set back
    assert overhead.seconds > 0


def test_batches_do_not_grow_because_they_are_large() -> None:
    few, many = Overhead(), Overhead()
    for _ in range(400):
        few.observe(4, 0.0004)
        many.observe(64, 0.0016)  # the event loop told 64 callers
    assert many.seconds < few.seconds


def test_every_table_knows_the_overhead() -> None:
    model = CostModel(32)
    for table in (model.table("cpu", "a", 4.0), model.table("cpu", "b", 8.0)):
        for _ in range(9):
            for rows in (1, 2, 4, 8, 16, 32):
                table.observe(rows, 0.004 * rows * (1 + 0.01 * rows))
        assert table.plan is not None  # made before anything is known of the overhead
    for _ in range(400):
        model.overhead.observe(4, 0.002)
    for key, row_bytes in (("a", 4.0), ("b", 8.0), ("c", 16.0)):  # the last borrows
        found = model.table("cpu", key, row_bytes).plan
        assert found is not None
        assert found.best(200, 32) > 1


def test_where_batching_is_free_all_go() -> None:
    free = plan([2.0 + 0.001 * n for n in range(1, 33)])
    assert free.best(32, 32) == 32
    assert free.best(5, 5) == 5


def test_steps_are_filled_not_exceeded() -> None:
    """A device that pads to 8 and then to 16 wants 8 or 16, not 9."""
    steps = plan([2.0 if n <= 8 else 4.5 for n in range(1, 17)])
    assert steps.best(12, 12) == 8


@given(st.lists(st.floats(0.01, 1.0), min_size=1, max_size=12), st.integers(1, 12))
def test_the_size_is_as_good_as_any(gains: list[float], queue: int) -> None:
    """Against a search over all ways to split the queue into batches."""
    times = np.cumsum(gains).tolist()
    sizes = plan(times)

    cache: dict[int, float] = {}
    for left in range(queue + 1):
        cache[left] = min(
            (left * times[k - 1] + cache[left - k] for k in range(1, min(left, len(times)) + 1)),
            default=0.0,
        )
    # queue lengths are worked out on a grid: the next one up is used
    grid = next(length for length in (1, 2, 3, 4, 5, 6, 8, 10, 12) if length >= queue)
    if grid != queue:
        return
    n = sizes.best(queue, queue)
    assert queue * times[n - 1] + cache[queue - n] <= cache[queue] * 1.0205


def test_sustaining_is_the_smallest_size_that_keeps_up() -> None:
    sizes = plan([linear(n) for n in range(1, 65)])
    for rate in (100.0, 1000.0, 3000.0):
        n = sizes.sustaining(rate)
        assert n / linear(n) >= rate
        assert n == 1 or (n - 1) / linear(n - 1) < rate
    most = sizes.sustaining(1e9)
    assert most / linear(most) >= 0.97 * sizes.peak_rate


def test_within_is_the_largest_size_that_fits() -> None:
    sizes = plan([1.0, 2.0, 3.0, 4.0])
    assert [sizes.within(t, 4) for t in (0.5, 1.0, 2.5, 99.0)] == [0, 1, 2, 4]
    assert sizes.within(99.0, 2) == 2
