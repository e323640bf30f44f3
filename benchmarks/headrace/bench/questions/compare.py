"""Two reports side by side: what changed, and what was not the same to begin with."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from statistics import median
from typing import Any

from headrace.bench.questions import failed_share
from headrace.bench.results import Measurement, Report, Section

Key = tuple[str, str, str]
_GOODPUT = "goodput"


@dataclass(frozen=True, slots=True)
class Change:
    """One figure of what both reports measured: medians where it was measured several times."""

    section: str
    target: str
    label: str
    figure: str
    before: float
    after: float

    @property
    def ratio(self) -> float | None:
        """after / before; None where there was nothing before."""
        return self.after / self.before if self.before else None


@dataclass(frozen=True, slots=True)
class Comparison:
    """`differences` are circumstances that the reports do not share, which may explain any change:
    (what, before, after). `missing` was measured in one report only."""

    changes: tuple[Change, ...]
    differences: tuple[tuple[str, str, str], ...]
    missing: tuple[str, ...]


def compare(before: Report, after: Report) -> Comparison:
    """Matches sections by kind and title, and in them measurements by target and label.

    Two reports are two runs: no interval says whether a change is real, as it does where sides
    alternate in one run.
    """
    old, new = _figures(before), _figures(after)
    changes = [
        Change(*key, figure, old[key][figure], value)
        for key, figures in new.items()
        if key in old
        for figure, value in figures.items()
        if figure in old[key] and not (figure == _GOODPUT and _all_good(old[key], figures))
    ]
    missing = [f"{' / '.join(key)}: only in the first" for key in old if key not in new]
    missing += [f"{' / '.join(key)}: only in the second" for key in new if key not in old]
    return Comparison(tuple(changes), tuple(_differences(before, after)), tuple(missing))


def _all_good(*both: Mapping[str, float]) -> bool:
    """Whether goodput is the throughput in both, and says nothing more."""
    return all(figures[_GOODPUT] == figures.get("throughput") for figures in both)


def _figures(report: Report) -> dict[Key, dict[str, float]]:
    """Figures by section, target and label; facts have neither target nor label."""
    found: dict[Key, dict[str, float]] = {}
    repeated = Counter((section.kind, section.title) for section in report.sections)
    for section in report.sections:
        title = section.title
        if repeated[section.kind, section.title] > 1:
            title += f" ({section.kind} {report.sections.index(section) + 1})"
        numbers = {k: float(v) for k, v in section.facts.items() if isinstance(v, int | float)}
        if numbers:
            found[title, "", ""] = numbers
        if section.kind != "search":  # its probes are where the search went, not what was asked
            for (target, label), group in _groups(section).items():
                found[title, target, label] = _medians(group)
    return found


def _groups(section: Section) -> dict[tuple[str, str], list[Measurement]]:
    groups: dict[tuple[str, str], list[Measurement]] = {}
    for place, measurement in enumerate(section.measurements):
        label = section.labels[place] if place < len(section.labels) else _load(measurement.load)
        if section.kind == "versus":
            label = _load(measurement.load)
        groups.setdefault((measurement.target, label), []).append(measurement)
    return groups


def _load(load: Mapping[str, Any]) -> str:
    return ", ".join(f"{key} {value}" for key, value in load.items() if value is not None)


def _medians(group: list[Measurement]) -> dict[str, float]:
    values: dict[str, list[float]] = {}
    for measurement in group:
        for figure, value in _values(measurement):
            values.setdefault(figure, []).append(value)
    return {figure: median(each) for figure, each in values.items()}


def _values(measurement: Measurement) -> Iterator[tuple[str, float]]:
    yield "throughput", measurement.throughput
    yield _GOODPUT, measurement.goodput
    if measurement.latency:
        for figure in ("p50_ms", "p99_ms"):
            yield figure, getattr(measurement.latency, figure)
    yield "failed_share", failed_share(measurement)
    if measurement.server:
        yield "cpu_us_per_request", measurement.server.cpu_us_per_request
        yield "peak_memory_mb", measurement.server.peak_memory_mb
    if measurement.pulse:
        yield "pulse_p99_ms", measurement.pulse.p99_ms


def _differences(before: Report, after: Report) -> Iterator[tuple[str, str, str]]:
    circumstances = [
        (before.machine, after.machine, "machine"),
        (before.versions, after.versions, "version"),
        ({"seed": before.seed}, {"seed": after.seed}, "run"),
        ({"command": " ".join(before.command)}, {"command": " ".join(after.command)}, "run"),
    ]
    targets = {str(t.get("name")): t for t in before.targets}
    for target in after.targets:
        name = str(target.get("name"))
        if name in targets:
            circumstances.append((_about(targets[name]), _about(target), f"target {name}"))
    for old, new, what in circumstances:
        for key in sorted(old.keys() | new.keys()):
            if old.get(key) != new.get(key):
                yield f"{what}: {key}", _words(old.get(key)), _words(new.get(key))


def _about(target: Mapping[str, Any]) -> dict[str, Any]:
    """What makes a target what it is: not its address or process, which change with each run."""
    about = dict(target.get("about") or {})
    return about | {key: target.get(key) for key in ("protocol", "transport", "adaptor")}


def _words(value: Any) -> str:
    return "unknown" if value is None else str(value)
