"""What is asked for: how fast requests of a key arrive, how soon they want their answers, and
whether those who were answered ask again at once."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Hashable
from typing import Final

from headrace.batcher.request import Request

# Arrivals are forgotten over this many seconds.
_WINDOW: Final = 0.5
# Callers who ask again at once are back within this share of t(1).
_ECHO: Final = 0.2
_SMOOTHING: Final = 0.05
_ECHO_SMOOTHING: Final = 0.1
# A key's callers have deadlines where more than so many of the rows that are let in do.
_MOST: Final = 0.5
_KEPT_KEYS: Final = 512
# Callers with deadlines are expected again for so many seconds.
_REMEMBERED: Final = 1.0
# Those with up to so many times the shortest time count as having the shortest.
_ALIKE: Final = 1.1


class Echo:
    """Callers in a closed loop: how many of the rows just answered are asked for again at once.

    `until` is when those answered last are no longer waited for, `share` how many of them usually
    are back by then, beyond what arrives at other times. It is learned whether or not anyone waits
    for them: from a Poisson stream it learns 0.
    """

    __slots__ = (
        "_answered",
        "_arrived",
        "_began",
        "_quiet_rows",
        "_quiet_seconds",
        "share",
        "until",
    )

    def __init__(self) -> None:
        self.share = 0.0
        self.until = -math.inf
        self._answered = self._arrived = self._began = 0.0
        self._quiet_rows = self._quiet_seconds = 0.0

    def answered(self, now: float, rows: int, window: float) -> None:
        """`rows` were answered at `now`; those who ask again do so within `window` seconds."""
        if now >= self.until:
            if self._answered:
                # Below 0 it may be by chance; cut off there, chance alone would look like callers.
                share = min(1.0, self._back(self.until) / self._answered)
                self.share += _ECHO_SMOOTHING * (share - self.share)
                kept = 1 - _SMOOTHING
                self._quiet_rows *= kept
                self._quiet_seconds = kept * self._quiet_seconds + now - self.until
            self._began, self._answered, self._arrived = now, 0.0, 0.0
        self._answered += rows
        self.until = now + window

    def arrived(self, now: float, rows: int) -> None:
        if now <= self.until:
            self._arrived += rows
        else:
            self._quiet_rows += rows

    def missing(self, now: float) -> float:
        """About how many rows are still to come by `until`."""
        if now >= self.until:
            return 0.0
        return self._answered - max(0.0, self._back(now))

    def _back(self, now: float) -> float:
        """Of those who were answered, about how many are back."""
        usual = self._quiet_rows / self._quiet_seconds if self._quiet_seconds > 0 else 0.0
        return self._arrived - usual * (now - self._began)


class Demand:
    """The demand for one key.

    `patience` is the usual time between arrival and deadline in seconds, infinite where most rows
    that are let in have no deadline: those are enough to make up for what the others need.
    """

    __slots__ = ("_began", "_hurried", "_last", "_level", "_usual", "echo", "key", "patience")

    def __init__(self, key: Hashable = None) -> None:
        self.key = key
        self.patience = self._usual = math.inf
        self._hurried = 0.0  # the share of rows with deadlines
        self.echo = Echo()
        self._level = 0.0
        self._began = self._last = math.nan

    def add(self, now: float, rows: int, patience: float) -> None:
        if math.isnan(self._began):
            self._began = self._last = now
            self._hurried = float(patience < math.inf)
            self.patience = self._usual = patience
        # Arrivals are stamped where they came in, which need not be in order.
        now = max(now, self._last)
        self._level = self._level * math.exp((self._last - now) / _WINDOW) + rows / _WINDOW
        self._last = now
        self.echo.arrived(now, rows)
        if patience < math.inf:
            known = self.patience < math.inf  # else the one before may have been long ago
            gap = patience - self._usual if known else 0.0
            self._usual = patience - (1 - _SMOOTHING) * gap

    def let_in(self, rows: int, hurried: bool) -> None:
        """A request waits that has a deadline or, not being `hurried`, none."""
        kept = (1 - _SMOOTHING) ** rows
        self._hurried = hurried + kept * (self._hurried - hurried)
        self.patience = self._usual if self._hurried >= _MOST else math.inf

    def answered(self, now: float, rows: int, alone: float) -> None:
        self.echo.answered(now, rows, _ECHO * alone)

    def rate(self, now: float) -> float:
        """Rows a second, corrected for a window that has not filled yet."""
        if math.isnan(self._began):
            return 0.0
        seen = max(0.02, 1 - math.exp((self._began - now) / _WINDOW))
        return self._level * math.exp(min(0.0, self._last - now) / _WINDOW) / seen


class Demands:
    """The demand for each key, of the keys seen last. `last`: when anything came, for any key."""

    def __init__(self) -> None:
        self.last = -math.inf
        self._shortest, self._until = math.inf, -math.inf
        self._of: OrderedDict[Hashable, Demand] = OrderedDict()

    def arrived(self, request: Request) -> None:
        """Counts a request, also one that is refused: it is demand all the same.

        Equal keys become one object: it is looked up many times from now on, and what is found by
        identity need not be compared, shape by shape.
        """
        demand = self._of.get(request.key)
        if demand is None:
            demand = self._of[request.key] = Demand(request.key)
            if len(self._of) > _KEPT_KEYS:
                self._of.popitem(last=False)
        else:
            request.key = demand.key
            self._of.move_to_end(request.key)
        self.last = max(self.last, request.arrival)
        patience = request.deadline - request.arrival
        demand.add(request.arrival, request.rows, patience)
        self._expect(patience, request.arrival, 0.0)

    def let_in(self, request: Request) -> None:
        """Counts a request that is accepted, after it has arrived."""
        self.of(request.key).let_in(request.rows, request.deadline < math.inf)

    def refused(self, request: Request, now: float, retry_after: float) -> None:
        """`request` is let go of, and its caller told to come back in so many seconds."""
        self._expect(request.deadline - request.arrival, now, retry_after)

    def _expect(self, patience: float, now: float, after: float) -> None:
        """One with so little time is here, and again after so many seconds or sooner."""
        shortest = self.shortest(now)
        if patience < math.inf and patience <= _ALIKE * shortest:
            self._shortest = min(patience, shortest)
            self._until = max(self._until, now + after + _REMEMBERED)

    def shortest(self, now: float) -> float:
        """The shortest time between arrival and deadline that anybody asked for lately; infinite
        where nobody had any."""
        return self._shortest if now <= self._until else math.inf

    def answered(self, key: Hashable, now: float, rows: int, alone: float) -> None:
        """`rows` of `key` were answered, of which one alone takes `alone` seconds."""
        demand = self._of.get(key)
        if demand is not None:
            demand.answered(now, rows, alone)

    def of(self, key: Hashable) -> Demand:
        """The demand for `key`; none at all for a key never seen."""
        return self._of.get(key) or Demand()

    def load(self, seconds_per_row: dict[Hashable, float], now: float) -> float:
        """Executor-seconds asked for in a second, given what a row of each key costs at best."""
        return sum(self.of(key).rate(now) * cost for key, cost in seconds_per_row.items())
