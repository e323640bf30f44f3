"""The programs in examples/, run as a reader would run them."""

from __future__ import annotations

import pathlib
import re
import subprocess
import sys
from xml.etree import ElementTree

import pytest

from support import server

FOLDER = pathlib.Path(__file__).parents[2] / "examples"
# Those that are told where the server is. The others bring their own.
ALONE = {"make_model", "voice_activity", "activity"}
EXAMPLES = sorted(
    path for path in FOLDER.glob("*.py") if path.stem not in ALONE and path.stem[0] != "_"
)
CACHE = FOLDER.parent / ".cache" / "examples"


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


def alone(example: str, *arguments: str, needs: str) -> str:
    """What an example that brings its own server prints. It fetches what it needs when a person
    runs it; a test only takes what was fetched."""
    if not list(CACHE.glob(needs)):
        pytest.skip(f"run examples/{example}.py once: it fetches {needs}")
    done = subprocess.run(
        [sys.executable, "-W", "error", FOLDER / f"{example}.py", *arguments],
        capture_output=True,
        text=True,
        timeout=server.PATIENCE,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_activities_are_told_apart(tmp_path: pathlib.Path) -> None:
    plot = tmp_path / "plot.svg"
    said = alone("activity", "--speed=0", "--recordings=12", f"--plot={plot}", needs="aeon-*")
    found = re.search(r"([\d.]+)% of (\d+) windows right", said)
    assert found, said
    assert float(found[1]) > 90
    assert int(found[2]) == 236  # 1200 samples, windows of 25 each 5
    assert ElementTree.parse(plot).getroot().tag.endswith("svg")


def test_every_sentence_is_heard(tmp_path: pathlib.Path) -> None:
    plot = tmp_path / "plot.svg"
    said = alone("voice_activity", "--speed=0", f"--plot={plot}", needs="silero-vad-*")
    assert said.count(" speech until ") == 8
    assert ElementTree.parse(plot).getroot().tag.endswith("svg")


def test_many_streams_hear_what_one_loop_hears() -> None:
    said = alone("voice_activity", "--check", "--sessions=20", needs="silero-vad-*")
    assert "20 streams at once" in said


def test_there_are_examples() -> None:
    assert {path.stem for path in EXAMPLES} >= {"call_async", "call_sync", "stream"}
