"""What a part's file holds: for each computed row its place, what was kept, the outputs."""

from __future__ import annotations

import pathlib
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from typing import IO, Any

import numpy as np

from headrace.inference.tensors import DATATYPES, Array
from headrace.server.batch import arrow
from headrace.server.batch.values import Column, from_bfloat16
from headrace.server.errors import ConfigurationError, InvalidInput
from headrace.server.models.spec import TensorSpec

# Where a row came from: columns of every output.
FILE, ROW = "_file", "_row"


@dataclass(frozen=True, slots=True)
class Layout:
    """The columns of the output. outputs: name, NumPy dtype and dimensions of a row of each.
    keep: the columns that are copied, with their Arrow types, None where that is not Parquet."""

    outputs: tuple[tuple[str, np.dtype[Any], int], ...]
    keep: tuple[tuple[str, Any], ...]


def layout_of(
    outputs: Sequence[TensorSpec], batched: bool, keep: Sequence[tuple[str, Any]]
) -> Layout:
    """Raises ConfigurationError where two columns would have one name."""
    found = tuple(
        (spec.name, _dtype_of(spec.datatype), len(spec.shape) - batched) for spec in outputs
    )
    names = [FILE, ROW, *(name for name, _ in keep), *(name for name, _, _ in found)]
    for name in names:
        if names.count(name) > 1:
            raise ConfigurationError(f"--keep: '{name}' is a column of the output already")
    return Layout(found, tuple(keep))


def _dtype_of(datatype: str) -> np.dtype[Any]:
    """BF16 is written as FP32, which holds it exactly and everybody reads."""
    return np.dtype(np.float32) if datatype == "BF16" else DATATYPES[datatype].numpy


@dataclass(slots=True)
class Answers:
    """Of the rows of a part that were computed, in order."""

    files: list[str]
    rows: list[int]
    kept: list[Column]
    outputs: list[list[Array]]


def presentable(array: Array, datatype: str) -> Array:
    """An output's row as it is written: BF16 as numbers, BYTES as text."""
    if datatype == "BF16":
        return from_bfloat16(array)
    if datatype != "BYTES":
        return array
    out = np.empty(array.shape, object)
    for place, element in np.ndenumerate(array):
        text: Any = element
        out[place] = text.decode(errors="replace") if isinstance(text, bytes) else str(text)
    return out


def write_parquet(answers: Answers, layout: Layout, file: IO[bytes]) -> None:
    import pyarrow as pa

    columns: dict[str, Any] = {
        FILE: pa.array(answers.files, pa.string()),
        ROW: pa.array(answers.rows, pa.int64()),
    }
    for column, (name, kind) in zip(answers.kept, layout.keep, strict=True):
        given = column.values
        columns[name] = pa.array(given.tolist() if isinstance(given, np.ndarray) else given, kind)
    for rows, (name, dtype, dimensions) in zip(answers.outputs, layout.outputs, strict=True):
        kind = arrow.nested_type(dtype, dimensions)
        columns[name] = arrow.nested(rows, kind, dimensions)
    arrow.write_parquet(columns, file)


def write_npz(answers: Answers, layout: Layout, file: IO[bytes]) -> None:
    """Raises InvalidInput for an output whose rows have different shapes."""
    arrays: dict[str, Array] = {
        FILE: np.array(answers.files, np.str_),
        ROW: np.array(answers.rows, np.int64),
    }
    for column in answers.kept:
        arrays[column.name] = np.asarray(column.values)
        if arrays[column.name].dtype == object:
            raise InvalidInput(
                f"column '{column.name}' cannot be kept in .npz form: use --format parquet"
            )
    for rows, (name, dtype, dimensions) in zip(answers.outputs, layout.outputs, strict=True):
        shapes = {row.shape for row in rows}
        if len(shapes) > 1:
            raise InvalidInput(
                f"output '{name}' has rows of different shapes, {list(sorted(shapes)[0])} and "
                f"{list(sorted(shapes)[-1])}, which .npz cannot hold: use --format parquet"
            )
        empty = np.empty((0, *(0,) * dimensions), dtype)
        stacked = np.stack(rows) if rows else empty
        arrays[name] = stacked.astype(np.str_) if dtype.kind == "O" else stacked
    # As np.savez does, which cannot have an array called "file".
    with zipfile.ZipFile(file, "w", allowZip64=True) as archive:
        for name, array in arrays.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array(member, array, allow_pickle=False)


def rows_in(path: pathlib.Path) -> int:
    """The rows that a part's file has."""
    if path.suffix == ".parquet":
        return arrow.rows_in(path)
    with np.load(path, allow_pickle=False) as archive:
        return len(archive[ROW])
