"""Files of rows: whatever pieces they are read in, what comes out is what went in."""

from __future__ import annotations

import csv
import io
import pathlib
import tempfile
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.server.batch.tables import open_table
from headrace.server.batch.values import Unfit
from headrace.server.errors import InvalidInput


def in_pieces(path: pathlib.Path, rows: int) -> tuple[list[list[Any]], list[int]]:
    """Every column's values, put together from pieces; and the pieces' sizes."""
    table = open_table(path)
    names = table.columns()
    found: list[list[Any]] = [[] for _ in names]
    sizes: list[int] = []
    for start, count, offset in table.pieces(rows):
        assert start == sum(sizes)
        sizes.append(count)
        for values, column in zip(found, table.read(start, count, offset, names), strict=True):
            assert len(column.values) == count
            values += list(column.values)
    return found, sizes


CELLS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0\r"), max_size=6)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(CELLS.map(lambda cell: cell + "."), CELLS), max_size=12),
    st.integers(1, 5),
    st.sampled_from(["\n", "\r\n"]),
    st.sampled_from(["utf-8", "utf-8-sig"]),
)
def test_csv(rows: list[tuple[str, str]], size: int, end: str, encoding: str) -> None:
    """Quotes, commas, line ends inside cells, text beyond ASCII, a byte order mark."""
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator=end).writerows([("one", "two"), *rows])
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder, "rows.csv")
        path.write_bytes(text.getvalue().encode(encoding))
        found, sizes = in_pieces(path, size)
    assert found == ([list(column) for column in zip(*rows, strict=True)] if rows else [[], []])
    assert all(count == size for count in sizes[:-1])


def test_csv_rows_of_another_length(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "rows.tsv"
    path.write_text("a\tb\n1\t2\n3\n\n4\t5\t6\n")
    (a, b), _ = in_pieces(path, 2)
    assert a[:2] == ["1", "3"]
    assert b[:2] == ["2", None]
    assert a[2] == Unfit("a", "expected 2 cells in the row, got 3")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "expected a first line with names"),
        (b"a,a\n1,2\n", "more than one column is called a"),
        (b'a\n1\n"2\n', "unexpected end of data"),
        (b"a\n\xff\n", "invalid start byte"),
    ],
)
def test_csv_that_is_none(tmp_path: pathlib.Path, content: bytes, said: str) -> None:
    path = tmp_path / "rows.csv"
    path.write_bytes(content)
    with pytest.raises(InvalidInput, match=said) as caught:
        in_pieces(path, 2)
    assert str(path) in str(caught.value)


def test_arrays(tmp_path: pathlib.Path) -> None:
    x, y = np.arange(14).reshape(7, 2), np.arange(7.0)
    np.save(tmp_path / "x.npy", x)
    np.savez(tmp_path / "both.npz", x=x, y=y)
    (found,), sizes = in_pieces(tmp_path / "x.npy", 3)
    assert np.array_equal(found, x)
    assert sizes == [3, 3, 1]
    found, _ = in_pieces(tmp_path / "both.npz", 4)
    assert np.array_equal(found[0], x)
    assert np.array_equal(found[1], y)


@pytest.mark.parametrize("suffix", [".npy", ".npz", ".parquet"])
@pytest.mark.parametrize("content", [b"", b"nothing of the kind"])
def test_files_that_are_not_what_they_are_called(
    tmp_path: pathlib.Path, suffix: str, content: bytes
) -> None:
    if suffix == ".parquet":
        pytest.importorskip("pyarrow")
    path = tmp_path / f"rows{suffix}"
    path.write_bytes(content)
    with pytest.raises(InvalidInput) as caught:
        open_table(path).columns()
    assert str(path) in str(caught.value)


def test_arrays_that_are_no_rows(tmp_path: pathlib.Path) -> None:
    np.save(tmp_path / "one.npy", np.array(1))
    np.save(tmp_path / "objects.npy", np.array([{}]), allow_pickle=True)
    np.savez(tmp_path / "uneven.npz", a=np.zeros(2), b=np.zeros(3))
    for name, said in (
        ("one.npy", "got a single value"),
        ("objects.npy", "Python objects in dtype"),
        ("uneven.npz", "as many rows each"),
    ):
        with pytest.raises(InvalidInput, match=said):
            in_pieces(tmp_path / name, 2)


def test_parquet(tmp_path: pathlib.Path) -> None:
    """Over row groups, with nulls, lists of all kinds, and chunks."""
    pa = pytest.importorskip("pyarrow")
    pq = pytest.importorskip("pyarrow.parquet")
    columns = {
        "number": pa.array(range(7), pa.int32()),
        "null": pa.array([1.5, None, 2, 3, 4, 5, 6]),
        "text": pa.array(list("abcdefg")),
        "even": pa.array([[i, i + 1] for i in range(7)]),
        "uneven": pa.array([list(range(i)) for i in range(7)]),
        "matrix": pa.array([[[i, 0], [1, 2]] for i in range(7)], pa.list_(pa.list_(pa.int64(), 2))),
        "fixed": pa.array([[i, i] for i in range(7)], pa.list_(pa.float32(), 2)),
    }
    path = tmp_path / "rows.parquet"
    pq.write_table(pa.table(columns), path, row_group_size=3)
    for size in (1, 2, 5, 100):
        found, sizes = in_pieces(path, size)
        assert sum(sizes) == 7
        for values, column in zip(found, columns.values(), strict=True):
            plain = [v.tolist() if isinstance(v, np.ndarray | np.generic) else v for v in values]
            assert plain == column.to_pylist()
    table = open_table(path)
    dense = {c.name: isinstance(c.values, np.ndarray) for c in table.read(1, 5, 0, list(columns))}
    assert dense == {name: name not in ("null", "text", "uneven") for name in columns}


def test_parquet_with_tensors(tmp_path: pathlib.Path) -> None:
    pa = pytest.importorskip("pyarrow")
    pq = pytest.importorskip("pyarrow.parquet")
    tensors = np.arange(24, dtype=np.float32).reshape(4, 2, 3)
    column = pa.FixedShapeTensorArray.from_numpy_ndarray(tensors)
    pq.write_table(pa.table({"x": column}), tmp_path / "rows.parquet")
    (found,), _ = in_pieces(tmp_path / "rows.parquet", 3)
    assert np.array_equal(found, tensors)
