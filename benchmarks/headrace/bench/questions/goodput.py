"""What is answered in time, as the load goes past what the target can do."""

from __future__ import annotations

from collections.abc import Sequence

from headrace.bench.errors import BenchError
from headrace.bench.questions import Measure, figure, open_load, under
from headrace.bench.results import Section
from headrace.bench.spec import Job


def goodput(job: Job, rates: Sequence[float], measure: Measure) -> Section:
    """OK answers within their deadline per second, at each of `rates` in turn.

    Raises BenchError where no request of the job has a deadline: all answers would count.
    """
    if not any(request.deadline for request in job.requests):
        raise BenchError(f"{job.target.name}: goodput needs a request with a deadline")
    measurements = [
        measure(under(job, open_load(job, rate), turn=turn)) for turn, rate in enumerate(rates)
    ]
    best = max(measurements, key=lambda measurement: measurement.goodput)
    last = measurements[-1]
    return Section(
        title=f"{job.target.name}: goodput under deadlines",
        kind="load",
        measurements=tuple(measurements),
        labels=tuple(f"{figure(rate)}/s" for rate in rates),
        facts={
            "highest_goodput": best.goodput,
            "goodput_at_the_highest_rate": last.goodput,
            "share_kept": last.goodput / best.goodput if best.goodput else None,
        },
    )
