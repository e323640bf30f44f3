"""The costs of every key on every kind of executor."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Hashable
from typing import Final

from headrace.batcher.cost import CostTable
from headrace.batcher.overhead import Overhead
from headrace.batcher.stretch import Stretch

# Cost grows a little slower than the number of elements, where nothing else is known.
_ELEMENTS_EXPONENT: Final = 0.8
_KEPT_TABLES: Final = 512


class CostModel:
    """A table for each (kind of executor, key). Executors of one kind learn from each other.

    They share one `overhead`: it is the event loop's and the threads', not the executors'; those
    of one kind share a stretch.

    `row_bytes` says how large a row of a key is: a key never seen borrows the table of the seen key
    nearest in size, scaled.
    """

    def __init__(self, largest: int) -> None:
        self.largest = largest
        self.overhead = Overhead()
        self._stretches: dict[Hashable, Stretch] = {}
        self._tables: OrderedDict[tuple[Hashable, Hashable], tuple[CostTable, float]] = (
            OrderedDict()
        )

    def table(self, kind: Hashable, key: Hashable, row_bytes: float) -> CostTable:
        """The table of `key` on `kind`: its own, or a borrowed one. May know nothing yet."""
        found = self._tables.get((kind, key))
        if found is not None:
            self._tables.move_to_end((kind, key))
            return found[0]
        table = self._borrowed(kind, row_bytes)
        self._tables[kind, key] = (table, row_bytes)
        if len(self._tables) > _KEPT_TABLES:
            self._tables.popitem(last=False)
        return table

    def _borrowed(self, kind: Hashable, row_bytes: float) -> CostTable:
        size = math.log(max(row_bytes, 1))
        nearest: tuple[float, CostTable, float] | None = None
        for (other, _), (table, other_bytes) in self._tables.items():
            if other == kind and table.observations and (other_bytes or not row_bytes):
                distance = abs(math.log(max(other_bytes, 1)) - size)
                if nearest is None or distance < nearest[0]:
                    nearest = (distance, table, other_bytes)
        if nearest is None:
            stretch = self._stretches.setdefault(kind, Stretch())
            return CostTable(self.largest, self.overhead, stretch)
        _, table, other_bytes = nearest
        return table.scaled((max(row_bytes, 1) / max(other_bytes, 1)) ** _ELEMENTS_EXPONENT)
