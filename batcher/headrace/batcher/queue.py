"""The waiting requests of one compatibility key, most urgent first."""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from collections.abc import Iterator

from headrace.batcher.request import Request

_Entry = tuple[float, int, Request]


class Queue:
    """Requests ordered by urgency, then arrival.

    A list kept sorted: nearly every arrival goes to the end, batches leave from the front, and the
    few thousand entries that a bounded queue can hold make the moves in between cheaper than a
    tree. Adding and removing find their place in O(log n).
    """

    __slots__ = ("_entries", "rows")

    def __init__(self) -> None:
        self._entries: list[_Entry] = []
        self.rows = 0

    def __len__(self) -> int:
        return len(self._entries)

    def __iter__(self) -> Iterator[Request]:
        return (entry[2] for entry in self._entries)

    def __repr__(self) -> str:
        return f"<Queue: {len(self)} requests, {self.rows} rows>"

    @property
    def head(self) -> Request:
        """The most urgent request. Raises IndexError when the queue is empty."""
        return self._entries[0][2]

    @property
    def row_bytes(self) -> float:
        """Bytes of a row, as the most urgent request has them."""
        head = self.head
        return head.nbytes / head.rows

    def rows_before(self, urgency: float) -> float:
        """About how many rows go before a newcomer of `urgency`."""
        if not self._entries:
            return 0.0
        ahead = bisect_right(self._entries, urgency, key=lambda entry: entry[0])
        return self.rows * ahead / len(self._entries)

    def add(self, request: Request) -> None:
        entry = (request.urgency, request.sequence, request)
        if self._entries and entry < self._entries[-1]:
            insort(self._entries, entry)
        else:
            self._entries.append(entry)
        self.rows += request.rows

    def remove(self, request: Request) -> None:
        """Takes `request` out. Raises KeyError when it is not here."""
        at = bisect_left(self._entries, (request.urgency, request.sequence, request))
        if at == len(self._entries) or self._entries[at][2] is not request:
            raise KeyError(request.sequence)
        del self._entries[at]
        self.rows -= request.rows

    def remove_head(self, count: int) -> None:
        """Takes the `count` most urgent requests out."""
        self.rows -= sum(entry[2].rows for entry in self._entries[:count])
        del self._entries[:count]
