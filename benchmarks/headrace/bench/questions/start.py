"""From starting a server to its first answers."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from statistics import median

from headrace.bench.questions import Measure, under
from headrace.bench.results import Measurement, Section
from headrace.bench.spec import ClosedLoad, Job

Starting = Callable[[], AbstractContextManager[Job]]
"""Starts a side; entered when it is ready, left when it has stopped."""


def start(sides: Mapping[str, Starting], turns: int, measure: Measure) -> Section:
    """Starts and stops each side `turns` times, in turn. The first time, what servers keep in the
    user's cache is not there; later it is what they left. One caller measures, without warm-up.

    Whatever `sides` raise comes through.
    """
    ready: dict[str, list[float]] = {name: [] for name in sides}
    taken: dict[str, list[Measurement]] = {name: [] for name in sides}
    measurements, labels = [], []
    with _empty_cache():
        for turn in range(turns):
            for name, starting in sides.items():
                began = time.monotonic()
                with starting() as job:
                    ready[name].append(time.monotonic() - began)
                    cold = under(job, ClosedLoad(), turn=turn)
                    found = measure(cold.model_copy(update={"warm_up": 0.0}))
                taken[name].append(found)
                measurements.append(found)
                labels.append("first start" if turn == 0 else f"start {turn + 1}")
    facts: dict[str, float | str | None] = {}
    for name in sides:
        first, *again = ready[name]
        facts[f"{name}_ready_first_seconds"] = first
        facts[f"{name}_ready_again_seconds"] = median(again) if again else None
        slowest = [m.latency.max_ms for m in taken[name] if m.latency]
        facts[f"{name}_slowest_of_the_first_answers_ms"] = median(slowest) if slowest else None
    return Section(
        title="from start to ready, and the first answers",
        kind="start",
        measurements=tuple(measurements),
        labels=tuple(labels),
        facts=facts,
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
