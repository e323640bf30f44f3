"""The parts of a chart: axes with ticks at round numbers, and how values become places.

A chart is drawn for a width of a few hundred units and scaled by the page, so that its letters stay
readable on a phone. Colours and dashes are the style sheet's; shapes are here."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

from headrace.bench.reports.markup import Markup, element, join

LETTER = 6.0  # mean width of a letter at the charts' font size of 11


@dataclass(frozen=True, slots=True)
class Axis:
    """`ticks` are values with their labels. Values are in [low, high], above 0 where `log`."""

    low: float
    high: float
    ticks: tuple[tuple[float, str], ...]
    log: bool = False

    def at(self, value: float, start: float, end: float) -> float:
        """Where `value` lies, when the axis runs from `start` to `end`; clipped to it."""
        value = min(max(value, self.low), self.high)
        if self.log:
            part = math.log(value / self.low) / math.log(self.high / self.low)
        else:
            part = (value - self.low) / (self.high - self.low)
        return start + part * (end - start)


def linear(values: Iterable[float], *, ticks: int = 5, whole: bool = False) -> Axis:
    """From zero to a round number above all `values`; ticks at whole numbers only, if `whole`."""
    top = max((v for v in values if math.isfinite(v)), default=0.0)
    step = _round_up((top or 1.0) / ticks)
    if whole:
        step = max(1.0, math.ceil(step))
    count = max(1, math.ceil(top / step - 1e-9))
    return Axis(0.0, count * step, tuple((i * step, tick(i * step)) for i in range(count + 1)))


def logarithmic(values: Iterable[float], most: int = 10) -> Axis:
    """From the 1, 2 or 5 times a power of ten below all `values` (those above 0) to that above,
    with at most `most` ticks."""
    known = [v for v in values if math.isfinite(v) and v > 0] or [1.0]
    low, high = _round_down(min(known)), _round_up(max(known))
    if high <= low * 1.001:
        low, high = _round_down(low / 1.5), _round_up(high * 1.5)
    marks = _marks(low, high, (1, 2, 5))
    if len(marks) > most:
        marks = _marks(low, high, (1,))
        marks = marks[:: math.ceil(len(marks) / most)]
    return Axis(low, high, tuple((mark, tick(mark)) for mark in marks), log=True)


def tick(value: float) -> str:
    """As short as it is exact: "1,000", "0.5"."""
    written = f"{value:,.6f}"
    return written.rstrip("0").rstrip(".")


def _round_up(value: float) -> float:
    """The smallest of 1, 2, 5 times a power of ten that is not below `value`."""
    power = 10.0 ** math.floor(math.log10(value) + 1e-9)
    return next(m * power for m in (1, 2, 5, 10) if m * power >= value * (1 - 1e-9))


def _round_down(value: float) -> float:
    power = 10.0 ** math.floor(math.log10(value) + 1e-9)
    return next(m * power for m in (5, 2, 1) if m * power <= value * (1 + 1e-9))


def _marks(low: float, high: float, multiples: Sequence[int]) -> list[float]:
    powers = range(math.floor(math.log10(low) - 1e-9), math.ceil(math.log10(high) + 1e-9) + 1)
    marks = [multiple * 10.0**power for power in powers for multiple in multiples]
    return [mark for mark in marks if low * (1 - 1e-9) <= mark <= high * (1 + 1e-9)]


@dataclass(frozen=True, slots=True)
class Box:
    """Where the data are, in the chart's units; y grows downwards."""

    left: float
    top: float
    right: float
    bottom: float


