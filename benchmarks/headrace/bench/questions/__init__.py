"""Questions that take more than one measurement. Each is given a way to measure, and loads to try;
none knows how a request travels."""

from __future__ import annotations

from collections.abc import Callable

from headrace.bench.results import Measurement
from headrace.bench.spec import Job, Load, OpenLoad

Measure = Callable[[Job], Measurement]


def under(job: Job, load: Load, *, turn: int = 0, duration: float | None = None) -> Job:
    """`job` with another load. Each turn has dice of its own, the same for all sides."""
    return job.model_copy(
        update={"load": load, "seed": job.seed + turn, "duration": duration or job.duration}
    )


def open_load(job: Job, rate: float) -> OpenLoad:
    """Arrivals at `rate`, by the job's law where it has one, else Poisson."""
    load = job.load if isinstance(job.load, OpenLoad) else OpenLoad(rate=rate)
    return load.model_copy(update={"rate": rate})


def failed_share(measurement: Measurement) -> float:
    """The share of what was sent that ended in an error, or not at all."""
    failed = sum(measurement.errors.values()) + measurement.unfinished
    return failed / measurement.sent if measurement.sent else 1.0


def figure(rate: float) -> str:
    """A rate for a label: three digits at least, and no fraction that says nothing."""
    return f"{rate:.0f}" if rate >= 100 else f"{rate:.3g}"
