"""Parquet by Arrow, which comes with the extra `batch`: columns read, answers written."""

from __future__ import annotations

import functools
import importlib.util
import itertools
import pathlib
from collections.abc import Iterator, Sequence
from typing import IO, Any

import numpy as np

from headrace.inference.tensors import Array
from headrace.server.batch.values import Column
from headrace.server.errors import ConfigurationError, InvalidInput

# Row groups that are kept while parts are cut out of them: those that are read at the same time.
_KEPT_GROUPS = 4
_MOST_ELEMENTS = 2**31 - 1  # that Arrow's offsets can count


def need_arrow() -> None:
    """Raises ConfigurationError where Arrow is not installed."""
    if importlib.util.find_spec("pyarrow") is None:
        raise ConfigurationError(
            "Parquet needs pyarrow, which comes with an extra: pip install 'headrace[batch]', "
            "or '.[batch]' in a checkout; answers can do without: --format npz"
        )


class ParquetTable:
    """One Parquet file. Single values, lists of any depth, and fixed-shape tensors become rows."""

    def __init__(self, path: pathlib.Path) -> None:
        need_arrow()
        self._path = path

    def columns(self) -> list[str]:
        return list(_schema(self._path).names)

    def types(self, names: Sequence[str]) -> list[Any]:
        """Raises ConfigurationError for an extension's type, which cannot be made of values."""
        import pyarrow as pa

        found = [_schema(self._path).field(name).type for name in names]
        for name, kind in zip(names, found, strict=True):
            if isinstance(kind, pa.BaseExtensionType):
                raise ConfigurationError(f"--keep: column '{name}' cannot be copied, it is {kind}")
        return found

    def pieces(self, rows: int) -> Iterator[tuple[int, int, int]]:
        total = sum(_group_rows(self._path))
        return ((start, min(rows, total - start), 0) for start in range(0, total, rows))

    def read(self, start: int, rows: int, offset: int, names: Sequence[str]) -> list[Column]:
        import pyarrow as pa

        end, found = start + rows, []
        ends = list(itertools.accumulate(_group_rows(self._path)))
        for group, group_end in enumerate(ends):
            group_start = ends[group - 1] if group else 0
            low, high = max(start, group_start), min(end, group_end)
            if low < high:
                table = _row_group(self._path, group, tuple(names))
                found.append(table.slice(low - group_start, high - low))
        together = pa.concat_tables(found)
        return [Column(name, _values(together.column(name).combine_chunks())) for name in names]


def _opened(path: pathlib.Path) -> Any:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return pq.ParquetFile(path)
    except (OSError, pa.ArrowException) as error:
        raise InvalidInput(f"{path}: expected a Parquet file: {error}") from None


def _schema(path: pathlib.Path) -> Any:
    with _opened(path) as file:
        return file.schema_arrow


@functools.lru_cache(1024)
def _group_rows(path: pathlib.Path) -> tuple[int, ...]:
    """The rows of each row group."""
    with _opened(path) as file:
        metadata = file.metadata
        return tuple(metadata.row_group(i).num_rows for i in range(metadata.num_row_groups))


@functools.lru_cache(_KEPT_GROUPS)
def _row_group(path: pathlib.Path, group: int, names: tuple[str, ...]) -> Any:
    with _opened(path) as file:
        return file.read_row_group(group, columns=list(names))


def _values(array: Any) -> Array | Sequence[Any]:
    """A column as one array where that holds it, else a Python value for each row."""
    import pyarrow as pa

    if isinstance(array, pa.ChunkedArray):  # of no chunks
        array = pa.concat_arrays(array.chunks) if array.num_chunks else pa.array([], array.type)
    if isinstance(array, pa.FixedShapeTensorArray) and not array.null_count:
        tensors: Array = array.to_numpy_ndarray()
        return tensors
    dense = _dense(array)
    values: Sequence[Any] = array.to_pylist()
    return values if dense is None else dense


def _dense(array: Any) -> Array | None:
    """`array` [rows, ...] of numbers or truth values; None where rows differ in length, some value
    is null, or the type is another."""
    import pyarrow as pa

    kind = array.type
    if array.null_count:
        return None
    if pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind):
        flat: Array = array.to_numpy(zero_copy_only=False)
        return flat
    if not (pa.types.is_list(kind) or pa.types.is_large_list(kind)) or not len(array):
        if not pa.types.is_fixed_size_list(kind):
            return None
        length = kind.list_size
    else:
        lengths = np.diff(array.offsets.to_numpy())
        if (lengths != lengths[0]).any():
            return None
        length = int(lengths[0])
    inner = _dense(array.flatten())
    return None if inner is None else inner.reshape(len(array), length, *inner.shape[1:])


def nested_type(dtype: np.dtype[Any], dimensions: int) -> Any:
    """The Arrow type of rows with so many dimensions. `dtype`: object for text."""
    import pyarrow as pa

    found = pa.string() if dtype.kind == "O" else pa.from_numpy_dtype(dtype)
    for _ in range(dimensions):
        found = pa.list_(found)
    return found


def nested(rows: Sequence[Array], kind: Any, dimensions: int) -> Any:
    """A column of type `kind` from a tensor for each row, whose shapes may differ.

    Raises InvalidInput when there are more elements than a column can hold.
    """
    import pyarrow as pa

    if sum(row.size for row in rows) > _MOST_ELEMENTS:
        raise InvalidInput(
            f"a part holds more than {_MOST_ELEMENTS} elements of one output: lower --rows-per-part"
        )
    innermost = kind
    for _ in range(dimensions):
        innermost = innermost.value_type
    flat = [row.ravel() for row in rows]
    values = pa.array(np.concatenate(flat) if flat else [], innermost)
    for level in reversed(range(dimensions)):
        counts = [np.full(int(np.prod(r.shape[:level])), r.shape[level], np.int32) for r in rows]
        offsets = np.zeros(sum(map(len, counts)) + 1, np.int32)
        np.cumsum(np.concatenate(counts) if counts else [], out=offsets[1:])
        values = pa.ListArray.from_arrays(pa.array(offsets), values)
    return values


def write_parquet(columns: dict[str, Any], file: IO[bytes]) -> None:
    """`columns`: Arrow arrays of one length, by name."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table(columns), file)


def rows_in(path: pathlib.Path) -> int:
    return sum(_group_rows(path))