def frame(box: Box, x: Axis | None, y: Axis | None, x_title: str = "", y_title: str = "") -> Markup:
    """Grid lines across, ticks below, titles at the ends of their axes. Upright text only."""
    parts: list[Markup] = []
    for value, name in y.ticks if y else ():
        place = y.at(value, box.bottom, box.top) if y else 0.0
        parts.append(line(box.left, place, box.right, place, "grid"))
        parts.append(text(box.left - 6, place + 3.8, name, "tick", anchor="end"))
    parts.append(line(box.left, box.bottom, box.right, box.bottom, "axis"))
    for value, name in _spaced(x, box) if x else ():
        place = x.at(value, box.left, box.right) if x else 0.0
        parts.append(line(place, box.bottom, place, box.bottom + 4, "axis"))
        parts.append(text(place, box.bottom + 16, name, "tick", anchor="middle"))
    if y_title:
        parts.append(text(2, box.top - 9, y_title, "title"))
    if x_title:
        parts.append(text(box.right, box.bottom + 31, x_title, "title", anchor="end"))
    return join(*parts)


def _spaced(axis: Axis, box: Box) -> list[tuple[float, str]]:
    """The ticks whose labels do not run into the one before."""
    kept: list[tuple[float, str]] = []
    edge = -math.inf
    for value, name in axis.ticks:
        place, half = axis.at(value, box.left, box.right), len(name) * LETTER / 2
        if place - half >= edge + 6:
            kept.append((value, name))
            edge = place + half
    return kept


def line(x1: float, y1: float, x2: float, y2: float, class_: str) -> Markup:
    return element("line", x1=x1, y1=y1, x2=x2, y2=y2, class_=class_)


def text(
    x: float,
    y: float,
    words: str,
    class_: str,
    *,
    anchor: Literal["end", "middle"] | None = None,
    letters: int = 1000,
) -> Markup:
    """One line of text, cut off after so many `letters`: then the whole is under the pointer."""
    short = words if len(words) <= letters else words[: letters - 1].rstrip(" ,") + "…"
    whole = element("title", words) if short != words else None
    return element("text", short, whole, x=x, y=y, class_=class_, text_anchor=anchor)


def path(points: Sequence[tuple[float, float]], class_: str, style: str | None = None) -> Markup:
    if len(points) < 2:
        return Markup("")
    drawn = "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in points)
    return element("path", d=drawn, class_=class_, style=style)


def stepped(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """The corners of stairs that hold each y until the next x."""
    corners = list(points[:1])
    for (_, before), (x, y) in pairwise(points):
        corners += [(x, before), (x, y)]
    return corners


def marker(
    x: float, y: float, shape: int, class_: str, tip: str, style: str | None = None
) -> Markup:
    """A dot whose shape tells series apart without colour; `tip` is shown under the pointer."""
    r = 3.4
    shapes = (
        f"M{x - r:.1f} {y:.1f}a{r} {r} 0 1 0 {2 * r} 0a{r} {r} 0 1 0 {-2 * r} 0z",
        f"M{x - 3:.1f} {y - 3:.1f}h6v6h-6z",
        f"M{x:.1f} {y - 4:.1f}l4 7h-8z",
        f"M{x:.1f} {y - 4.4:.1f}l4.4 4.4l-4.4 4.4l-4.4 -4.4z",
        f"M{x:.1f} {y + 4:.1f}l4 -7h-8z",
    )
    tooltip = element("title", tip)
    drawn = shapes[shape % len(shapes)]
    return element("path", tooltip, d=drawn, class_=class_, style=style)


def spread(places: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Moves labels apart to at least `gap`, in their order, as near to their places as can be and
    within [low, high] as long as there is room."""
    order = sorted(range(len(places)), key=lambda i: places[i])
    moved = [places[i] for i in order]
    for i in range(1, len(moved)):
        moved[i] = max(moved[i], moved[i - 1] + gap)
    edge = high
    for i in reversed(range(len(moved))):
        moved[i] = min(moved[i], edge)
        edge = moved[i] - gap
    for i in range(len(moved)):
        moved[i] = max(moved[i], low + i * gap)
    out = [0.0] * len(places)
    for place, i in zip(moved, order, strict=True):
        out[i] = place
    return out
