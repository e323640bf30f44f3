"""When samples were taken, by the client's clock, and when they came, by ours."""

from __future__ import annotations

from bisect import bisect_right
from collections import deque

# Of one time that is kept, about: a chunk brings two. Chunks of one sample make it the most of all.
ENTRY_BYTES = 128
_LAST_NS = 2**63 - 1


class Timeline:
    """Both times by position: the number of samples before. `rate`: samples per second."""

    def __init__(self, rate: float) -> None:
        self._rate = rate
        self._anchors: deque[tuple[int, int]] = deque([(0, 0)])  # position, nanoseconds
        self._arrivals: deque[tuple[int, float]] = deque()  # position that was reached, when

    @property
    def nbytes(self) -> int:
        """Bytes held, about."""
        return ENTRY_BYTES * (len(self._anchors) + len(self._arrivals))

    def anchor(self, position: int, timestamp: int, needed: int) -> None:
        """The sample at `position` was taken at `timestamp`, in nanoseconds. What lies before
        `needed` will not be asked for."""
        anchors = self._anchors
        if anchors[-1][0] == position:
            anchors.pop()
        anchors.append((position, timestamp))
        while len(anchors) > 1 and anchors[1][0] <= needed:
            anchors.popleft()

    def taken(self, position: int, after: int = 0) -> int:
        """Nanoseconds of the client's clock, `after` samples after that at `position`; at most what
        can be told, should that clock stand at its end."""
        at = bisect_right(self._anchors, position, key=lambda anchor: anchor[0])
        start, timestamp = self._anchors[max(0, at - 1)]
        return min(timestamp + round((position + after - start) * 1e9 / self._rate), _LAST_NS)

    def arrived(self, position: int, now: float) -> None:
        """All samples before `position` are here; a flush says so once more."""
        self._arrivals.append((position, now))

    def arrival(self, position: int, *, flushed: bool) -> float:
        """When the samples up to `position` had come; or the flush behind them."""
        if flushed:
            return next(when for at, when in reversed(self._arrivals) if at == position)
        return next(when for at, when in self._arrivals if at >= position)

    def arrived_until(self, time: float) -> int:
        """The position that was reached at `time` or before; 0 where that is forgotten."""
        return next((at for at, when in reversed(self._arrivals) if when <= time), 0)

    def forget_arrivals(self, position: int) -> None:
        """Nobody will ask for windows that end before `position`."""
        while len(self._arrivals) > 1 and self._arrivals[0][0] < position:
            self._arrivals.popleft()

    def forget_all_arrivals(self) -> None:
        """No window to come ends with what has come so far."""
        self._arrivals.clear()
