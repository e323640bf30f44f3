"""Memory to gather into: kept, grown, contiguous, and let go of."""

from __future__ import annotations

import numpy as np
import pytest

from headrace.server.executors.buffers import Buffers


def test_the_same_memory_comes_again_until_it_is_too_small() -> None:
    buffers = Buffers()
    large, small = (buffers.get("x", (n, 3), np.float32) for n in (8, 2))
    assert (large.shape, small.shape) == ((8, 3), (2, 3))
    assert np.shares_memory(large, small)
    larger = buffers.get("x", (9, 3), np.float32)
    assert not np.shares_memory(large, larger)
    assert np.shares_memory(larger, buffers.get("x", (1, 3), np.float32))


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_part_of_it_is_contiguous_whatever_axis_the_rows_lie_along(axis: int) -> None:
    buffers = Buffers()
    shapes = [[2, 3, 4] for _ in range(2)]
    shapes[0][axis], shapes[1][axis] = 8, 5
    whole, part = (buffers.get("x", shape, np.float32) for shape in shapes)
    assert part.flags.c_contiguous
    assert np.shares_memory(whole, part)


def test_keys_and_dtypes_have_memory_of_their_own() -> None:
    buffers = Buffers()
    first = buffers.get("x", (4,), np.float32)
    assert not np.shares_memory(first, buffers.get("y", (4,), np.float32))
    assert buffers.get("x", (4,), np.int64).dtype == np.int64


def test_nothing_and_a_scalar() -> None:
    buffers = Buffers()
    assert buffers.get("x", (0, 3), np.float32).shape == (0, 3)
    assert buffers.get("y", (), np.float32).shape == ()


def test_keys_not_asked_for_lately_are_let_go() -> None:
    buffers = Buffers()
    often = buffers.get("often", (4,), np.float32)
    for number in range(100):
        buffers.get(number, (4,), np.float32)
        assert np.shares_memory(often, buffers.get("often", (4,), np.float32))
    assert len(buffers._kept) < 50
