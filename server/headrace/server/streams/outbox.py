"""What a client has not got yet, or has not acknowledged: numbered, in order."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from headrace.server.errors import StreamRefused
from headrace.server.streams.events import Event

Encode = Callable[[int, Event], bytes]


class Outbox:
    """Deliveries are numbered from 1; `nbytes` is what they hold in memory. With `keep` they stay
    until acknowledged, to be sent again on another connection; without, until taken."""

    def __init__(self, encode: Encode, *, keep: bool) -> None:
        self._encode = encode
        self._keep = keep
        self._last = 0
        self.nbytes = 0
        self._unsent: deque[tuple[int, bytes]] = deque()
        self._unacked: deque[tuple[int, bytes]] = deque()

    def __len__(self) -> int:
        return len(self._unsent) + len(self._unacked)

    @property
    def has_unsent(self) -> bool:
        return bool(self._unsent)

    def put(self, event: Event) -> None:
        """Gives `event` the next number."""
        self._last += 1
        data = self._encode(self._last, event)
        self.nbytes += len(data)
        self._unsent.append((self._last, data))

    def take(self, room: int) -> list[bytes]:
        """The next ones to send, of about `room` bytes: at least one if there is any."""
        taken = []
        while self._unsent and room > 0:
            entry = self._unsent.popleft()
            taken.append(entry[1])
            room -= len(entry[1])
            if self._keep:
                self._unacked.append(entry)
            else:
                self.nbytes -= len(entry[1])
        return taken

    def ack(self, delivery: int) -> None:
        """The client has all up to `delivery`. Raises StreamRefused for what was never sent."""
        sent = self._unsent[0][0] - 1 if self._unsent else self._last
        if delivery > sent:
            raise StreamRefused(
                "INVALID_INPUT", "ack.delivery", f"expected at most {sent}, got {delivery}"
            )
        self._forget(self._unacked, delivery)

    def resume(self, delivery: int) -> None:
        """Sends again what came after `delivery`. Raises StreamRefused for what it cannot know."""
        kept = self._unacked or self._unsent
        least = kept[0][0] - 1 if kept else self._last
        most = self._unsent[0][0] - 1 if self._unsent else self._last
        if not least <= delivery <= most:
            raise StreamRefused(
                "INVALID_INPUT",
                "resume.delivery",
                f"expected {least} to {most}, got {delivery}",
            )
        self._unsent.extendleft(reversed(self._unacked))
        self._unacked.clear()
        self._forget(self._unsent, delivery)

    def _forget(self, entries: deque[tuple[int, bytes]], delivery: int) -> None:
        while entries and entries[0][0] <= delivery:
            self.nbytes -= len(entries.popleft()[1])
