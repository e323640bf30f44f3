"""What has come and was not taken yet, and how much of what has come was acknowledged."""

from __future__ import annotations

from collections import deque

from headrace.client.errors import BadResponse
from headrace.client.stream_results import Gap, WindowResult

StreamEvent = WindowResult | Gap

# Acknowledged this many times within what may be outstanding, and for so many bytes of results,
# of which servers do not keep any number either: seldom, and never too late.
_ACKS, _ACK_BYTES = 8, 256 << 10


class Inbox:
    """Deliveries are numbered from 1. max_unread: how many may wait to be taken before no more are
    acknowledged; the server stops then, a little later."""

    def __init__(self, max_unread: int) -> None:
        self.delivered = 0
        """The last delivery that came in order."""
        self.acked = 0
        """The last one that the server was told to have come."""
        self._max_unread = max_unread
        self._bytes = 0  # that were delivered, and not acknowledged
        self._unread: deque[StreamEvent] = deque()
        self._reading = self._discarding = False

    def __len__(self) -> int:
        return len(self._unread)

    def count(self, delivery: int, size: int) -> bool:
        """Whether this one, of `size` bytes, is new. Raises BadResponse where one before it is
        missing."""
        if delivery > self.delivered + 1:
            raise BadResponse(f"delivery {delivery} came after {self.delivered}")
        new = delivery == self.delivered + 1
        if new:
            self.delivered = delivery
            self._bytes += size
        return new

    def put(self, event: StreamEvent) -> None:
        if not self._discarding:
            self._unread.append(event)

    def take(self) -> list[StreamEvent]:
        self._reading = True
        taken = list(self._unread)
        self._unread.clear()
        return taken

    def next(self) -> StreamEvent | None:
        self._reading = True
        return self._unread.popleft() if self._unread else None

    def discard(self, *, unread: bool) -> None:
        """Nobody will take what comes from now on, nor, if `unread`, what has come."""
        self._discarding = True
        if unread:
            self._unread.clear()

    def is_full(self) -> bool:
        """Whether results have to be taken first. Raises RuntimeError where nobody ever did: most
        likely the one who would is waiting right here."""
        if len(self._unread) < self._max_unread:
            return False
        if not self._reading:
            raise RuntimeError(
                f"{len(self._unread)} results wait and none was taken: take them while sending, in "
                "another task or thread, or by `run` or `take`; or raise `max_unread`"
            )
        return True

    def ack(self, max_outstanding: int, *, last: bool) -> int | None:
        """What to acknowledge now, if anything. last: nothing will follow."""
        count = self.delivered - self.acked
        few = count < max(1, max_outstanding // _ACKS) and self._bytes < _ACK_BYTES
        waits = few or len(self._unread) >= self._max_unread
        if not count or (waits and not last):
            return None
        self.acknowledged()
        return self.acked

    def acknowledged(self) -> None:
        """The server is told that all that was delivered has come."""
        self.acked, self._bytes = self.delivered, 0
