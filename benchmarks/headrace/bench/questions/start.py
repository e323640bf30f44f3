"""From starting a server to its first answers."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from statistics import median

from headrace.bench.questions import Measure, under
from headrace.bench.results import Section
from headrace.bench.spec import ClosedLoad, Job

Starting = Callable[[], AbstractContextManager[Job]]
"""Starts a side; entered when it is ready, left when it has stopped."""

READY_SECONDS = "ready_seconds"
"""What a target may say of itself: seconds from its start, without what came before it, such as an
installation."""


def start(name: str, starting: Starting, turns: int, measure: Measure) -> Section:
    """Starts and stops the side `turns` times. The first time, what it keeps in the user's cache
    is not there; later it is what it left. One caller measures, without warm-up.

    Whatever `starting` raises comes through.
    """
    seconds, measurements = [], []
    with _empty_cache():
        for turn in range(turns):
            began = time.monotonic()
            with starting() as job:
                took = job.target.about.get(READY_SECONDS, time.monotonic() - began)
                seconds.append(float(took))
                cold = under(job, ClosedLoad(), turn=turn).model_copy(update={"warm_up": 0.0})
                measurements.append(measure(cold))
    slowest = [m.latency.max_ms for m in measurements if m.latency]
    return Section(
        title=f"{name}: from start to ready, and the first answers",
        kind="start",
        measurements=tuple(measurements),
        labels=("first start", *(f"start {turn + 1}" for turn in range(1, turns))),
        facts={
            "ready_first_seconds": seconds[0],
            "ready_again_seconds": median(seconds[1:]) if turns > 1 else None,
            "slowest_of_the_first_answers_ms": median(slowest) if slowest else None,
        },
        notes=(
            "A first start finds nothing in the user's cache; files that the system itself keeps "
            "in memory are not dropped. Ready means that the server says so.",
        ),
    )


@contextmanager
def _empty_cache() -> Iterator[None]:
    """Processes started inside find the user's cache (XDG_CACHE_HOME) empty at first."""
    before = os.environ.get("XDG_CACHE_HOME")
    with tempfile.TemporaryDirectory() as folder:
        os.environ["XDG_CACHE_HOME"] = folder
        try:
            yield
        finally:
            if before is None:
                del os.environ["XDG_CACHE_HOME"]
            else:
                os.environ["XDG_CACHE_HOME"] = before
