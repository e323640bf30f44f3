"""`headrace batch`: what it computes, what it refuses, and that no kill harms anything."""

from __future__ import annotations

import contextlib
import io
import json
import pathlib
import random
import signal
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from headrace.server.cli import main
from support import models, server
from support.server import PATIENCE

ROWS, PER_PART = 600, 20


@dataclass(frozen=True)
class Ended:
    returncode: int
    stdout: str
    stderr: str


def batch(*arguments: str | pathlib.Path) -> Ended:
    """The command, in this process: a new one would load everything anew."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main(["batch", *map(str, arguments)])
    return Ended(code, out.getvalue(), err.getvalue())


def done(*arguments: str | pathlib.Path) -> str:
    """What it says of a run that must end well."""
    ended = batch(*arguments)
    assert (ended.returncode, ended.stderr) == (0, "")
    return ended.stdout


def arrays(output: pathlib.Path) -> dict[str, Any]:
    """All parts in .npz form, one after the other."""
    parts = [np.load(path) for path in sorted(output.glob("part-*.npz"))]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0].files}


def table(output: pathlib.Path) -> list[dict[str, Any]]:
    """All parts in Parquet, row by row."""
    pq = pytest.importorskip("pyarrow.parquet")
    files = sorted(output.glob("part-*.parquet"))
    return [row for file in files for row in pq.read_table(file).to_pylist()]


@pytest.fixture
def double(tmp_path: pathlib.Path) -> pathlib.Path:
    models.save(models.scaled(2, ("batch", 2)), tmp_path / "double.onnx")
    return tmp_path / "double.onnx"


def start(*arguments: str | pathlib.Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [server.executable(), "batch", *arguments],
        env=server.clean_environment(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def kill_once_more_is_there(
    process: subprocess.Popen[bytes], output: pathlib.Path, more: int
) -> None:
    """SIGKILL some moment after so many more parts have come."""
    wanted = len(list(output.glob("part-*.parquet"))) + more
    end = time.monotonic() + PATIENCE
    while len(list(output.glob("part-*.parquet"))) < wanted and process.poll() is None:
        assert time.monotonic() < end
        time.sleep(0.001)
    time.sleep(random.uniform(0, 0.02))
    process.send_signal(signal.SIGKILL)
    process.wait(PATIENCE)


def test_no_kill_loses_or_doubles_a_row(tmp_path: pathlib.Path) -> None:
    """Several in a row, at any moment; the end result is that of a run which was left alone."""
    pytest.importorskip("pyarrow")
    models.save(models.lab(), tmp_path / "lab.onnx")
    rng = np.random.default_rng(0)
    index = rng.integers(-10, 10, ROWS)
    index[::37] = 99  # on these the run fails
    np.savez(
        tmp_path / "rows.npz",
        x=rng.standard_normal((ROWS, 3)).astype(np.float32),
        steps=np.full(ROWS, 60),
        index=index,
        id=np.arange(ROWS),
    )
    flags = ("--keep=id", "--on-error=skip", f"--rows-per-part={PER_PART}")
    given = (tmp_path / "lab.onnx", tmp_path / "rows.npz", *flags)
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    kills = 0
    for more in (0, 3, 6):
        process = start(*given, "--output", killed)
        kill_once_more_is_there(process, killed, more)
        kills += process.returncode == -signal.SIGKILL
    assert kills == 3, "each was still running"
    assert not (killed / "summary.json").exists()
    done(*given, "--output", killed)
    done(*given, "--output", whole)
    names = {path.name for path in whole.iterdir()}
    assert {path.name for path in killed.iterdir()} == names
    rows = table(killed)
    assert rows == table(whole)
    kept = [i for i in range(ROWS) if index[i] != 99]
    assert [row["id"] for row in rows] == [row["_row"] for row in rows] == kept
    assert (killed / "summary.json").read_text() == (whole / "summary.json").read_text()
    assert (killed / "skipped.jsonl").read_text() == (whole / "skipped.jsonl").read_text()
    skipped = [json.loads(line) for line in (killed / "skipped.jsonl").read_text().splitlines()]
    assert [row["row"] for row in skipped] == [i for i in range(ROWS) if index[i] == 99]
    assert all("index" in row["message"] or "indices" in row["message"] for row in skipped)


def test_files_of_every_kind(tmp_path: pathlib.Path, double: pathlib.Path) -> None:
    """The same rows from four kinds of files give the same answers."""
    pa = pytest.importorskip("pyarrow")
    pq = pytest.importorskip("pyarrow.parquet")
    x = np.arange(20, dtype=np.float32).reshape(10, 2)
    np.save(tmp_path / "a.npy", x)
    np.savez(tmp_path / "a.npz", x=x)
    pq.write_table(pa.table({"x": list(x), "id": range(10)}), tmp_path / "a.parquet")
    lines = [f'"{row[0]}",{row[1]},row {i}' for i, row in enumerate(x)]
    (tmp_path / "a.csv").write_text("\n".join(("p,q,id", *lines)))
    for suffix, flags in {
        "npy": (),
        "npz": (),
        "parquet": ("--keep=id",),
        "csv": ("--input=x=p,q", "--keep=id"),
    }.items():
        output, file = tmp_path / f"of-{suffix}", tmp_path / f"a.{suffix}"
        said = done(double, file, "--output", output, "--rows-per-part=4", *flags)
        assert said == f"10 of 10 rows are in 3 parts in {output}\n"
        rows = table(output)
        assert [row["y"] for row in rows] == (2 * x).tolist()
        assert [(row["_file"], row["_row"]) for row in rows] == [(str(file), i) for i in range(10)]
        if flags:
            first = 3 if suffix == "parquet" else "row 3"
            assert rows[3]["id"] == first
    again = done(double, tmp_path / "a.npy", "--output", tmp_path / "of-npy", "--rows-per-part=4")
    assert again.startswith("10 of 10 rows")


def test_a_bar_shows_how_far_it_is(
    tmp_path: pathlib.Path, double: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a terminal, from where an earlier run has stopped."""
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    (tmp_path / "in.csv").write_text("x\n" + '"[1,2]"\n' * 5 + '[3]\n"[4,5]"\n')
    flags = ("--format=npz", "--rows-per-part=5", "--on-error=skip", "--output", tmp_path / "out")
    whole = batch(double, tmp_path / "in.csv", *flags)
    assert whole.stdout.startswith("6 of 7 rows")
    assert "0/7" in whole.stderr
    (tmp_path / "out" / "part-000001.npz").unlink()
    rest = batch(double, tmp_path / "in.csv", *flags)
    assert rest.stdout == whole.stdout
    assert "5/7" in rest.stderr
    assert "7/7" in rest.stderr
    assert "rows (1 skipped)" in rest.stderr
    assert "0/7" not in rest.stderr


