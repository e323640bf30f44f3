"""Values of columns against what an input wants: converted, or said why not."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from headrace.inference.tensors import DATATYPES
from headrace.server.batch.values import (
    Column,
    Unfit,
    Wanted,
    fit,
    from_bfloat16,
    to_bfloat16,
)
from headrace.server.errors import InvalidInput


def wanted(datatype: str, *shape: int, columns: tuple[str, ...] = ("c",)) -> Wanted:
    return Wanted("x", datatype, shape, columns)


def fitted(values: Any, want: Wanted, *, text: bool = False) -> list[Any]:
    """Of one column: lists for tensors, messages for what does not fit."""
    rows = fit([Column("c", values, text)], want)
    return [row.message if isinstance(row, Unfit) else row.tolist() for row in rows]


@given(
    st.sampled_from([d for d in DATATYPES if d not in ("BF16", "BYTES", "BOOL")]),
    hnp.arrays(st.sampled_from(["i1", "u1", "i4", "u4", "i8", "u8"]), st.integers(1, 6)),
)
def test_integers_fit_exactly_where_there_is_room(datatype: str, values: Any) -> None:
    """An array, and the same as Python's values, give the same."""
    target = DATATYPES[datatype].numpy
    rows = fit([Column("c", values)], wanted(datatype))
    assert [type(r) for r in rows] == [
        type(r) for r in fit([Column("c", values.tolist())], wanted(datatype))
    ]
    for value, row in zip(values.tolist(), rows, strict=True):
        if target.kind == "f" and abs(value) <= float(np.finfo(target).max):
            assert not isinstance(row, Unfit)
            assert row == target.type(value)
        elif target.kind != "f" and np.iinfo(target).min <= value <= np.iinfo(target).max:
            assert not isinstance(row, Unfit)
            assert row.dtype == target
            assert row == value
        elif not isinstance(row, np.ndarray):
            assert str(value) in row.message
        else:  # rounded down to the largest
            assert row == np.finfo(target).max * np.sign(value)


@pytest.mark.parametrize(
    ("values", "datatype", "said"),
    [
        (np.array([1.0]), "INT32", "expected INT32, got float64 values"),
        (np.array([True]), "FP32", "expected FP32, got bool values"),
        (np.array(["a"]), "FP32", "expected FP32, got str"),
        (np.array([1]), "BYTES", "expected BYTES, got int64 values"),
        (np.array([1]), "BOOL", "expected BOOL, got int64 values"),
        (np.array([[1.0, 2.0]]), "FP32", "expected shape [] (-1: any), got [2]"),
    ],
)
def test_what_is_wrong_with_a_whole_column_names_it(values: Any, datatype: str, said: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        fit([Column("c", values)], wanted(datatype))
    assert str(caught.value).startswith(f"column 'c' for input 'x': {said}")


def test_a_row_that_does_not_fit_harms_no_other() -> None:
    values = [1, None, 2.5, "7", [1, 2], [2, [3]]]
    assert fitted(values, wanted("FP32")) == [
        1.0,
        "expected FP32, got null",
        2.5,
        "expected FP32, got str32 values",
        "expected shape [] (-1: any), got [2]",
        "expected lists of equal lengths in each dimension",
    ]


@pytest.mark.parametrize(
    ("text", "datatype", "value"),
    [
        (" 1.5 ", "FP32", 1.5),
        ("-7", "INT8", -7),
        ("TRUE", "BOOL", True),
        ("0", "BOOL", False),
        ("[1]", "BYTES", b"[1]"),
        ("", "BYTES", b""),
        ("nan?", "FP32", "expected FP32, got 'nan?'"),
        ("", "INT32", "expected INT32, got ''"),
        ("1.5", "INT32", "expected INT32, got '1.5'"),
        ("70000", "FP16", "expected FP16 (-65504.0 to 65504.0), got 70000.0"),
        ("inf", "FP16", float("inf")),
        ("300", "INT8", "expected INT8 (-128 to 127), got 300"),
        ("yes", "BOOL", "expected BOOL, got 'yes'"),
    ],
)
def test_a_cell_is_read_as_the_datatype_has_it(text: str, datatype: str, value: Any) -> None:
    assert fitted([text], wanted(datatype), text=True) == [value]


def test_a_cell_may_hold_a_list() -> None:
    cells = ["[1, 2]", "[1, 2, 3]", "[1, 2", "[1, null]"]
    rows = fitted(cells, wanted("FP32", 2), text=True)
    assert rows[0] == [1, 2]
    assert rows[1] == "expected shape [2] (-1: any), got [3]"
    assert rows[2].startswith("expected a list as JSON, got '[1, 2'")
    assert rows[3] == "expected FP32, got [1, None]"
    assert fitted([json.dumps(["ä", "b"])], wanted("BYTES", 2), text=True) == [["ä".encode(), b"b"]]


def test_a_flat_list_is_cut_where_the_shape_leaves_no_choice() -> None:
    flat = np.arange(12).reshape(2, 6)
    assert fitted(flat, wanted("INT32", 2, 3))[1] == [[6, 7, 8], [9, 10, 11]]
    assert fitted([[1, 2], 3], wanted("INT32", -1)) == [[1, 2], [3]]
    with pytest.raises(InvalidInput):
        fit([Column("c", flat)], wanted("INT32", 2, -1))


def test_several_columns_make_a_vector() -> None:
    want = wanted("FP32", 2, columns=("a", "b"))
    rows = fit([Column("a", np.array([1, 2])), Column("b", ["3", "no"], text=True)], want)
    assert isinstance(rows[0], np.ndarray)
    assert rows[0].tolist() == [1, 3]
    assert rows[1] == Unfit("b", "expected FP32, got 'no'")


def test_a_model_that_takes_a_row_at_a_time_gets_its_dimension() -> None:
    (row,) = fit([Column("c", np.array([[1.0, 2.0]]))], Wanted("x", "FP32", (2,), ("c",), True))
    assert isinstance(row, np.ndarray)
    assert row.shape == (1, 2)


@given(hnp.arrays(np.uint16, st.integers(0, 8)))
def test_bfloat16_comes_back(bits: Any) -> None:
    """Every value of it is one of float32, and is nearest to itself."""
    again = to_bfloat16(from_bfloat16(bits))
    nan = np.isnan(from_bfloat16(bits))
    assert (again[~nan] == bits[~nan]).all()
    assert np.isnan(from_bfloat16(again[nan])).all()


def test_bfloat16_is_rounded_to_the_nearest_and_ties_to_even() -> None:
    ml_dtypes = pytest.importorskip("ml_dtypes")
    bits = np.random.default_rng(0).integers(0, 2**32, 10_000, np.uint32)
    single = bits.view(np.float32)
    single = single[~np.isnan(single)]
    with np.errstate(over="ignore"):
        expected = single.astype(ml_dtypes.bfloat16).view(np.uint16)
    assert (to_bfloat16(single) == expected).all()
