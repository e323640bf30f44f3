"""Pictures of signals over time: as SVG, which needs no library, and as a line of text."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path

import numpy as np
import numpy.typing as npt

WIDTH, LEFT, RIGHT = 960, 90, 20
INK, SOFT = "#1f2937", "#9ca3af"
Spans = Sequence[tuple[float, float, str]]  # from, to (seconds), colour


class Picture:
    """Panels one below the other over the same time axis of `seconds`."""

    def __init__(self, title: str, seconds: float) -> None:
        self._seconds = seconds
        self._parts = [_text(LEFT, 24, title, size=15, weight="600")]
        self._bottom = 40

    def panel(self, label: str, height: int, spans: Spans = ()) -> int:
        """Room for a panel, with coloured spans of time behind it. Returns its top."""
        top = self._bottom
        self._bottom += height + 10
        for start, end, colour in spans:
            x, width = self._x(start), self._x(end) - self._x(start)
            self._parts.append(
                f'<rect x="{x:.1f}" y="{top}" width="{width:.1f}" height="{height}" '
                f'fill="{colour}"/>'
            )
        self._parts.append(_text(LEFT - 8, top + height / 2 + 4, label, anchor="end"))
        return top

    def line(
        self, top: int, height: int, times: npt.ArrayLike, values: npt.ArrayLike, colour: str = INK
    ) -> None:
        """A curve; 0 lies at the bottom of the panel, 1 at its top."""
        xs = LEFT + np.asarray(times) / self._seconds * (WIDTH - LEFT - RIGHT)
        ys = top + height * (1 - np.asarray(values))
        points = " ".join(f"{x:.1f},{y:.1f}" for x, y in zip(xs, ys, strict=True))
        self._parts.append(
            f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="1.2"/>'
        )

    def legend(self, entries: Sequence[tuple[str, str]]) -> None:
        """Colours and what they mean, in a row."""
        x, y = LEFT, self._bottom + 14
        for colour, label in entries:
            self._parts.append(
                f'<rect x="{x}" y="{y - 10}" width="12" height="12" fill="{colour}"/>'
            )
            self._parts.append(_text(x + 18, y, label))
            x += 30 + 8 * len(label)
        self._bottom += 24

    def save(self, path: Path) -> None:
        """Adds the time axis and writes the file."""
        y = self._bottom + 6
        step = next(s for s in (1, 2, 5, 10, 20, 50, 100, 1000) if self._seconds / s <= 12)
        for tick in range(0, int(self._seconds) + 1, step):
            x = self._x(tick)
            self._parts.append(f'<path d="M{x:.1f} {y - 4}v6" stroke="{SOFT}"/>')
            self._parts.append(_text(x, y + 16, f"{tick} s", anchor="middle"))
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {y + 28}" '
            'font-family="system-ui, sans-serif" font-size="12">\n'
            f'<rect width="{WIDTH}" height="{y + 28}" fill="#ffffff"/>\n'
            + "\n".join(self._parts)
            + "\n</svg>\n"
        )

    def _x(self, time: float) -> float:
        return LEFT + time / self._seconds * (WIDTH - LEFT - RIGHT)


def _text(x: float, y: float, text: str, *, anchor: str = "start", **style: object) -> str:
    more = "".join(f' font-{key}="{value}"' for key, value in style.items())
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{INK}"{more}>'
        f"{escape(text)}</text>"
    )


def text_plot(values: Sequence[float], width: int = 78) -> str:
    """Values from 0 to 1 as one line of blocks."""
    pieces = np.array_split(np.asarray(values), min(width, len(values)))
    return "".join(" ▁▂▃▄▅▆▇█"[round(8 * float(piece.max()))] for piece in pieces)
