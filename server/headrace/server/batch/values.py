"""Values of columns as tensors: what a model's input wants of each row, and whether that came.

What is converted: any integer to any integer type that has room for it; integers and floating point
numbers to a floating point type, rounded. Nothing else is: a floating point number is no integer,
a truth value no number, text no number. Of CSV, where everything is text, the text is read as the
input's datatype has it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np

from headrace.inference.tensors import DATATYPES, Array
from headrace.server.errors import InvalidInput

_TRUTHS = {"true": True, "1": True, "false": False, "0": False}
_SHOWN = 40  # characters of a value in a message


@dataclass(frozen=True, slots=True)
class Wanted:
    """What one input of the model wants of each row. shape: of a row, -1 for any size. lead: a
    dimension of 1 goes before it, for models that take a row at a time."""

    input: str
    datatype: str
    shape: tuple[int, ...]
    columns: tuple[str, ...]
    lead: bool = False


@dataclass(frozen=True, slots=True)
class Unfit:
    """Why a row's value cannot be used."""

    column: str
    message: str


@dataclass(frozen=True, slots=True)
class Column:
    """The values of one column in some rows: an array [rows, ...], or a value for each row.

    text: they are text as CSV has it. An Unfit among the values stands for a row that could not be
    read.
    """

    name: str
    values: Array | Sequence[Any]
    text: bool = False

    def part(self, start: int, end: int) -> Column:
        return Column(self.name, self.values[start:end], self.text)

    def at(self, indices: Sequence[int]) -> Column:
        """The rows of these indices."""
        if isinstance(self.values, np.ndarray):
            return Column(self.name, self.values[np.array(indices, np.intp)], self.text)
        return Column(self.name, [self.values[index] for index in indices], self.text)


Fitted = list["Array | Unfit"]


def fit(columns: Sequence[Column], wanted: Wanted) -> Fitted:
    """For each row the tensor that the input wants, or why there is none.

    Several columns of single values become a vector. Raises InvalidInput where a column as a whole
    cannot fit, by its type or the shape of its rows.
    """
    if len(columns) == 1:
        return [_checked(value, columns[0].name, wanted) for value in _fit_one(columns[0], wanted)]
    single = Wanted(wanted.input, wanted.datatype, (), wanted.columns)
    parts = [_fit_one(column, single) for column in columns]
    rows: Fitted = []
    for values in zip(*parts, strict=True):
        unfit = next((value for value in values if isinstance(value, Unfit)), None)
        together = unfit or np.stack(cast(Sequence[Array], values))
        rows.append(_checked(together, ", ".join(wanted.columns), wanted))
    return rows


def _checked(value: Array | Unfit, column: str, wanted: Wanted) -> Array | Unfit:
    if isinstance(value, Unfit):
        return value
    try:
        return _shaped(value, wanted)
    except ValueError as error:
        return Unfit(column, str(error))


def _shaped(array: Array, wanted: Wanted) -> Array:
    """`array` in the shape of a row. A single value is a vector of one where that is wanted, and a
    flat list is cut into rows where the shape leaves no choice."""
    shape, got = wanted.shape, array.shape
    fits = len(shape) == len(got) and all(w in (-1, g) for w, g in zip(shape, got, strict=True))
    if not fits:
        if not got and shape in ((1,), (-1,)):
            array = array.reshape(1)
        elif len(got) == 1 and -1 not in shape and math.prod(shape) == got[0]:
            array = array.reshape(shape)
        else:
            raise ValueError(f"expected shape {list(shape)} (-1: any), got {list(got)}")
    return array[np.newaxis] if wanted.lead else array


def _fit_one(column: Column, wanted: Wanted) -> Fitted:
    if isinstance(column.values, np.ndarray):
        return _fit_array(column.name, column.values, wanted)
    read: Callable[[Any, Wanted], Array] = _from_text if column.text else _from_value
    rows: Fitted = []
    for value in column.values:
        if isinstance(value, Unfit):
            rows.append(value)
            continue
        try:
            rows.append(read(value, wanted))
        except ValueError as error:
            rows.append(Unfit(column.name, str(error)))
    return rows


def _fit_array(name: str, values: Array, wanted: Wanted) -> Fitted:
    """All rows have one type and one shape: what is wrong with those is wrong with the column."""
    try:
        _check_kind(values.dtype, wanted.datatype)
        if len(values):
            _shaped(values[0], wanted)
    except ValueError as error:
        raise InvalidInput(f"column '{name}' for input '{wanted.input}': {error}") from None
    outside = _outside(values, wanted.datatype)
    cast = _cast(values, wanted.datatype)
    # Indexing a row of a vector gives a scalar, which is no array: `...` makes it one.
    rows: Fitted = [cast[index, ...] for index in range(len(cast))]
    if outside is not None:
        for index in np.flatnonzero(outside.reshape(len(values), -1).any(axis=1)):
            rows[index] = Unfit(name, _range_message(values[index], wanted.datatype))
    return rows


