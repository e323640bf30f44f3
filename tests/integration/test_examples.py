"""The programs in examples/, run as a reader would run them."""

from __future__ import annotations

import pathlib
import subprocess
import sys

import pytest

from support import server

FOLDER = pathlib.Path(__file__).parents[2] / "examples"
EXAMPLES = sorted(path for path in FOLDER.glob("*.py") if path.stem != "make_model")


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_it_runs_and_says_what_it_got(tmp_path: pathlib.Path, example: pathlib.Path) -> None:
    target = tmp_path / "doubled.onnx"
    subprocess.run([sys.executable, FOLDER / "make_model.py", target], check=True)
    with server.serving(tmp_path / "log", target) as running:
        done = subprocess.run(
            [sys.executable, "-W", "error", example, running.grpc],
            capture_output=True,
            text=True,
            timeout=server.PATIENCE,
            check=False,
        )
    assert done.returncode == 0, done.stderr
    assert "doubled" in done.stdout
    assert "y" in done.stdout


def test_there_are_examples() -> None:
    assert {path.stem for path in EXAMPLES} >= {"call_async", "call_sync", "stream"}
