"""Which runs will not come back.

Theory of operation. A run is given up once it has taken longer than `Limits.hang_seconds`, and many
times what it was predicted to take. Only time in which the watchdog looked on counts: to a process
that was stopped, or got no processor, and goes on, every run would seem to hang.
"""

from __future__ import annotations

import math
from typing import Final

from headrace.batcher.errors import ExecutorHung
from headrace.batcher.request import Batch
from headrace.batcher.state import State

# A run that has taken so many times what was predicted is not merely slow.
_TIMES: Final = 20.0
# The first run of a kind that nobody has measured may have kernels to compile: it has so many times
# as long.
_UNKNOWN: Final = 10.0
# It looks so often within `hang_seconds` while anything runs, and has been blind when it could not
# for twice as long.
_LOOKS: Final = 4


class Watchdog:
    """Watches the runs of `state`. Times are seconds of the clock that its batches are dated by."""

    def __init__(self, state: State) -> None:
        self._state = state
        self._seconds = state.limits.hang_seconds
        self._looked = self._since = -math.inf

    def begin(self, now: float) -> float | None:
        """Nothing was watched until `now`. Returns when to look first; None for never."""
        if math.isinf(self._seconds):
            return None
        self._looked = now
        return self._next(now)

    def look(self, now: float) -> tuple[list[Batch], float | None]:
        """The batches whose runs hang, and when to look again; None when nothing else runs."""
        if now - self._looked > 2 * self._seconds / _LOOKS:
            self._since = now
        self._looked = now
        hung = [batch for batch in self._running() if self._due(batch) <= now]
        return hung, self._next(now, hung)

    def _next(self, now: float, hung: list[Batch] | None = None) -> float | None:
        dues = [self._due(batch) for batch in self._running() if batch not in (hung or ())]
        return min([*dues, now + self._seconds / _LOOKS]) if dues else None

    def _running(self) -> list[Batch]:
        return [batch for batch in self._state.running.values() if batch is not None]

    def _due(self, batch: Batch) -> float:
        """When the run of `batch` is given up."""
        return max(batch.started, self._since) + bound(batch, self._seconds)


def bound(batch: Batch, hang_seconds: float) -> float:
    """The seconds after which the run of `batch` is taken to hang."""
    if math.isnan(batch.expected):
        return _UNKNOWN * hang_seconds
    return max(hang_seconds, _TIMES * batch.expected)


def hung(batch: Batch, now: float) -> ExecutorHung:
    """What the callers of `batch` are told, which is given up at `now`."""
    known = not math.isnan(batch.expected)
    predicted = (
        f"{batch.expected:.3g} s were predicted" if known else "nothing was known of its kind"
    )
    return ExecutorHung(
        f"the run has not come back for {now - batch.started:.3g} s ({predicted}) and is given up; "
        f"its executor {batch.executor} is replaced"
    )
