"""What a batch takes that has the machine for itself.

Where executors, event loop and callers share the processors, a crowd makes every run slow, and what
is learned beside it is true of a crowd. It would be held against the first who come when the crowd
has gone: they find nobody here, and are refused since their deadline is shorter than a run was
lately. So what undisturbed runs took is remembered beside what runs take now: those at load first,
later each run that began with nothing else here and during which nobody came.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from typing import Final

# What one run weighs: few are needed to notice that the machine itself has become slower.
_GAIN: Final = 0.25
# One slow run is told from a slow machine by the next ones.
_CLIP: Final = 2.0


class Undisturbed:
    """Seconds by rows, of undisturbed runs."""

    __slots__ = ("_seconds",)

    def __init__(self) -> None:
        self._seconds: dict[int, float] = {}

    def observe(self, rows: int, seconds: float) -> None:
        old = self._seconds.get(rows)
        if old is None:
            self._seconds[rows] = seconds
        else:
            self._seconds[rows] = old + _GAIN * (min(seconds, _CLIP * old) - old)

    def seconds(self, rows: int) -> float:
        """What `rows` rows take at most: as the next larger size that was seen, infinite beyond the
        largest."""
        sizes = sorted(self._seconds)
        at = bisect_left(sizes, rows)
        return self._seconds[sizes[at]] if at < len(sizes) else math.inf
