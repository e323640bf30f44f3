"""Waiting requests, those of one compatibility key or of one caller, most urgent first."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterator

from headrace.batcher.request import Request

_Entry = tuple[float, int, int, Request]


class Queue:
    """Requests ordered by rank: urgency, then arrival.

    A list kept sorted: nearly every arrival goes to the end, batches leave from the front, and the
    few thousand entries that a bounded queue can hold make the moves in between cheaper than a
    tree. Adding and removing find their place in O(log n).
    """

    __slots__ = ("_entries", "nbytes", "rows")

    def __init__(self) -> None:
        self._entries: list[_Entry] = []
        self.rows = 0
        self.nbytes = 0

    def __len__(self) -> int:
        return len(self._entries)

    def __iter__(self) -> Iterator[Request]:
        return (entry[-1] for entry in self._entries)

    def __reversed__(self) -> Iterator[Request]:
        return (entry[-1] for entry in reversed(self._entries))

    def __getitem__(self, place: int) -> Request:
        """The request at `place`, 0 being the most urgent. Raises IndexError."""
        return self._entries[place][-1]

    def __repr__(self) -> str:
        return f"<Queue: {len(self)} requests, {self.rows} rows>"

    @property
    def head(self) -> Request:
        """The most urgent request. Raises IndexError when the queue is empty."""
        return self._entries[0][-1]

    @property
    def row_bytes(self) -> float:
        """Bytes of a row, as the most urgent request has them."""
        head = self.head
        return head.nbytes / head.rows

    def rows_before(self, rank: tuple[float, ...]) -> float:
        """About how many rows go before a newcomer of `rank`, or of its beginning."""
        if not self._entries:
            return 0.0
        return self.rows * bisect_left(self._entries, rank) / len(self._entries)

    def add(self, request: Request) -> None:
        entry = (request.urgency, request.turn, request.sequence, request)
        if self._entries and request.before(self._entries[-1][-1]):
            insort(self._entries, entry)
        else:
            self._entries.append(entry)
        self.rows += request.rows
        self.nbytes += request.nbytes

    def remove(self, request: Request) -> None:
        """Takes `request` out. Raises KeyError when it is not here."""
        entries = self._entries
        at = 0
        if not entries or entries[0][-1] is not request:  # most leave from the front
            at = bisect_left(entries, request.rank)
        if at == len(entries) or entries[at][-1] is not request:
            raise KeyError(request.sequence)
        del entries[at]
        self.rows -= request.rows
        self.nbytes -= request.nbytes

    def remove_head(self, count: int) -> None:
        """Takes the `count` most urgent requests out."""
        for entry in self._entries[:count]:
            self.rows -= entry[-1].rows
            self.nbytes -= entry[-1].nbytes
        del self._entries[:count]
