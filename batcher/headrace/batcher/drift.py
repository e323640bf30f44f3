"""Whether everything has become slower or faster, or is off only by as much as it usually is."""

from __future__ import annotations

import statistics
from collections import deque
from collections.abc import Iterable
from typing import Final

# A run that takes longer than this many times what was expected counts as this many times.
CLIP: Final = 2.0
# Everything has changed when the recent runs, taken together, are off by a seventh, and by more
# than that many runs are off by chance where runs are usually off by so much.
_STEADY: Final = 0.14
_CHANCE: Final = 1.0
# Or when so many in a row are all off to the same side, by a tenth and more than runs usually are.
_IN_A_ROW: Final = 5
_OFF: Final = 0.1
_UNUSUAL: Final = 2.5
# After fewer runs what was expected is not known well enough to have changed.
_EARLY: Final = 20
# One run counts for so much, of how far runs are off and of how far they usually are.
_GAIN: Final = 0.1
_USUAL_GAIN: Final = 0.03


class Drift:
    """`noise` is how far runs usually are from what is expected of them, as a share of that."""

    def __init__(self) -> None:
        self.noise = 0.03
        self._level = 1.0
        self._ratios: deque[float] = deque(maxlen=_IN_A_ROW)

    def missed(self, ratio: float) -> None:
        """Learns how far off runs are from one that took `ratio` times what was expected."""
        self.noise += _USUAL_GAIN * (min(1.0, abs(ratio - 1)) - self.noise)

    def follow(self, ratio: float, observations: int) -> float | None:
        """After `missed`, where what was expected was no guess. By which factor everything has
        changed, which is told once; None while it has not."""
        ratio = min(CLIP, ratio)
        self._level += _GAIN * (ratio - self._level)
        self._ratios.append(ratio)
        if observations <= _EARLY:
            return None
        off = 1 + max(_OFF, _UNUSUAL * self.noise)
        agreed = len(self._ratios) == _IN_A_ROW and _all_outside(self._ratios, (1 / off, off))
        level = statistics.median(self._ratios) if agreed else self._level
        unsteady = 1 + max(_STEADY, _CHANCE * self.noise)
        if not agreed and 1 / unsteady < level < unsteady:
            return None
        self._level = 1.0
        self._ratios.clear()
        return level


def _all_outside(ratios: Iterable[float], steady: tuple[float, float]) -> bool:
    """Whether all of them are below `steady`, or all of them above."""
    return max(ratios) < steady[0] or min(ratios) > steady[1]
