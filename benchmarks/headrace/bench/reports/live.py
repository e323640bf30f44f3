"""What a load test looks like while it runs."""

from __future__ import annotations

import math
from collections import deque
from types import TracebackType
from typing import Self

from rich.console import Console, Group
from rich.live import Live as Screen
from rich.table import Table
from rich.text import Text

from headrace.bench.progress import Progress
from headrace.bench.reports.figures import number, seconds
from headrace.bench.results import Interval

_WINDOW = 60.0  # seconds that the sparklines show
_EVERY = 10.0  # seconds between lines, where there is no terminal to draw on
_BARS = "▁▂▃▄▅▆▇█"


class Live:
    """Shows each `Progress` in place on a terminal; elsewhere as a line for each phase's start and
    every ten seconds of it. A context manager."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._screen: Screen | None = None
        self._title = ""
        self._phase = ""
        self._elapsed = math.inf
        self._told = -math.inf
        self._recent: deque[Interval] = deque()
        self._errors = 0

    def __enter__(self) -> Self:
        if self._console.is_terminal:
            self._screen = Screen(console=self._console, refresh_per_second=4, transient=True)
            self._screen.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._screen is not None:
            self._screen.stop()
            self._screen = None

    def about(self, title: str) -> None:
        """Says what the next progress is of: "headrace, 50% of saturation"."""
        self._title = title
        self._phase = ""

    def watch(self, progress: Progress) -> None:
        """Shows one more stretch. A phase that changes, or whose time goes back, begins anew."""
        began = progress.phase != self._phase or progress.elapsed < self._elapsed
        if began:
            self._recent.clear()
            self._errors, self._told = 0, -math.inf
        self._phase, self._elapsed = progress.phase, progress.elapsed
        self._errors += progress.interval.errors
        self._recent.append(progress.interval)
        while self._recent[-1].start - self._recent[0].start >= _WINDOW:
            self._recent.popleft()
        if self._screen is not None:
            self._screen.update(self._panel(progress))
        elif began or progress.elapsed - self._told >= _EVERY:
            self._told = progress.elapsed
            self._console.print(Text(self._line(progress)), soft_wrap=True)

    def _line(self, progress: Progress) -> str:
        now = progress.interval
        title = f"{self._title}: " if self._title else ""
        return (
            f"{title}{progress.phase} {_span(progress)}: {number(_rate(now))}/s, "
            f"p50 {_ms(now.p50_ms)}, p99 {_ms(now.p99_ms)}, {self._errors:,} errors"
        )

    def _panel(self, progress: Progress) -> Group:
        now = progress.interval
        head = Text(f"{progress.phase} ", style="bold").append(_span(progress), style="default")
        if self._title:
            head = Text(self._title, style="bold cyan").append("  ").append(head)
        # A cell of the table takes its width from its longest line: the sparklines get the rest.
        room = max(10, min(60, self._console.width - 30))
        table = Table.grid(padding=(0, 2))
        table.add_column(style="dim", no_wrap=True)
        table.add_column(justify="right", min_width=10, no_wrap=True)
        table.add_column(no_wrap=True)
        rates = [_rate(interval) for interval in self._recent]
        table.add_row("answers/s", number(_rate(now)), sparkline(rates, room))
        table.add_row("p50", _ms(now.p50_ms), "")
        tails = [interval.p99_ms for interval in self._recent]
        table.add_row("p99", _ms(now.p99_ms), sparkline(tails, room))
        bad = [interval.errors / (interval.seconds or 1) for interval in self._recent]
        style = "red" if self._errors else "dim"
        errors = Text(f"{self._errors:,}", style=style)
        table.add_row("errors", errors, Text(sparkline(bad, room) if any(bad) else "", style=style))
        return Group(head, table)


def sparkline(values: list[float] | list[float | None], width: int) -> str:
    """The last `width` values as bars against the largest of them; a space where there is none."""
    last = values[-width:]
    known = [v for v in last if v is not None and math.isfinite(v)]
    top = max(known, default=0.0)
    drawn = []
    for value in last:
        if value is None or not math.isfinite(value):
            drawn.append(" ")
        else:
            drawn.append(_BARS[round(value / top * (len(_BARS) - 1))] if top > 0 else _BARS[0])
    return "".join(drawn)


def _rate(interval: Interval) -> float:
    return interval.ok / interval.seconds if interval.seconds > 0 else 0.0


def _span(progress: Progress) -> str:
    if progress.total is None:
        return f"{seconds(progress.elapsed)}, until the latency is stable"
    return f"{seconds(progress.elapsed)} of {seconds(progress.total)}"


def _ms(value: float | None) -> str:
    return "–" if value is None else f"{number(value)} ms"
