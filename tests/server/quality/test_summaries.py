"""What of a tensor is looked at."""

from __future__ import annotations

import numpy as np
import pytest

from headrace.server.quality.summaries import features, thinned


@pytest.mark.parametrize(
    "shape", [(1,), (3,), (0, 4), (2, 0), (1, 1), (40, 3, 2), (1000, 1000), (1, 100_000), (17, 513)]
)
def test_only_so_much_is_copied(shape: tuple[int, ...]) -> None:
    array = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
    found = thinned(array)
    assert found.ndim == 2
    assert not np.shares_memory(found, array)
    assert len(found) <= 16
    assert found.size <= 4096 + len(found)
    assert np.isin(found, array).all()
    assert bool(found.size) == bool(array.size)


def test_of_numbers_mean_and_spread() -> None:
    found = features(np.array([[1, 3], [5, 5]], np.int32), "INT32")
    assert {name: list(values) for name, values in found.items()} == {
        "mean": [2, 5],
        "std": [1, 0],
    }
    assert list(features(np.array([[2], [7]], np.int32), "INT32")) == ["mean"]


def test_bfloat16_is_read_from_its_bits() -> None:
    found = features(np.array([[0x3F80, 0x4040]], np.uint16), "BF16")  # 1 and 3
    assert found["mean"] == [2]


def test_what_is_not_finite_is_left_out() -> None:
    found = features(np.array([[np.nan, 2, 4], [np.inf, np.nan, np.nan]], np.float32), "FP32")
    assert list(found["mean"]) == [3]
    assert features(np.full((2, 2), np.nan), "FP64") == {}
    assert features(np.zeros((0, 3)), "FP64") == {}


def test_of_text_the_length() -> None:
    found = features(np.array([["a", "abc"], [b"", b"1234"]], dtype=object), "BYTES")
    assert list(found["length"]) == [2, 2]
