"""From a section's measurements to its charts: what is drawn against what, and how many."""

from __future__ import annotations

import math
import zlib
from collections.abc import Sequence
from dataclasses import dataclass

from hdrh.codec import HdrCookieException, HdrLengthException
from hdrh.histogram import HdrHistogram

from headrace.bench.reports import charts, svg
from headrace.bench.reports.charts import Heading, Point, Series
from headrace.bench.reports.figures import (
    P50,
    P99,
    Row,
    names,
    number,
    sides,
    summary,
)
from headrace.bench.reports.markup import Markup
from headrace.bench.reports.words import figure_words, interval_words, judgement, verdict
from headrace.bench.results import Distribution, Interval, Section

MOST = 6  # lines whose percentiles are drawn, or charts of one kind in a section
_DRAWN = 4  # lines that one chart has room for
_PAIRS = 3  # pairs of sides whose ratios stand in one chart
_UNREADABLE = (HdrCookieException, HdrLengthException, zlib.error, ValueError, TypeError)
_DEPTHS = (2, 10, 100, 1_000, 10_000, 100_000, 1_000_000)


@dataclass(frozen=True, slots=True)
class Plot:
    """A chart, what it shows, and what one should know to read it. Those of one `group` are small
    and belong side by side."""

    title: str
    drawn: Markup
    caption: str
    group: str = ""


def plots(section: Section, identity: str) -> list[Plot]:
    """All charts that the section has data for. `identity` is unique on the page."""
    made: list[Plot] = []
    for kind in (_curves, _turns, _spectrum):
        made.extend(kind(section, f"{identity}-{kind.__name__.strip('_')}"))
    return [*made, *_times(section, f"{identity}-time"), *_batches(section, f"{identity}-batch")]