def test_several_files_and_npz_out(tmp_path: pathlib.Path, double: pathlib.Path) -> None:
    (tmp_path / "in").mkdir()
    for name, rows in (("b", 3), ("a", 5), ("none", 0)):
        np.save(tmp_path / "in" / f"{name}.npy", np.full((rows, 2), rows, np.float32))
    output = tmp_path / "out"
    done(double, tmp_path / "in", "--output", output, "--rows-per-part=4", "--format=npz")
    found = arrays(output)
    assert found["y"].tolist() == [[10, 10]] * 5 + [[6, 6]] * 3
    assert found["_row"].tolist() == [0, 1, 2, 3, 4, 0, 1, 2]
    assert [pathlib.Path(name).name for name in found["_file"]] == ["a.npy"] * 5 + ["b.npy"] * 3


def test_images(tmp_path: pathlib.Path) -> None:
    image = pytest.importorskip("PIL.Image")
    models.save(models.scaled(2, ("batch", 3, 4, 4)), tmp_path / "net.onnx")
    folder = tmp_path / "in"
    folder.mkdir()
    for number in range(3):
        image.new("RGB", (8, 6), (number * 50, 0, 255)).save(folder / f"{number}.png")
    (folder / "broken.jpg").write_bytes(b"no image")
    (folder / "notes.txt").write_text("are not read")
    given = (tmp_path / "net.onnx", folder, "--format=npz", "--output", tmp_path / "out")
    ended = batch(*given)
    assert ended.returncode == 1
    assert f"{folder / 'broken.jpg'}, row 0, column 'image': expected an image" in ended.stderr
    assert done(*given, "--on-error=skip").startswith("3 of 4 rows")
    found = arrays(tmp_path / "out")
    assert found["y"].shape == (3, 3, 4, 4)
    assert np.allclose(found["y"][:, 0, 0, 0], [0, 100 / 255, 200 / 255])
    assert found["_file"].tolist() == [str(folder / f"{number}.png") for number in range(3)]


