"""Starts, one after the other: when ready, how large at idle, and what the first requests see."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from bench.fakes import job, measurement
from headrace.bench.questions import start as question
from headrace.bench.spec import Job


class Server:
    """Leaves something in the user's cache, and takes 5 s where it finds nothing there."""

    def __init__(self, pid: int | None) -> None:
        self.pid = pid

    @contextmanager
    def __call__(self) -> Iterator[Job]:
        kept = Path(os.environ["XDG_CACHE_HOME"], "plan")
        seconds = 1.0 if kept.exists() else 5.0
        kept.touch()
        given = job()
        about = {"ready_seconds": seconds}
        yield given.model_copy(
            update={"target": given.target.model_copy(update={"about": about, "pid": self.pid})}
        )


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(question, "_SETTLED", 0.0)


def test_the_first_start_has_no_cache_and_later_ones_have(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/nowhere")
    found = question.start("ours", Server(os.getpid()), 3, measurement)
    assert found.facts["ready_first_seconds"] == 5.0
    assert found.facts["ready_again_seconds"] == 1.0
    assert found.labels == ("first start", "start 2", "start 3")
    assert os.environ["XDG_CACHE_HOME"] == "/nowhere"


def test_memory_at_idle_is_that_of_the_servers_process() -> None:
    facts = question.start("ours", Server(os.getpid()), 2, measurement).facts
    for name in ("idle_memory_first_mb", "idle_memory_again_mb"):
        megabytes = facts[name]
        assert isinstance(megabytes, float)
        assert megabytes > 10  # an interpreter with NumPy


def test_what_cannot_be_looked_at_is_not_told() -> None:
    facts = question.start("ours", Server(None), 1, measurement).facts
    assert facts["idle_memory_first_mb"] is None
    assert facts["idle_memory_again_mb"] is None
    assert facts["ready_again_seconds"] is None
