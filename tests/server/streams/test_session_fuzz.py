"""A fixed number of runs of the coverage-guided fuzzer of sessions."""

from __future__ import annotations

import pathlib
import random

from support.fuzzing import fuzz, needs_atheris

PROGRAM = pathlib.Path(__file__).with_name("fuzz_session.py")


@needs_atheris
def test_no_bytes_surprise_a_session(tmp_path: pathlib.Path) -> None:
    """Long inputs, made at random, reach more steps than the fuzzer would grow by itself."""
    corpus = {f"{seed}": random.Random(seed).randbytes(600) for seed in range(20)}
    fuzz(PROGRAM, 10_000, corpus, tmp_path)