def _from_value(value: Any, wanted: Wanted) -> Array:
    """Of a value as Arrow gives it to Python: a number, text, bytes, None, or lists of them."""
    if value is None:
        raise ValueError(f"expected {wanted.datatype}, got null")
    if wanted.datatype == "BYTES":
        return _strings(value)
    try:
        array = np.asarray(value)
    except ValueError:
        raise ValueError("expected lists of equal lengths in each dimension") from None
    if array.size == 0:
        array = array.astype(DATATYPES[wanted.datatype].numpy)
    if array.dtype == object:
        raise ValueError(f"expected {wanted.datatype}, got {_brief(value)}")
    _check_kind(array.dtype, wanted.datatype)
    if _outside(array[np.newaxis], wanted.datatype) is not None:
        raise ValueError(_range_message(array, wanted.datatype))
    return _cast(array, wanted.datatype)


def _from_text(text: str | None, wanted: Wanted) -> Array:
    """Of a cell: a number, true or false, text, or, where a row has dimensions, a list as JSON."""
    if text is None:
        raise ValueError(f"expected {wanted.datatype}, got no cell: the row is too short")
    listed = text.lstrip().startswith("[")
    if wanted.datatype == "BYTES":
        return _strings(_json(text) if listed and wanted.shape not in ((), (1,)) else text)
    if listed:
        return _from_value(_json(text), wanted)
    return _from_value(_scalar(text.strip(), wanted.datatype), wanted)


def _scalar(text: str, datatype: str) -> bool | int | float:
    kind = _target(datatype).kind
    try:
        if kind == "b":
            return _TRUTHS[text.lower()]
        return float(text) if kind == "f" else int(text)
    except (KeyError, ValueError):
        raise ValueError(f"expected {datatype}, got {_brief(text)}") from None


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"expected a list as JSON, got {_brief(text)}: {error.msg}") from None


def _strings(value: Any) -> Array:
    """An array of `bytes`, of text, bytes, or lists of them. Raises ValueError."""
    array = np.empty((), object)
    array[()] = value
    if isinstance(value, list):
        array = np.array(value, object)
    out = np.empty(array.shape, object)
    for place, element in np.ndenumerate(array):
        if not isinstance(element, str | bytes):
            raise ValueError(f"expected BYTES (text or bytes), got {_brief(element)}")
        out[place] = element.encode() if isinstance(element, str) else element
    return out


def _check_kind(dtype: np.dtype[Any], datatype: str) -> None:
    """Raises ValueError unless values of `dtype` may become `datatype`."""
    allowed = {"b": "b", "i": "iu", "u": "iu", "f": "iuf", "O": "OSU"}[_target(datatype).kind]
    if dtype.kind not in allowed:
        raise ValueError(f"expected {datatype}, got {dtype.name} values")


def _outside(values: Array, datatype: str) -> Array | None:
    """Where `values` have no room in `datatype`; None if all have. NaN and infinity have."""
    target = _target(datatype)
    if target.kind not in "iuf" or np.can_cast(values.dtype, target):
        return None
    if target.kind == "f":
        with np.errstate(over="ignore"):
            outside: Array = np.isinf(values.astype(target)) & np.isfinite(values)
        return outside if outside.any() else None
    limits, given = np.iinfo(target), np.iinfo(values.dtype)
    outside = np.zeros(values.shape, bool)
    # Only with what the type of the values can hold: no common type holds all others.
    if limits.min > given.min:
        outside |= values < limits.min
    if limits.max < given.max:
        outside |= values > limits.max
    return outside if outside.any() else None


def _range_message(values: Array, datatype: str) -> str:
    target = _target(datatype)
    limits: Any = np.finfo(target) if target.kind == "f" else np.iinfo(target)
    outside = _outside(values[np.newaxis], datatype)
    assert outside is not None
    wrong = values[np.newaxis][outside].ravel()[0]
    return f"expected {datatype} ({limits.min} to {limits.max}), got {wrong}"


def _target(datatype: str) -> np.dtype[Any]:
    return np.dtype(np.float32) if datatype == "BF16" else DATATYPES[datatype].numpy


def _cast(values: Array, datatype: str) -> Array:
    if datatype == "BYTES":
        flat = [v.encode() if isinstance(v, str) else bytes(v) for v in values.ravel().tolist()]
        out = np.empty(values.size, object)
        out[:] = flat
        return out.reshape(values.shape)
    if datatype == "BF16":
        return to_bfloat16(values)
    with np.errstate(over="ignore", invalid="ignore"):  # those are not used: they do not fit
        return values.astype(DATATYPES[datatype].numpy, copy=False)


def to_bfloat16(values: Array) -> Array:
    """The bits (uint16) of the nearest bfloat16, ties to even; a NaN stays one."""
    with np.errstate(over="ignore"):
        single = np.asarray(values, np.float32)
    bits = single.view(np.uint32).astype(np.uint64)
    rounded = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
    return np.where(np.isnan(single), np.uint16(0x7FC0), rounded)


def from_bfloat16(bits: Array) -> Array:
    """float32 of bfloat16 bits: exact."""
    return (bits.astype(np.uint32) << 16).view(np.float32)


def _brief(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= _SHOWN else text[:_SHOWN] + "..."
