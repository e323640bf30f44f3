"""What is asked for: how fast requests of a key arrive, and how soon they want their answers."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Hashable

from headrace.batcher.request import Request

# Arrivals are forgotten over this many seconds.
_WINDOW = 1.0
_SMOOTHING = 0.05
_KEPT_KEYS = 512


class Demand:
    """The demand for one key.

    `patience` is the usual time between arrival and deadline in seconds, infinite where requests
    have no deadline.
    """

    __slots__ = ("_began", "_last", "_level", "patience")

    def __init__(self) -> None:
        self.patience = math.inf
        self._level = 0.0
        self._began = self._last = math.nan

    def add(self, now: float, rows: int, patience: float) -> None:
        if math.isnan(self._began):
            self._began = self._last = now
        # Arrivals are stamped where they came in, which need not be in order.
        now = max(now, self._last)
        self._level = self._level * math.exp((self._last - now) / _WINDOW) + rows / _WINDOW
        self._last = now
        if math.isinf(patience) or math.isinf(self.patience):
            self.patience = patience
        else:
            self.patience += _SMOOTHING * (patience - self.patience)

    def rate(self, now: float) -> float:
        """Rows a second, corrected for a window that has not filled yet."""
        if math.isnan(self._began):
            return 0.0
        seen = max(0.02, 1 - math.exp((self._began - now) / _WINDOW))
        return self._level * math.exp(min(0.0, self._last - now) / _WINDOW) / seen


class Demands:
    """The demand for each key, of the keys seen last."""

    def __init__(self) -> None:
        self._of: OrderedDict[Hashable, Demand] = OrderedDict()

    def arrived(self, request: Request) -> None:
        """Counts a request, also one that is refused: it is demand all the same."""
        demand = self._of.get(request.key)
        if demand is None:
            demand = self._of[request.key] = Demand()
            if len(self._of) > _KEPT_KEYS:
                self._of.popitem(last=False)
        else:
            self._of.move_to_end(request.key)
        demand.add(request.arrival, request.rows, request.deadline - request.arrival)

    def of(self, key: Hashable) -> Demand:
        """The demand for `key`; none at all for a key never seen."""
        return self._of.get(key) or Demand()

    def load(self, seconds_per_row: dict[Hashable, float], now: float) -> float:
        """Executor-seconds asked for in a second, given what a row of each key costs at best."""
        return sum(self.of(key).rate(now) * cost for key, cost in seconds_per_row.items())
