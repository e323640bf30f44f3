"""How much longer runs take than the processor time that they need.

Where executors, event loop and callers share the processors, a run is interrupted by the others,
and by how much depends on what they happen to do: the answers of a large batch are told while the
next one runs, so that a small batch after large ones looks slow, and a large one after small ones
cheap. What a size itself costs shows in the processor time of the thread that runs it. So sizes are
compared by that, and this factor, of all sizes alike, makes seconds of it (docs/decisions/0024).
"""

from __future__ import annotations

import math
from typing import Final

# Runs are forgotten over so many seconds of processor time.
_MEMORY: Final = 0.2
# It is believed that there is nobody else, as if so many seconds had shown it.
_PRIOR: Final = 0.02


class Stretch:
    """The `factor` of executors of one kind: 1 where nothing interrupts them, or nothing is known
    of their processor time."""

    def __init__(self) -> None:
        self.factor = 1.0
        self._seconds = self._work = _PRIOR

    def observe(self, seconds: float, work: float) -> None:
        """Learns from a run that took `seconds`, `work` of them of the processor."""
        kept = math.exp(-work / _MEMORY)
        self._seconds = kept * self._seconds + seconds
        self._work = kept * self._work + work
        self.factor = max(1.0, self._seconds / self._work)