def picked(lines: Sequence[Row]) -> list[int]:
    """The places of at most MOST lines: of each target as many, first, last and evenly between."""
    if len(lines) <= MOST:
        return list(range(len(lines)))
    groups: dict[str, list[int]] = {}
    for place, line in enumerate(lines):
        groups.setdefault(line.target, []).append(place)
    each = max(1, MOST // len(groups))
    return [place for group in list(groups.values())[:MOST] for place in _evenly(group, each)]


def _evenly(places: list[int], most: int) -> list[int]:
    if len(places) <= most:
        return places
    if most == 1:
        return places[-1:]
    return [places[round(i * (len(places) - 1) / (most - 1))] for i in range(most)]


def _by_target(section: Section) -> list[Row]:
    """What is drawn: the summary's lines, those of a target together, for an even choice."""
    lines = summary(section)
    targets = list(dict.fromkeys(line.target for line in lines))
    return sorted(lines, key=lambda line: targets.index(line.target))


def _left_out(lines: Sequence[Row]) -> str:
    drawn = len(picked(lines))
    return f" ({drawn} of {len(lines)} measurements)" if drawn < len(lines) else ""


def _offered(row: Row) -> tuple[float, str] | None:
    """What drives a load, as a number and what it is."""
    load = row.measurements[0].load
    for key, title in (
        ("rate", "offered requests/s"),
        ("callers", "callers"),
        ("sessions", "sessions"),
        ("count", "requests at once"),
    ):
        value = load.get(key)
        if isinstance(value, int | float) and value > 0:
            return float(value), title
    return None


def _curves(section: Section, identity: str) -> list[Plot]:
    """p50 and p99 of each target against what was offered, where that was varied."""
    lines = sides(section)
    offered = [_offered(line) for line in lines]
    if len({o for o in offered if o}) < 3 or len({o[1] for o in offered if o}) != 1:
        return []
    x_title = next(o[1] for o in offered if o)
    targets = list(dict.fromkeys(line.target for line in lines))[:_DRAWN]
    series = []
    for place, target in enumerate(targets):
        own = [
            (o[0], line)
            for line, o in zip(lines, offered, strict=True)
            if line.target == target and o
        ]
        for column, minor in ((P99, False), (P50, True)):
            medians = sorted((x, line.value(column) or 0.0) for x, line in own)
            points = tuple((x, y) for x, y in medians if y > 0)
            name = column.title + (f" {target}" if len(targets) > 1 else "")
            tips = tuple(f"{name} at {number(x)}: {number(y)} ms" for x, y in points)
            series.append(Series(name, points, place, minor, tips))
    if not any(one.points for one in series):
        return []
    values = [point for one in series for point in one.points]
    xs = [x for x, _ in values]
    spread_out = x_title != "offered requests/s" and max(xs) / min(xs) > 10
    title = f"Latency against {x_title}"
    drawn = charts.lines(
        Heading(identity, title, _told(series)),
        svg.logarithmic(xs) if spread_out else svg.linear(xs),
        svg.logarithmic(y for _, y in values),
        series,
        (x_title, "latency, ms"),
    )
    return [Plot(title, drawn, "p99 is solid, p50 dashed.")]


def _turns(section: Section, identity: str) -> list[Plot]:
    """p99 turn by turn, where sides alternate: the noise in which their difference is judged."""
    lines = sides(section)
    if section.kind != "versus" or len(lines) < 2 or max(len(s.measurements) for s in lines) < 2:
        return []
    series = []
    for place, (line, name) in enumerate(zip(lines[:_DRAWN], names(lines), strict=False)):
        points = tuple(
            (float(turn), value)
            for turn, m in enumerate(line.measurements, 1)
            if (value := P99.of(m) or 0.0) > 0
        )
        tips = tuple(f"{name}, turn {x:g}: p99 {number(y)} ms" for x, y in points)
        series.append(Series(name, points, place, False, tips))
    values = [y for one in series for _, y in one.points]
    if not values:
        return []
    most = max(len(line.measurements) for line in lines)
    step = math.ceil(most / 10)
    x = svg.Axis(0.5, most + 0.5, tuple((float(t), str(t)) for t in range(1, most + 1, step)))
    heading = Heading(identity, "p99 turn by turn", _told(series))
    drawn = charts.lines(heading, x, svg.logarithmic(values), series, ("turn", "p99, ms"))
    said = "The sides took turns under the same load."
    if len(lines) > _DRAWN:
        said += f" The first {_DRAWN} of {len(lines)} sides are drawn."
    return [Plot("p99 turn by turn", drawn, said)]


def _told(series: Sequence[Series]) -> str:
    """Every line in words, by at most a dozen of its points."""
    told = []
    for one in series:
        step = max(1, math.ceil(len(one.points) / 12))
        points = ", ".join(f"{number(x)}: {number(y)} ms" for x, y in one.points[::step])
        told.append(f"{one.name}: {points or 'nothing'}")
    return "; ".join(told) + "."


def spectrum(distributions: Sequence[Distribution]) -> list[Point]:
    """(1 / (1 - p), latency in ms) of all distributions together, from the median to the slowest,
    about 25 to a decade. Raises ValueError for a histogram that can't be read."""
    total = HdrHistogram(1, 3_600_000_000, 3)
    for one in distributions:
        if one.count and one.histogram:
            try:
                total.add(HdrHistogram.decode(one.histogram.encode()))
            except _UNREADABLE as error:
                raise ValueError(f"a histogram that can't be read: {error}") from error
    count = total.get_total_count()
    if not count:
        return []
    steps = math.floor(25 * math.log10(max(count / 2, 1)))
    depths = [2 * 10 ** (i / 25) for i in range(steps + 1)]
    values = total.get_percentile_to_value_dict([100 * (1 - 1 / depth) for depth in depths])
    points = list(zip(depths, (value / 1000 for value in values.values()), strict=True))
    return [*points, (max(2.0, float(count)), total.get_max_value() / 1000)]


def _spectrum(section: Section, identity: str) -> list[Plot]:
    lines = _by_target(section)
    called = names(lines)
    ordered = len(lines) > 3 and len({line.target for line in lines}) == 1
    series = []
    chosen = picked(lines)
    for place, i in enumerate(chosen):
        measured = [m.latency for m in lines[i].measurements if m.latency]
        shade = place / (len(chosen) - 1) if ordered else None
        series.append(_spectral(called[i], spectrum(measured), place, shade))
    if len(lines) == 1 and lines[0].measurements[0].load.get("kind") != "closed":
        service = [m.service for m in lines[0].measurements if m.service]
        series = [
            Series("from due", series[0].points, 0, False, series[0].tips),
            _spectral("from sent", spectrum(service), 1, None),
        ]
    series = [one for one in series if one.points]
    values = [point for one in series for point in one.points]
    if not values:
        return []
    deepest = max(x for x, _ in values)
    ticks = tuple((float(d), _percent(d)) for d in _DEPTHS if d <= deepest * 1.001)
    x = svg.Axis(2.0, max(deepest, 4.0), ticks, log=True)
    title = "Latency by percentile"
    heading = Heading(identity, title, _told(series))
    y = svg.logarithmic(value for _, value in values)
    drawn = charts.lines(heading, x, y, series, ("percentile", "latency, ms"))
    turns = " Turns of a side are taken together." if section.kind == "versus" else ""
    return [Plot(title, drawn, f"To the slowest request.{turns}{_left_out(lines)}")]


def _spectral(name: str, points: Sequence[Point], colour: int, shade: float | None) -> Series:
    return Series(name, tuple(points), colour, shade=shade)


def _percent(depth: float) -> str:
    return f"{100 * (1 - 1 / depth):.6g}%"


def _times(section: Section, identity: str) -> list[Plot]:
    """Throughput, errors and latency over time; of sides that alternate, the first turn."""
    everything = _by_target(section)
    lines = [line for line in everything if _lasting(line.measurements[0].intervals)]
    chosen = picked(lines)
    if not chosen:
        return []
    axes = charts.time_axes([lines[i].measurements[0].intervals for i in chosen])
    called = dict(zip(map(id, everything), names(everything), strict=True))
    width, group = (charts.WIDTH, "") if len(chosen) == 1 else (charts.SMALL, "Over time")
    if group and section.kind == "versus":
        group = "Over time, the first turn of each side"
    made = []
    for i in chosen:
        run, name = lines[i].measurements[0].intervals, called[id(lines[i])]
        errors, ok = sum(part.errors for part in run), sum(part.ok for part in run)
        told = f"{ok:,} answers and {errors:,} errors in {len(run)} intervals."
        heading = Heading(f"{identity}{i}", f"Over time: {name}", told)
        drawn = charts.over_time(heading, run, axes, width)
        title = name if group else "Over time"
        made.append(Plot(title, drawn, "", group and group + _left_out(lines)))
    return made


def _lasting(run: Sequence[Interval]) -> bool:
    return sum(part.seconds > 0 for part in run) > 1


def _batches(section: Section, identity: str) -> list[Plot]:
    """Batch sizes of each line, over all its turns."""
    found = []
    lines = _by_target(section)
    for line, name in zip(lines, names(lines), strict=True):
        sizes: dict[int, int] = {}
        for m in line.measurements:
            for size, count in (m.batches.sizes if m.batches else {}).items():
                sizes[size] = sizes.get(size, 0) + count
        if sum(sizes.values()):
            found.append((line, name, sizes))
    chosen = picked([line for line, _, _ in found])
    if not chosen:
        return []
    axes = charts.batch_axes([found[i][2] for i in chosen])
    width, group = (charts.WIDTH, "") if len(chosen) == 1 else (charts.SMALL, "Batch sizes")
    made = []
    for i in chosen:
        line, name, sizes = found[i]
        told = ", ".join(f"{size}: {n:,}" for size, n in sorted(sizes.items())[:64])
        heading = Heading(f"{identity}{i}", f"Batch sizes: {name}", f"Executions by size: {told}.")
        drawn = charts.bars(heading, sizes, axes, width)
        title = name if group else "Batch sizes"
        left_out = _left_out([line for line, _, _ in found])
        made.append(Plot(title, drawn, "", group and group + left_out))
    return made


def ratios(section: Section, identity: str) -> list[Plot]:
    """The ratios of sides as intervals round 1: in one chart while the sides are few, in one of
    each figure where that would be too tall to be seen together with its axis."""
    groups: dict[str, list[charts.Estimate]] = {}
    many = len({(ratio.side, ratio.base) for ratio in section.ratios}) > _PAIRS
    for ratio in section.ratios:
        figure, pair = figure_words(ratio.figure), f"{ratio.side} ÷ {ratio.base}"
        judged = judgement(ratio)
        kind = judged if judged in ("better", "worse") else "plain" if ratio.real else "open"
        group, name = (figure, pair) if many else (pair, figure)
        one = charts.Estimate(ratio, name, f"{interval_words(ratio)} {judged}", kind)
        groups.setdefault(group, []).append(one)
    if many:
        return [
            _forest(f"{identity}-{place}", f"Ratios: {figure}", [("", group)])
            for place, (figure, group) in enumerate(groups.items())
        ]
    if len(groups) > 1:
        return [_forest(identity, "Ratios of the sides", list(groups.items()))]
    return [_forest(identity, pair, [("", group)]) for pair, group in groups.items()]


def _forest(identity: str, title: str, groups: list[tuple[str, list[charts.Estimate]]]) -> Plot:
    found = [one.ratio for _, group in groups for one in group]
    told = "; ".join(map(verdict, found)) + "."
    caption = (
        f"Median of the ratios of neighbouring turns ({found[0].turns} turns) and its "
        f"{found[0].confidence:.0%} bootstrap interval. Filled: the interval excludes 1."
    )
    return Plot(title, charts.forest(Heading(identity, title, told), groups), caption)
