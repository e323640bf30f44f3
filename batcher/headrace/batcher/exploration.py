"""When a size is run of which few runs have told, where another would be run by what is known.

Now and then, and on a processor then several times in a row (docs/decisions/0024): the first runs
after larger ones find caches cold, and each executor must get over that by itself.
"""

from __future__ import annotations

from typing import Final

# Of the decisions in which another size could be tried, one in so many is for it, and begins a
# series of so many at most. It goes on after decisions in which another size was in question.
_EVERY: Final = 8
_SERIES: Final = 12


class Exploration:
    """Of one key on one kind of executor. `computes`: runs tell what processor time they take."""

    def __init__(self) -> None:
        self.computes = False
        self._asked = 0
        self._size = self._left = 0

    def due(self) -> bool:
        """To be asked once for each decision in which a size could be tried; whether it should."""
        self._asked += 1
        return self._asked % _EVERY == 0

    def due_of(self, rows: int, patient: bool) -> bool:
        """To be asked as `due`, of a size of which few runs have told: whether `rows` are run.

        In series not where callers are not `patient`: many inefficient batches in a row make
        others late.
        """
        if not self.computes or not patient:
            self._size = self._left = 0
            return self.due()
        if rows != self._size or not self._left:
            if not self.due():
                return False
            self._size, self._left = rows, _SERIES
        self._left -= 1
        return True
