"""What a report says in sentences: the answer to each question, whether a difference is real, and
what to be wary of."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from headrace.bench.reports.figures import (
    NOTHING,
    Row,
    failed,
    label,
    names,
    number,
    rows,
    share,
)
from headrace.bench.results import Measurement, Ratio, Report, Section

Judgement = Literal["better", "worse", "higher", "lower", "no difference shown", "too few turns"]

_FIGURES = {
    "p50": "p50 latency",
    "p90": "p90 latency",
    "p99": "p99 latency",
    "p999": "p99.9 latency",
    "p99.9": "p99.9 latency",
    "max": "longest latency",
    "pulse_p99": "p99 latency of a small call beside",
    "mean": "mean latency",
    "cpu_us_per_request": "server CPU per request",
    "cpu": "server CPU per request",
    "peak_memory": "peak memory",
    "memory": "peak memory",
    "rate": "highest rate",
}
_TOLD_APART = 4  # pairs of sides that get a sentence each
_MORE_IS_BETTER = ("throughput", "goodput", "highest rate")
_LESS_IS_BETTER = ("latency", "CPU", "memory", "energy", "error", "fail", "queue", "start")


def figure_words(figure: str) -> str:
    """`p99_ms` and `latency.p99_ms` are the "p99 latency"."""
    bare = figure.rsplit(".", 1)[-1] if figure.count(".") and "99.9" not in figure else figure
    for unit in ("_ms", "_mb", "_seconds"):
        bare = bare.removesuffix(unit)
    return _FIGURES.get(bare, bare.replace("_", " "))


def judgement(ratio: Ratio) -> Judgement:
    """Whether the side is better than the base. Only of a real difference, and only where it is
    known which way is better; else merely higher or lower."""
    if not ratio.real:
        return "no difference shown" if ratio.low <= 1 <= ratio.high else "too few turns"
    figure, more = figure_words(ratio.figure), ratio.median > 1
    if any(word in figure for word in _MORE_IS_BETTER):
        return "better" if more else "worse"
    if any(word in figure for word in _LESS_IS_BETTER):
        return "worse" if more else "better"
    return "higher" if more else "lower"


def times(ratio: Ratio, value: float) -> str:
    """One of the ratio's figures, to as many decimals as tell all of them from 1."""
    if not math.isfinite(value):
        return NOTHING
    return f"{value:.{3 if ratio.low > 0.9 and ratio.high < 1.1 else 2}f}"


def interval_words(ratio: Ratio) -> str:
    """The median, and the interval in brackets."""
    median, low, high = (times(ratio, v) for v in (ratio.median, ratio.low, ratio.high))
    return f"{median}× ({low} to {high})"


def ratio_grid(ratios: Sequence[Ratio]) -> tuple[list[str], list[tuple[str, list[Ratio | None]]]]:
    """The figures compared, and for each pair of sides its ratio of each figure."""
    figures = list(dict.fromkeys(ratio.figure for ratio in ratios))
    pairs: dict[tuple[str, str], dict[str, Ratio]] = {}
    for ratio in ratios:
        pairs.setdefault((ratio.side, ratio.base), {})[ratio.figure] = ratio
    return [figure_words(figure) for figure in figures], [
        (f"{side} ÷ {base}", [found.get(figure) for figure in figures])
        for (side, base), found in pairs.items()
    ]


def cell_words(ratio: Ratio | None) -> str:
    """A ratio in a table that is read by row and column."""
    if ratio is None:
        return NOTHING
    judged = judgement(ratio)
    return f"{interval_words(ratio)}, {'not shown' if judged == 'no difference shown' else judged}"


def verdict(ratio: Ratio) -> str:
    """A whole sentence: what the ratio is, how sure it is, and what that means."""
    judged = judgement(ratio)
    meant = f"a real difference, {judged}" if ratio.real else judged
    if judged == "too few turns":
        meant = f"{judged} ({ratio.turns}) to call that real"
    return (
        f"{figure_words(ratio.figure)} of {ratio.side} is {interval_words(ratio)} that of "
        f"{ratio.base}: {meant}"
    )


