"""A fixed number of runs of a coverage-guided fuzzer."""

from __future__ import annotations

import importlib.util
import os
import pathlib
import re
import subprocess
import sys

import pytest

needs_atheris = pytest.mark.skipif(
    importlib.util.find_spec("atheris") is None, reason="atheris is not installed: Linux alone"
)
_TESTS = pathlib.Path(__file__).parents[1]


def fuzz(program: pathlib.Path, runs: int, corpus: dict[str, bytes], folder: pathlib.Path) -> None:
    """Runs `program` on mutations of `corpus`, the same ones each time. Fails with what it says if
    it finds anything; the input is then in `folder`."""
    seeds = folder / "corpus"
    seeds.mkdir()
    for name, data in corpus.items():
        (seeds / name).write_bytes(data)
    longest = max(map(len, corpus.values()))
    arguments = [f"-runs={runs}", "-seed=1", f"-max_len={max(512, longest)}"]
    path = os.pathsep.join([str(_TESTS), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, program, *arguments, f"-artifact_prefix={folder}/", seeds],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
        env={**os.environ, "PYTHONPATH": path},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert re.search(rf"Done {runs} runs", done.stderr)
