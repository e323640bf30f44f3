"""The charts of a report, as SVG. Each tells its content in words too, for those who can't see it,
and is readable without colour: by labels at the lines' ends, dashes and the shapes of markers."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from headrace.bench.reports import svg
from headrace.bench.reports.figures import number
from headrace.bench.reports.markup import Markup, element, join
from headrace.bench.reports.svg import Axis, Box
from headrace.bench.results import Interval, Ratio

WIDTH, HEIGHT = 420, 264
SMALL = 300  # the width of charts that are shown three abreast
Point = tuple[float, float]


@dataclass(frozen=True, slots=True)
class Heading:
    """`identity` is unique on the page. `alternative` tells in words what is to be seen."""

    identity: str
    title: str
    alternative: str


@dataclass(frozen=True, slots=True)
class Series:
    """A line. `colour` picks the style and the markers' shape; `minor` lines are thin and dashed.
    `tips` are the words under each point's marker; without, there are no markers. With `shade`, in
    [0, 1], the line is one of an ordered family and coloured by its place in it."""

    name: str
    points: tuple[Point, ...]
    colour: int = 0
    minor: bool = False
    tips: tuple[str, ...] = ()
    shade: float | None = None


def figure(heading: Heading, drawn: Markup, width: float, height: float) -> Markup:
    """An SVG that fills the width that it is given."""
    name, words = f"{heading.identity}-title", f"{heading.identity}-words"
    return element(
        "svg",
        element("title", heading.title, id=name),
        element("desc", heading.alternative, id=words),
        drawn,
        viewBox=f"0 0 {width:g} {height:g}",
        role="img",
        aria_labelledby=f"{name} {words}",
        xmlns="http://www.w3.org/2000/svg",
    )


def lines(
    heading: Heading, x: Axis, y: Axis, series: Sequence[Series], titles: tuple[str, str]
) -> Markup:
    """Lines over one pair of axes, with `titles` of x and y, each named at its right end."""
    longest = max((len(s.name) for s in series), default=0)
    box = Box(44, 26, WIDTH - 14 - svg.LETTER * min(longest, 22), HEIGHT - 38)
    parts = [svg.frame(box, x, y, *titles)]
    ends: list[tuple[Series, Point]] = []
    for one in series:
        places = [
            (x.at(a, box.left, box.right), y.at(b, box.bottom, box.top)) for a, b in one.points
        ]
        style = None if one.shade is None else f"--shade: {one.shade:.0%}"
        family = f"s{one.colour % 8}" if one.shade is None else "shaded"
        kind = "minor" if one.minor else "major"
        parts.append(svg.path(places, f"line {kind} {family}", style))
        for (a, b), tip in zip(places, one.tips, strict=False):
            parts.append(svg.marker(a, b, one.colour, f"dot {kind} {family}", tip, style))
        if places:
            ends.append((one, places[-1]))
    parts.append(_end_labels(ends, box))
    return figure(heading, join(*parts), WIDTH, HEIGHT)


def _end_labels(ends: Sequence[tuple[Series, Point]], box: Box) -> Markup:
    """Names beside the lines' ends, moved apart where they would cover each other, then with a thin
    line to what they name."""
    places = svg.spread([y for _, (_, y) in ends], 13, box.top, box.bottom)
    parts = []
    for (one, (x, y)), place in zip(ends, places, strict=True):
        if abs(place - y) > 3 or x < box.right - 8:
            parts.append(svg.path([(x + 5, y), (box.right + 6, place)], "leader"))
        weight = "name light" if one.minor else "name"
        parts.append(svg.text(box.right + 9, place + 3.8, one.name, weight, letters=22))
    return join(*parts)


@dataclass(frozen=True, slots=True)
class TimeAxes:
    """Shared by the charts that are to be compared with each other."""

    time: Axis
    rate: Axis
    latency: Axis


def time_axes(runs: Sequence[Sequence[Interval]]) -> TimeAxes:
    every = [interval for run in runs for interval in run if interval.seconds > 0]
    end = max((i.start + i.seconds for i in every), default=1.0)
    ticks = tuple(tick for tick in svg.linear([end]).ticks if tick[0] <= end)
    return TimeAxes(
        Axis(0.0, end, ticks),
        svg.linear((max(i.ok, i.errors) / i.seconds for i in every), ticks=3),
        svg.logarithmic(
            (value for i in every for value in (i.p50_ms, i.p99_ms) if value is not None), most=5
        ),
    )


def over_time(heading: Heading, run: Sequence[Interval], axes: TimeAxes, width: float) -> Markup:
    """Answers and errors per second as stairs, and below them p50 and p99 of the same seconds."""
    run = [interval for interval in run if interval.seconds > 0]
    above, below = Box(44, 26, width - 36, 112), Box(44, 144, width - 36, HEIGHT - 38)
    across: Callable[[float], float] = lambda t: axes.time.at(t, above.left, above.right)  # noqa: E731
    rate: Callable[[float], float] = lambda v: axes.rate.at(v, above.bottom, above.top)  # noqa: E731
    bars = [
        element(
            "rect",
            element("title", f"{number(i.start)} s: {i.errors:,} errors"),
            x=across(i.start),
            y=rate(i.errors / i.seconds),
            width=max(across(i.start + i.seconds) - across(i.start), 1.0),
            height=above.bottom - rate(i.errors / i.seconds),
            class_="errors",
            style=f"fill: url(#{heading.identity}-hatch)",
        )
        for i in run
        if i.errors
    ]
    answered = [(i.start, i.ok / i.seconds) for i in run]
    if run:
        answered.append((run[-1].start + run[-1].seconds, answered[-1][1]))
    stairs = svg.stepped([(across(t), rate(v)) for t, v in answered])
    area = [*stairs, (stairs[-1][0], above.bottom), (stairs[0][0], above.bottom)] if stairs else []
    parts = [
        _hatch(f"{heading.identity}-hatch") if bars else None,
        svg.path(area, "area s0"),
        svg.frame(above, None, axes.rate, "", "answers/s" + (", errors/s hatched" if bars else "")),
        join(*bars),
        svg.path(stairs, "line major s0"),
        svg.frame(below, axes.time, axes.latency, "seconds", "latency, ms"),
        _latency_over_time(run, axes, below),
    ]
    return figure(heading, join(*parts), width, HEIGHT)


def _hatch(identity: str) -> Markup:
    """Slanted stripes: errors are seen as such without colour."""
    stripe = element("path", d="M0 0V4", class_="stripe")
    return element(
        "pattern",
        element("rect", width=4, height=4, class_="ground"),
        stripe,
        id=identity,
        width=4,
        height=4,
        patternUnits="userSpaceOnUse",
        patternTransform="rotate(45)",
    )


def _latency_over_time(run: Sequence[Interval], axes: TimeAxes, box: Box) -> Markup:
    parts: list[Markup] = []
    ends: list[tuple[Series, Point]] = []
    for name, minor in (("p99", False), ("p50", True)):
        values = [(i.start + i.seconds / 2, i.p50_ms if minor else i.p99_ms) for i in run]
        for stretch in _unbroken(values):
            places = [
                (axes.time.at(t, box.left, box.right), axes.latency.at(v, box.bottom, box.top))
                for t, v in stretch
            ]
            kind = "minor" if minor else "major"
            parts.append(svg.path(places, f"line {kind} s0"))
            if len(places) == 1:
                tip = f"{name} {number(stretch[0][1])} ms"
                parts.append(svg.marker(*places[0], 0, f"dot {kind} s0", tip))
        if values and parts:
            ends.append((Series(name, (), minor=minor), places[-1]))
    return join(*parts, _end_labels(ends, box))


def _unbroken(values: Sequence[tuple[float, float | None]]) -> list[list[Point]]:
    """The stretches between what is not known: a line must not bridge a silence."""
    stretches: list[list[Point]] = [[]]
    for t, value in values:
        if value is None or not math.isfinite(value) or value <= 0:
            stretches.append([])
        else:
            stretches[-1].append((t, value))
    return [stretch for stretch in stretches if stretch]


def bars(heading: Heading, sizes: dict[int, int], axes: tuple[Axis, Axis], width: float) -> Markup:
    """How often each size was run, as a share of all executions in percent, and the mean."""
    (x, y), height = axes, HEIGHT if width == WIDTH else 180
    box = Box(44, 26, width - 14, height - 38)
    total = sum(sizes.values()) or 1
    mean = sum(size * count for size, count in sizes.items()) / total
    thick = min(max((box.right - box.left) / (x.high - x.low) * 0.72, 1.5), 28)
    parts = [svg.frame(box, x, y, "rows in a batch", "% of executions")]
    for size, count in sorted(sizes.items()):
        part = 100 * count / total
        top = y.at(part, box.bottom, box.top)
        parts.append(
            element(
                "rect",
                element("title", f"batches of {size}: {count:,} ({number(part)}%)"),
                x=x.at(size, box.left, box.right) - thick / 2,
                y=top,
                width=thick,
                height=box.bottom - top,
                class_="bar s0",
            )
        )
    place = x.at(mean, box.left, box.right)
    parts.append(svg.line(place, box.top - 4, place, box.bottom, "mark"))
    side: Literal["end"] | None = "end" if place > (box.left + box.right) / 2 else None
    words = f"mean {number(mean)}"
    parts.append(svg.text(place + (-5 if side else 5), box.top + 3, words, "name", anchor=side))
    return figure(heading, join(*parts), width, height)


def batch_axes(sizes: Sequence[dict[int, int]]) -> tuple[Axis, Axis]:
    """Axes that all `sizes` fit: x from 0.5 below 1 to half above the largest."""
    largest = max((size for one in sizes for size in one), default=1)
    shares = [100 * n / (sum(one.values()) or 1) for one in sizes for n in one.values()]
    step = 2 ** max(0, math.ceil(math.log2(largest / 8)))
    marks = sorted({1, *range(step, largest + 1, step)})
    ticks = tuple((float(mark), str(mark)) for mark in marks)
    return Axis(0.3, largest + 0.7, ticks), svg.linear(shares, ticks=4)


_RATIO_TICKS = (
    (0.90, 0.95, 1, 1.05, 1.1),
    (0.8, 0.9, 1, 1.1, 1.25),
    (0.6, 0.8, 1, 1.25, 1.6),
    (0.5, 0.7, 1, 1.4, 2),
    (0.25, 0.5, 1, 2, 4),
    (0.1, 0.2, 0.5, 1, 2, 5, 10),
    (0.01, 0.1, 1, 10, 100),
)


def ratio_axis(ratios: Sequence[Ratio]) -> Axis:
    """Logarithmic round 1, so that twice and half are as far."""
    known = [v for r in ratios for v in (r.median, r.low, r.high) if math.isfinite(v) and v > 0]
    reach = max((max(v, 1 / v) for v in known), default=1.0)
    marks = next((m for m in _RATIO_TICKS if reach <= min(m[-1], 1 / m[0])), _RATIO_TICKS[-1])
    span = max(marks[-1], 1 / marks[0]) * 1.02
    return Axis(1 / span, span, tuple((mark, f"{mark:g}×") for mark in marks), log=True)


@dataclass(frozen=True, slots=True)
class Estimate:
    """A ratio with its `name` and, in `words`, its figures and verdict. `kind` is "better",
    "worse", "plain", or "open" where no difference is shown."""

    ratio: Ratio
    name: str
    words: str
    kind: str


def forest(heading: Heading, groups: Sequence[tuple[str, Sequence[Estimate]]]) -> Markup:
    """For each ratio its interval against 1, filled where the difference is real and hollow where
    none is shown; under the names of their groups, where they have any."""
    axis = ratio_axis([one.ratio for _, group in groups for one in group])
    left, right, y = 16.0, WIDTH - 16.0, 10.0
    rows: list[Markup] = []
    for name, group in groups:
        if name:
            y += 24
            rows.append(svg.text(left, y - 6, name, "name group", letters=60))
        for one in group:
            rows.append(_interval(one, axis, Box(left, y, right, y + 38)))
            y += 38
    box = Box(left, 10, right, y + 4)
    grid = [axis.at(value, left, right) for value, _ in axis.ticks]
    middle = axis.at(1, left, right)
    drawn = join(
        *(svg.line(at, box.top, at, box.bottom, "grid") for at in grid),
        svg.line(middle, box.top, middle, box.bottom, "mark"),
        svg.frame(box, axis, None),
        *rows,
    )
    return figure(heading, drawn, WIDTH, box.bottom + 24)


def _interval(one: Estimate, axis: Axis, box: Box) -> Markup:
    y = box.top + 27
    low, mid, high = (
        axis.at(v if math.isfinite(v) and v > 0 else 1.0, box.left, box.right)
        for v in (one.ratio.low, one.ratio.median, one.ratio.high)
    )
    room = int((box.right - box.left) / svg.LETTER) - len(one.words)
    return join(
        svg.text(box.left, y - 12, one.name, "name", letters=max(room, 12)),
        svg.text(box.right, y - 12, one.words, f"name {one.kind}", anchor="end"),
        svg.line(low, y, high, y, f"interval {one.kind}"),
        svg.line(low, y - 4, low, y + 4, f"interval {one.kind}"),
        svg.line(high, y - 4, high, y + 4, f"interval {one.kind}"),
        svg.marker(mid, y, 1, f"estimate {one.kind}", f"{one.name}: {one.words}"),
    )