def answer(section: Section) -> str:
    """The section's question, answered in one sentence."""
    if not section.measurements and not section.facts:
        return "Nothing was measured."
    written = _ANSWERS[section.kind](section)
    return written or _load(section) or facts_words(section) or "Nothing was measured."


def _load(section: Section) -> str:
    lines = rows(section)
    if not lines:
        return ""
    if len(lines) == 1:
        return f"{_sentence(lines[0].measurements[0])}."
    best = max(section.measurements, key=lambda m: m.throughput)
    name = names(lines)[section.measurements.index(best)]
    return f"The highest throughput was at {name}: {_sentence(best)}."


def _sentence(m: Measurement) -> str:
    said = f"{number(m.throughput)} requests/s"
    if m.latency and m.latency.count:
        said += f" with p50 {number(m.latency.p50_ms)} ms and p99 {number(m.latency.p99_ms)} ms"
    bad = failed(m)
    if m.goodput < m.throughput:
        said += f"; {number(m.goodput)}/s within their deadline"
    return f"{said}; {share(bad)} failed" if bad else said


def _search(section: Section) -> str:
    rate = section.facts.get("rate")
    if not isinstance(rate, int | float):
        return f"No rate was found at which {_objective(section)}."
    low, high = section.facts.get("low"), section.facts.get("high")
    said = f"{number(rate)} requests/s is the highest rate at which {_objective(section)}"
    if isinstance(low, int | float) and isinstance(high, int | float):
        if low < rate:
            return f"{said} (it lies between {number(low)} and {number(high)})."
        return f"{said}; {number(high)} was too much."
    return f"{said}, of those tried." if high is None else f"{said}."


def _objective(section: Section) -> str:
    limit = section.facts.get("objective_ms")
    if not isinstance(limit, int | float):
        return "the objective is met"
    return f"{section.facts.get('percentile') or 'p99'} stays under {limit:g} ms"


def _curve(section: Section) -> str:
    said = []
    saturation = section.facts.get("saturation")
    if isinstance(saturation, int | float):
        said.append(f"Saturation is {number(saturation)} requests/s.")
    targets = list(dict.fromkeys(m.target for m in section.measurements))
    for target in targets:
        ends = [
            (label(section, place), m.latency)
            for place, m in enumerate(section.measurements)
            if m.target == target and m.latency and m.latency.count
        ]
        if len(ends) > 1:
            (first, low), (last, high) = ends[0], ends[-1]
            said.append(
                f"From {first} to {last}, p50 {f'of {target} ' if len(targets) > 1 else ''}goes "
                f"from {number(low.p50_ms)} to {number(high.p50_ms)} ms and p99 from "
                f"{number(low.p99_ms)} to {number(high.p99_ms)} ms."
            )
    return " ".join(said)


def _versus(section: Section) -> str:
    pairs = dict.fromkeys((ratio.side, ratio.base) for ratio in section.ratios)
    if len(pairs) > _TOLD_APART:
        return _against_many(section.ratios)
    told: list[Ratio] = []
    for pair in pairs:
        first = _first([ratio for ratio in section.ratios if (ratio.side, ratio.base) == pair])
        told += first if len(pairs) <= 2 else [_telling(first)]
    return " ".join(f"{_capital(verdict(ratio))}." for ratio in told)


def _against_many(ratios: Sequence[Ratio]) -> str:
    """The first figure alone, the sides put together by what was found."""
    figure = ratios[0].figure
    found: dict[Judgement, list[Ratio]] = {}
    for ratio in (r for r in ratios if r.figure == figure):
        found.setdefault(judgement(ratio), []).append(ratio)
    told = []
    for judged, group in found.items():
        than = {
            "no difference shown": "no difference was shown from",
            "too few turns": f"too few turns ({group[0].turns}) to call it different from",
        }.get(judged, f"{judged} than")
        told.append(f"{than} {', '.join(f'{r.base} ({times(r, r.median)}×)' for r in group)}")
    return f"{_capital(figure_words(figure))} of {ratios[0].side}: {'; '.join(told)}."


