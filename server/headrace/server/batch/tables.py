"""Files that hold rows: Parquet, NPY, NPZ, CSV. Each can be cut into pieces and read piecewise."""

from __future__ import annotations

import csv
import functools
import pathlib
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from typing import IO, Any, Protocol

import numpy as np

from headrace.inference.tensors import Array
from headrace.server.batch import arrow
from headrace.server.batch.values import Column, Unfit
from headrace.server.errors import InvalidInput

# A cell may hold a long vector as JSON.
_LONGEST_CELL = 1 << 28
# Arrays of .npz files that are kept while their parts are read: they cannot be read in pieces.
_KEPT_ARRAYS = 8
# What the only column of an .npy file is called.
NPY_COLUMN = "data"
_TEXT = np.dtype(object)
# What NumPy raises of files that are not what they are called.
_BROKEN = (OSError, ValueError, EOFError, TypeError, AttributeError, zipfile.BadZipFile, zlib.error)


class Table(Protocol):
    """One file. Raises InvalidInput, naming the file, for one that is not what its name says."""

    def columns(self) -> list[str]:
        """The names of its columns."""

    def types(self, names: Sequence[str]) -> list[Any]:
        """The Arrow types that these columns have in Parquet."""

    def pieces(self, rows: int) -> Iterator[tuple[int, int, int]]:
        """(first row, rows, byte offset) of pieces of at most so many rows, in order."""

    def read(self, start: int, rows: int, offset: int, names: Sequence[str]) -> list[Column]:
        """The columns of these names in one piece."""


def open_table(path: pathlib.Path) -> Table:
    return TABLES[path.suffix.lower()](path)


def even_pieces(total: int, rows: int) -> Iterator[tuple[int, int, int]]:
    return ((start, min(rows, total - start), 0) for start in range(0, total, rows))


class _Csv:
    """Text in UTF-8 with a line of names first; quoted as RFC 4180 has it. `.tsv` has tabs."""

    def __init__(self, path: pathlib.Path) -> None:
        self._path = path
        self._delimiter = "\t" if path.suffix.lower() == ".tsv" else ","
        csv.field_size_limit(_LONGEST_CELL)

    def columns(self) -> list[str]:
        with self._path.open("rb") as file:
            names = next(self._records(_Lines(file)), [])
        if not names:
            raise InvalidInput(f"{self._path}: expected a first line with names, got an empty file")
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise InvalidInput(f"{self._path}: more than one column is called {', '.join(twice)}")
        return names

    def types(self, names: Sequence[str]) -> list[Any]:
        return [arrow.nested_type(_TEXT, 0) for _ in names]

    def pieces(self, rows: int) -> Iterator[tuple[int, int, int]]:
        """By a pass over the file: only that knows where quoted text ends."""
        with self._path.open("rb") as file:
            lines = _Lines(file)
            records = self._records(lines)
            next(records, None)
            start, count, offset = 0, 0, lines.at
            for _ in records:
                count += 1
                if count == rows:
                    yield start, count, offset
                    start, count, offset = start + count, 0, lines.at
        if count:
            yield start, count, offset

    def read(self, start: int, rows: int, offset: int, names: Sequence[str]) -> list[Column]:
        header = self.columns()
        places = [header.index(name) for name in names]
        cells: list[list[Any]] = [[] for _ in names]
        with self._path.open("rb") as file:
            file.seek(offset)
            for _, record in zip(range(rows), self._records(_Lines(file)), strict=False):
                for column, name, place in zip(cells, names, places, strict=True):
                    if len(record) > len(header):
                        got = f"expected {len(header)} cells in the row, got {len(record)}"
                        column.append(Unfit(name, got))
                    else:
                        column.append(record[place] if place < len(record) else None)
        return [Column(name, column, text=True) for name, column in zip(names, cells, strict=True)]

    def _records(self, lines: _Lines) -> Iterator[list[str]]:
        try:
            yield from filter(None, csv.reader(lines, delimiter=self._delimiter, strict=True))
        except (csv.Error, UnicodeDecodeError) as error:
            raise InvalidInput(f"{self._path}: {error}, near byte {lines.at}") from None


class _Lines:
    """The lines of a file, decoded; `at` is where the next one begins."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.at = file.tell()

    def __iter__(self) -> Iterator[str]:
        for line in self._file:
            encoding = "utf-8-sig" if self.at == 0 else "utf-8"
            self.at += len(line)
            yield line.decode(encoding)


class _Npy:
    """One array [rows, ...], read where it lies in the file."""

    def __init__(self, path: pathlib.Path) -> None:
        self._path = path

    def columns(self) -> list[str]:
        self._array()
        return [NPY_COLUMN]

    def types(self, names: Sequence[str]) -> list[Any]:
        return [_type_of(self._array()) for _ in names]

    def pieces(self, rows: int) -> Iterator[tuple[int, int, int]]:
        return even_pieces(len(self._array()), rows)

    def read(self, start: int, rows: int, offset: int, names: Sequence[str]) -> list[Column]:
        return [Column(name, self._array()[start : start + rows]) for name in names]

    def _array(self) -> Array:
        try:
            array: Array = np.load(self._path, mmap_mode="r", allow_pickle=False)
        except _BROKEN as error:
            raise InvalidInput(f"{self._path}: expected an array in .npy form: {error}") from None
        if not isinstance(array, np.ndarray):
            raise InvalidInput(f"{self._path}: expected an array in .npy form, got an archive")
        return _with_rows(array, str(self._path))


class _Npz:
    """Arrays [rows, ...] of as many rows each, a column by each name."""

    def __init__(self, path: pathlib.Path) -> None:
        self._path = path

    def columns(self) -> list[str]:
        return list(_names_in(self._path))

    def types(self, names: Sequence[str]) -> list[Any]:
        return [_type_of(_array_in(self._path, name)) for name in names]

    def pieces(self, rows: int) -> Iterator[tuple[int, int, int]]:
        counts = {name: len(_array_in(self._path, name)) for name in self.columns()}
        if len(set(counts.values())) > 1:
            raise InvalidInput(f"{self._path}: expected arrays of as many rows each, got {counts}")
        return even_pieces(max(counts.values(), default=0), rows)

    def read(self, start: int, rows: int, offset: int, names: Sequence[str]) -> list[Column]:
        return [Column(n, _array_in(self._path, n)[start : start + rows]) for n in names]


def _names_in(path: pathlib.Path) -> Sequence[str]:
    try:
        with np.load(path, allow_pickle=False) as archive:
            return list(archive.files)
    except _BROKEN as error:
        raise InvalidInput(f"{path}: expected arrays in .npz form: {error}") from None


@functools.lru_cache(_KEPT_ARRAYS)
def _array_in(path: pathlib.Path, name: str) -> Array:
    try:
        with np.load(path, allow_pickle=False) as archive:
            return _with_rows(archive[name], f"{path}, array '{name}'")
    except _BROKEN as error:
        raise InvalidInput(f"{path}: array '{name}' cannot be read: {error}") from None


def _type_of(array: Array) -> Any:
    return arrow.nested_type(_TEXT if array.dtype.kind in "SU" else array.dtype, array.ndim - 1)


def _with_rows(array: Array, where: str) -> Array:
    if array.ndim == 0:
        raise InvalidInput(f"{where}: expected an array with rows, got a single value")
    return array


TABLES: dict[str, Callable[[pathlib.Path], Table]] = {
    ".csv": _Csv,
    ".tsv": _Csv,
    ".npy": _Npy,
    ".npz": _Npz,
    ".parquet": arrow.ParquetTable,
}
