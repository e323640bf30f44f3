"""From starting a server to its first answers."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from statistics import median

from headrace.bench.questions import Measure, under
from headrace.bench.results import Section
from headrace.bench.spec import ClosedLoad, Job
from headrace.bench.watch import ServerWatch

Starting = Callable[[], AbstractContextManager[Job]]
"""Starts a side; entered when it is ready, left when it has stopped."""

_SETTLED = 2.0  # seconds after which start-up has let go of what it needed

READY_SECONDS = "ready_seconds"
"""What a target may say of itself: seconds from its start, without what came before it, such as an
installation."""


def start(name: str, starting: Starting, turns: int, measure: Measure) -> Section:
    """Starts and stops the side `turns` times. The first time, what it keeps in the user's cache
    is not there; later it is what it left. Then
    its memory is looked at, and one caller measures, without warm-up.

    Whatever `starting` raises comes through.
    """
    seconds, idle, measurements = [], [], []
    with _empty_cache():
        for turn in range(turns):
            began = time.monotonic()
            with starting() as job:
                took = job.target.about.get(READY_SECONDS, time.monotonic() - began)
                seconds.append(float(took))
                idle.append(_idle_memory(job.target.pid))
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
            "ready_again_seconds": _median(seconds[1:]),
            "idle_memory_first_mb": idle[0],
            "idle_memory_again_mb": _median(idle[1:]),
            "slowest_of_the_first_answers_ms": _median(slowest),
        },
        notes=(
            "A first start finds nothing in the user's cache; files that the system itself keeps "
            "in memory are not dropped. Ready means that the server says so. "
            f"Memory is what its processes have {_SETTLED:g} s later, before any request.",
        ),
    )


def _idle_memory(pid: int | None) -> float | None:
    """Megabytes that a server takes once it has settled; None where it cannot be looked at."""
    if pid is None:
        return None
    time.sleep(_SETTLED)
    return ServerWatch(pid).memory() / 1e6


def _median(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return median(known) if known else None


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
