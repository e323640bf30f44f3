"""Columns to inputs, by name."""

from __future__ import annotations

import pytest

from headrace.server.batch.mapping import map_columns
from headrace.server.errors import ConfigurationError
from headrace.server.models.spec import TensorSpec

A = TensorSpec("a", "FP32", (-1, 4), ("batch", ""))
B = TensorSpec("b", "INT64", (-1, 2, -1), ("batch", "", "n"))


def test_by_their_own_names() -> None:
    a, b = map_columns([A, B], True, {}, ["id", "b", "a"])
    assert (a.columns, a.shape, a.datatype, a.lead) == (("a",), (4,), "FP32", False)
    assert (b.columns, b.shape) == (("b",), (2, -1))


def test_by_those_that_are_chosen() -> None:
    a, b = map_columns([A, B], True, {"a": ("p", "q", "r", "s")}, ["p", "q", "r", "s", "b"])
    assert a.columns == ("p", "q", "r", "s")
    assert b.columns == ("b",)


def test_one_feeds_one_whatever_they_are_called() -> None:
    (a,) = map_columns([A], True, {}, ["data"])
    assert a.columns == ("data",)


def test_a_model_that_is_not_batched() -> None:
    """Its row has the dimension of rows, too, where that can be one."""
    (a,) = map_columns([A], False, {}, ["a"])
    assert (a.shape, a.lead) == ((4,), True)
    fixed = TensorSpec("c", "FP32", (3, 4), ("", ""))
    (c,) = map_columns([fixed], False, {}, ["c"])
    assert (c.shape, c.lead) == ((3, 4), False)


@pytest.mark.parametrize(
    ("chosen", "columns", "said"),
    [
        (
            {},
            ["id", "a"],
            r"input 'b': expected a column 'b' in every file, got 'id', 'a'; --input b=",
        ),
        ({"a": ("x",)}, ["a", "b"], "input 'a': expected a column 'x'"),
        ({"c": ("a",)}, ["a", "b"], "--input: expected one of 'a', 'b', got 'c'"),
        ({"a": ("p", "q")}, ["p", "q", "b"], r"2 columns make rows of shape \[2\], .* \[4\]"),
        ({"b": ("p", "q")}, ["p", "q", "a"], r"--input b: 2 columns"),
    ],
)
def test_what_does_not_go_together_is_named(
    chosen: dict[str, tuple[str, ...]], columns: list[str], said: str
) -> None:
    with pytest.raises(ConfigurationError, match=said):
        map_columns([A, B], True, chosen, columns)
