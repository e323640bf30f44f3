"""Latency by share of saturation: what a target does at most, and what it costs to come near."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from headrace.bench.errors import BenchError
from headrace.bench.questions import Measure, figure, open_load, under
from headrace.bench.results import Measurement, Section
from headrace.bench.spec import ClosedLoad, Job

SHARES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.1)

_FIRST_CALLERS, _MOST_CALLERS, _GAIN = 8, 512, 1.05


@dataclass(frozen=True, slots=True)
class Saturation:
    """The highest throughput of a target in a closed loop, and the runs that found it."""

    rate: float
    callers: int
    section: Section


def saturation(job: Job, measure: Measure) -> Saturation:
    """Doubles the callers until that adds less than 5 % to the throughput.

    Raises BenchError, naming the target and what it answered, where nothing was answered.
    """
    runs: list[tuple[int, Measurement]] = []
    callers = _FIRST_CALLERS
    while callers <= _MOST_CALLERS:
        runs.append((callers, measure(under(job, ClosedLoad(callers=callers), turn=len(runs)))))
        if len(runs) > 1 and runs[-1][1].throughput < _GAIN * runs[-2][1].throughput:
            break
        callers *= 2
    best, measurement = max(runs, key=lambda run: run[1].throughput)
    if not measurement.throughput:
        statuses = ", ".join(f"{status} {n}" for status, n in measurement.errors.items())
        raise BenchError(f"{job.target.name}: nothing was answered OK, but {statuses or 'nothing'}")
    limiting = measurement.client.limiting
    return Saturation(
        measurement.throughput,
        best,
        Section(
            title=f"{job.target.name}: saturation",
            kind="load",
            measurements=tuple(run for _, run in runs),
            labels=tuple(f"{callers} callers" for callers, _ in runs),
            facts={"saturation": measurement.throughput, "callers": float(best)},
            notes=("The load generator was the limit: the server may bear more.",) * limiting,
        ),
    )


def curve(
    sides: Sequence[Job], measure: Measure, shares: Sequence[float] = SHARES
) -> tuple[Section, ...]:
    """Each side's saturation in a closed loop; then open loads at `shares` of it, the sides
    alternating, in one section."""
    found = [saturation(job, measure) for job in sides]
    measurements, labels = [], []
    for turn, share in enumerate(shares):
        order = range(len(sides))
        for place in (*order[turn % len(sides) :], *order[: turn % len(sides)]):
            load = open_load(sides[place], share * found[place].rate)
            measurements.append(measure(under(sides[place], load, turn=turn)))
            labels.append(f"{share:.0%}")
    facts: dict[str, float | str | None] = {
        f"saturation of {job.target.name}" if len(sides) > 1 else "saturation": each.rate
        for job, each in zip(sides, found, strict=True)
    }
    section = Section(
        title=f"{' and '.join(job.target.name for job in sides)}: latency by share of saturation",
        kind="curve",
        measurements=tuple(measurements),
        labels=tuple(labels),
        facts=facts,
        notes=tuple(
            f"Saturation of {job.target.name}: {figure(each.rate)}/s with {each.callers} callers."
            for job, each in zip(sides, found, strict=True)
        ),
    )
    return (*(each.section for each in found), section)
