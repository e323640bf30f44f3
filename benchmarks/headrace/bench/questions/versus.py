"""Sides against each other: they alternate in one run, so that what drifts, drifts for all."""

from __future__ import annotations

from collections.abc import Sequence

from headrace.bench.errors import BenchError
from headrace.bench.questions import Measure, under
from headrace.bench.questions.ratios import ENOUGH_TURNS, ratio
from headrace.bench.results import Measurement, Ratio, Section
from headrace.bench.spec import Job

FIGURES = ("throughput", "goodput", "p50_ms", "p99_ms", "cpu_us_per_request", "pulse_p99_ms")

# Of what targets say of themselves: names and sentences, which always differ.
_NOT_COMPARED = (
    "about", "computes", "configuration", "differs", "inputs", "peer", "ready", "ready_seconds",
    "settings", "starts", "version", "words",
)  # fmt: skip


def versus(
    sides: Sequence[Job], turns: int, measure: Measure, *, title: str = "", confidence: float = 0.95
) -> Section:
    """The first side against each other one, as ratios (first / other) of the same turn.

    In each turn every side is measured once, with the same dice; each turn begins with another
    side. Raises BenchError for fewer than two sides, or two of one name.
    """
    names = [job.target.name for job in sides]
    if len(names) < 2 or len(set(names)) < len(names):
        raise BenchError(f"expected two or more sides of different names, got {', '.join(names)}")
    found: dict[str, list[Measurement]] = {name: [] for name in names}
    taken, labels = [], []
    for turn in range(turns):
        first = turn % len(sides)
        for job in (*sides[first:], *sides[:first]):
            measurement = measure(under(job, job.load, turn=turn))
            found[job.target.name].append(measurement)
            taken.append(measurement)
            labels.append(f"turn {turn + 1}")
    ratios, left_out = _ratios(sides, found, confidence)
    return Section(
        title=title or f"{names[0]} against {', '.join(names[1:])}",
        kind="versus",
        measurements=tuple(taken),
        labels=tuple(labels),
        ratios=tuple(ratios),
        notes=(*_differences(sides), *left_out, *_doubts(turns, confidence)),
    )


def _ratios(
    sides: Sequence[Job], found: dict[str, list[Measurement]], confidence: float
) -> tuple[list[Ratio], list[str]]:
    """The ratios, and notes on turns that could not be compared."""
    first, *others = (job.target.name for job in sides)
    deadlines = any(request.deadline for job in sides for request in job.requests)
    ratios, notes = [], []
    for base in others:
        for figure in FIGURES:
            if figure == "goodput" and not deadlines:  # it is the throughput
                continue
            turns = zip(found[first], found[base], strict=True)
            values = [(value(a, figure), value(b, figure)) for a, b in turns]
            pairs = [(ours, theirs) for ours, theirs in values if ours and theirs]
            if not pairs:
                continue
            ours, theirs = (first, [a for a, _ in pairs]), (base, [b for _, b in pairs])
            ratios.append(ratio(figure, ours, theirs, confidence=confidence, seed=sides[0].seed))
            if len(pairs) < len(values):
                notes.append(
                    f"{figure} of {first} and {base}: {len(values) - len(pairs)} of {len(values)} "
                    "turns are left out, because one side had no answer there."
                )
    return ratios, notes


def value(measurement: Measurement, figure: str) -> float | None:
    """A figure of FIGURES, None where it was not measured."""
    if figure == "cpu_us_per_request":
        return measurement.server.cpu_us_per_request if measurement.server else None
    if figure == "pulse_p99_ms":
        return measurement.pulse.p99_ms if measurement.pulse else None
    if figure.endswith("_ms"):
        return float(getattr(measurement.latency, figure)) if measurement.latency else None
    return float(getattr(measurement, figure))


def _differences(sides: Sequence[Job]) -> list[str]:
    """One line for each thing that the targets say of themselves and not all say alike, with those
    that do; and for each side how it is configured, and what sets it apart."""
    keys = dict.fromkeys(key for job in sides for key in job.target.about)
    lines = []
    for key in keys:
        said: dict[str, list[str]] = {}
        for job in sides:
            said.setdefault(str(job.target.about.get(key, "unknown")), []).append(job.target.name)
        if key not in _NOT_COMPARED and len(said) > 1:
            told = "; ".join(f"{', '.join(names)} {value}" for value, names in said.items())
            lines.append(f"{key.replace('_', ' ')}: {told}")
    apart: dict[str, list[str]] = {}
    for job in sides:
        words = job.target.about.get("words")
        for line in (*([words] if words else ()), *job.target.about.get("differs", ())):
            apart.setdefault(line, []).append(job.target.name)
    return lines + [f"{', '.join(names)}: {line}" for line, names in apart.items()]


def _doubts(turns: int, confidence: float) -> list[str]:
    if turns >= ENOUGH_TURNS:
        return []
    return [
        f"{turns} turns are too few to call a difference real with {confidence:.0%} confidence: "
        f"that takes {ENOUGH_TURNS}."
    ]
