"""The benchmark of streams, with next to no load: that every side runs and is answered in full."""

from __future__ import annotations

import os
import pathlib
import re
import subprocess
import sys

from support.server import PATIENCE

PROGRAM = pathlib.Path(__file__).parents[2] / "benchmarks" / "streams.py"


def test_every_side_is_answered_in_full() -> None:
    settings = ["--sessions=6", "--rate=10", "--seconds=0.5", "--repeats=1", "--idle=10"]
    settings += ["--processes=2"]
    done = subprocess.run(
        [sys.executable, "-W", "error", PROGRAM, *settings],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
        env={**os.environ, "COLUMNS": "120"},
    )
    assert done.returncode == 0, done.stderr
    rows = re.findall(r"│ (\w[\w ]*?) +│ \d+ +│ ([\d.]+%)", done.stdout)
    assert rows == [
        ("streams", "100.0%"),
        ("unary", "100.0%"),
        ("streams with state", "100.0%"),
        ("sequences", "100.0%"),
    ], done.stdout
    assert "memory of an idle session" in done.stdout