def _first(ratios: Sequence[Ratio]) -> list[Ratio]:
    """The two that a summary has room for: throughput and p99, real or not, where there are any."""
    order = {"throughput": 0, "p99 latency": 1}
    return sorted(ratios, key=lambda ratio: order.get(figure_words(ratio.figure), 2))[:2]


def _telling(ratios: Sequence[Ratio]) -> Ratio:
    """The first whose difference is real, or else the first."""
    return next((ratio for ratio in ratios if ratio.real), ratios[0])


def _start(section: Section) -> str:
    return facts_words(section)


_ANSWERS: dict[str, Callable[[Section], str]] = {
    "load": _load,
    "search": _search,
    "curve": _curve,
    "versus": _versus,
    "start": _start,
}


def facts_words(section: Section) -> str:
    """Every fact: "ready: 1.2 s; first answer: 35 ms." """
    said = "; ".join(f"{name}: {value}" for name, value in facts(section))
    return f"{_capital(said)}." if said else ""


_UNITS = (("_ms", " ms"), ("_seconds", " s"), ("_s", " s"), ("_mb", " MB"))
_RATES = ("rate", "low", "high", "saturation", "goodput", "throughput")


def facts(section: Section) -> list[tuple[str, str]]:
    """Names and values as read by people; a unit at the end of a name goes to the value."""
    return [_fact(key, value) for key, value in section.facts.items()]


def _fact(key: str, value: float | str | None) -> tuple[str, str]:
    suffix, unit = next((pair for pair in _UNITS if key.endswith(pair[0])), ("", ""))
    name = key.removesuffix(suffix).replace("_", " ")
    if isinstance(value, str):
        return name, value
    if value is None or not math.isfinite(value):
        return name, NOTHING
    if "share" in name.split():
        return name, share(value)
    if not unit and any(word in name for word in _RATES):
        unit = "/s"
    return name, (f"{value:,.0f}" if value == round(value) else number(value)) + unit


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


@dataclass(frozen=True, slots=True)
class Concern:
    """Something to know before the figures are believed, and where it holds."""

    text: str
    where: str


def concerns(report: Report) -> list[Concern]:
    """What was warned of, each once, with the measurements it holds for."""
    out: list[Concern] = []
    for section in report.sections:
        found: dict[str, list[str]] = {}
        lines = rows(section)
        for line, name in zip(lines, names(lines), strict=True):
            for text in warned(line):
                found.setdefault(text, []).append(name)
        out.extend(
            Concern(text, _where(section, named, len(lines))) for text, named in found.items()
        )
    return out


LIMITED = "The load generator was the bottleneck: the server can do better than these figures."


def warned(line: Row) -> list[str]:
    """All warnings of a line's measurements, each once."""
    texts: list[str] = []
    for m in line.measurements:
        texts.extend([LIMITED] if m.client.limiting else [])
        texts.extend((*m.client.warnings, *m.warnings))
    return list(dict.fromkeys(texts))


def _where(section: Section, named: Sequence[str], of: int) -> str:
    if of == 1:
        return section.title
    if len(named) == of:
        return f"{section.title}: all {of} measurements"
    if len(named) <= 3:
        return f"{section.title}: {'; '.join(named)}"
    return f"{section.title}: {len(named)} of {of} measurements"


def headline(section: Section) -> tuple[str, str]:
    """The figure that a glance should take away, and what it is; empty where none stands out."""
    if section.kind == "search":
        rate = section.facts.get("rate")
        return (number(rate), "requests/s") if isinstance(rate, int | float) else ("none", "")
    if section.kind == "versus" and section.ratios:
        if len({(ratio.side, ratio.base) for ratio in section.ratios}) > 1:
            return "", ""
        ratio = _telling(_first(section.ratios))
        return f"{times(ratio, ratio.median)}×", figure_words(ratio.figure)
    one = len({m.target for m in section.measurements}) == 1
    if section.kind in ("load", "curve") and one:
        best = section.facts.get("saturation")
        if not isinstance(best, int | float):
            best = max(m.throughput for m in section.measurements)
        return number(best), "requests/s"
    return "", ""
