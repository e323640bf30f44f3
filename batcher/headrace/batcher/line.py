"""When those who were refused are told to come back: one after the other, as fast as can be served.

Theory of operation. A refused caller could be told when there will be room again. But many are
refused at once, all of them would be told the same, and all but a few would come for nothing; where
calls are brought by the processors that also run models, those who are refused take the time of
those who could be served. So the refused form a line, which moves as fast as the executors serve:
each is told a time in it. Nothing is kept for whoever is told, and who comes sooner is treated like
all others.

Callers share the line as in a round robin: whoever is refused often, or does not listen, lengthens
his own wait. Times are spread evenly over a caller's turn (by the golden ratio, after Weyl), since
callers that are refused together would else come back together.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import Final

_LONGEST: Final = 30.0
# Callers whose time has come are forgotten so often.
_SWEEP: Final = 0.05
# Of more callers than this, none is remembered: each then has its first turn.
_MOST: Final = 10_000
_GOLDEN: Final = 0.6180339887498949


class Line:
    """The times that refused callers were told last."""

    __slots__ = ("_each", "_refused", "_swept", "_told")

    def __init__(self) -> None:
        self._told: dict[Hashable, float] = {}
        self._swept = 0.0
        self._refused = 0
        self._each = 0.0

    def back(self, caller: Hashable, now: float, room: float, each: float) -> float:
        """Seconds from `now` after which `caller` should come back.

        room: seconds until there is room at the soonest. each: seconds between two who can be
        served.
        """
        self._each = each
        told = self._told
        if now >= self._swept + _SWEEP:
            told = self._told = {who: at for who, at in told.items() if at > now}
            self._swept = now
        self._refused += 1
        turn = each * (len(told) + (caller not in told))
        spread = 2 * (self._refused * _GOLDEN % 1.0)  # 1 on average
        at = min(max(now + room, told.get(caller, now)) + turn * spread, now + _LONGEST)
        if caller in told or len(told) < _MOST:
            told[caller] = at
        return at - now

    def again(self, caller: Hashable, now: float, room: float) -> float:
        """As `back`, for a request that is not known to be unlike the last one that was refused."""
        return self.back(caller, now, room, self._each)
