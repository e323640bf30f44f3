"""What a batch costs besides its run, whatever its size.

That is from dispatch until the run begins, and from its end until that is known: threads that are
woken, and an event loop that is busy. Sizes are chosen with it (docs/decisions/0018). Of larger
batches only a part counts: in the meantime the event loop tells as many callers. Were all of it
counted, batches would grow because they are large.
"""

from __future__ import annotations

from typing import Final

# What is taken of each batch into the average, and how many times it one may be.
_GAIN: Final = 0.02
_CLIP: Final = 2.0
# Up to how many rows all of it is taken to be the batch's own.
_FEW_ROWS: Final = 8
# By what part of itself, and by how many seconds, it must change to count as another.
_MOVED: Final = 0.25
_LEAST: Final = 1e-4


class Overhead:
    """The average, in `seconds`, robust to outliers."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def observe(self, rows: int, seconds: float) -> None:
        """Learns from a batch of so many `rows`, that took so many `seconds` besides its run."""
        alike = max(0.0, seconds) * min(1.0, _FEW_ROWS / rows)
        most = _CLIP * self.seconds + _LEAST
        self.seconds += _GAIN * (min(alike, most) - self.seconds)


def moved(known: float, overhead: float) -> bool:
    """Whether the `overhead` is no longer what it was when sizes were worked out."""
    return abs(overhead - known) > max(_MOVED * known, _LEAST)