def test_unequal_rows_and_text(tmp_path: pathlib.Path) -> None:
    """Rows of any length share a run where the model lets them, and come out in their order."""
    pa = pytest.importorskip("pyarrow")
    pq = pytest.importorskip("pyarrow.parquet")
    models.save(models.shout(), tmp_path / "shout.onnx")
    words = [["a"] * (i % 4) for i in range(30)]
    pq.write_table(pa.table({"x": pa.array(words, pa.list_(pa.string()))}), tmp_path / "a.parquet")
    done(tmp_path / "shout.onnx", tmp_path / "a.parquet", "--output", tmp_path / "out")
    assert [row["y"] for row in table(tmp_path / "out")] == [["a!"] * (i % 4) for i in range(30)]


def test_a_model_that_cannot_be_batched(tmp_path: pathlib.Path) -> None:
    """Each row is run alone: here it is its own mean."""
    models.save(models.mixes_rows(), tmp_path / "mixes.onnx")
    np.save(tmp_path / "x.npy", np.arange(12, dtype=np.float32).reshape(3, 4))
    flags = ("--format=npz", "--output", tmp_path / "out")
    done(tmp_path / "mixes.onnx", tmp_path / "x.npy", *flags)
    assert not arrays(tmp_path / "out")["y"].any()


def test_other_settings_are_refused(tmp_path: pathlib.Path, double: pathlib.Path) -> None:
    np.save(tmp_path / "x.npy", np.zeros((6, 2), np.float32))
    flags = ("--format=npz", "--output", tmp_path / "out")
    done(double, tmp_path / "x.npy", *flags)

    def refused(*more: str | pathlib.Path) -> str:
        ended = batch(double, tmp_path / "x.npy", *flags, *more)
        assert ended.returncode == 2
        return ended.stderr

    assert "rows_per_part: was 4096, is 3" in refused("--rows-per-part=3")
    np.save(tmp_path / "x.npy", np.ones((6, 2), np.float32))
    assert f'inputs[0]: was {{"path": "{tmp_path / "x.npy"}"' in refused()
    models.save(models.scaled(3, ("batch", 2)), double)
    assert "model.sha256: was" in refused()


@pytest.mark.parametrize(
    ("columns", "flags", "code", "said"),
    [
        ("p,q\n1,2\n", (), 2, "input 'x': expected a column 'x' in every file, got 'p', 'q'"),
        ("p,q\n1,2\n3,no\n", ("--input=x=p,q",), 1, "row 1, column 'q': expected FP32, got 'no'"),
        ("x\n[1]\n", (), 1, "row 0, column 'x': expected shape [2] (-1: any), got [1]"),
        ("x\n[1,2]\n", ("--outputs=z",), 2, "--outputs: expected some of 'y', got 'z'"),
        ("x\n[1,2]\n", ("--keep=z",), 2, "--keep: expected columns of every file, 'x'; got 'z'"),
        ("x\n[1,2]\n", ("--input=x",), 2, "--input: expected NAME=COLUMN"),
        ("x\n[1,2]\n", ("--model=other",), 2, "--model: expected one of double, got other"),
    ],
)
def test_what_is_wrong_is_named(
    tmp_path: pathlib.Path,
    double: pathlib.Path,
    columns: str,
    flags: Sequence[str],
    code: int,
    said: str,
) -> None:
    (tmp_path / "in.csv").write_text(columns)
    output = ("--format=npz", "--output", tmp_path / "out")
    ended = batch(double, tmp_path / "in.csv", *output, *flags)
    assert (ended.returncode, ended.stdout) == (code, "")
    assert said in ended.stderr
    assert "Traceback" not in ended.stderr
