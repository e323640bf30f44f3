"""What a user handed over and the server may not have yet, in order, to be sent again if needed."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from headrace.client.errors import BadResponse
from headrace.client.stream_samples import Chunk, Sampler


@dataclass(frozen=True, slots=True)
class Samples:
    """position: samples before it. flushes: how many were asked before it."""

    position: int
    flushes: int
    chunk: Chunk

    @property
    def end(self) -> int:
        return self.position + self.chunk.count


@dataclass(frozen=True, slots=True)
class Flush:
    """number: counts from 1. position: samples before it."""

    number: int
    position: int


@dataclass(frozen=True, slots=True)
class End:
    """Nothing follows."""


Entry = Samples | Flush | End


class Log:
    """With `keep`, what was sent stays until `confirm` or `rewind` says that the server has it.

    A flush may be refused, and what came behind it would then be cut wrongly: nothing is sent until
    it is answered.
    """

    def __init__(self, sampler: Sampler, *, keep: bool) -> None:
        self.position = 0
        """Samples that were handed over."""
        self.flushes = 0
        """Flushes that were asked for."""
        self._sampler = sampler
        self._keep = keep
        self._unsent: deque[Entry] = deque()
        self._sent: deque[Entry] = deque()
        self._in_doubt: Flush | None = None

    def __len__(self) -> int:
        return len(self._unsent) + len(self._sent)

    @property
    def kept_samples(self) -> int:
        """Samples that are held here."""
        entries = (*self._sent, *self._unsent)
        return sum(entry.chunk.count for entry in entries if isinstance(entry, Samples))

    def add(self, chunk: Chunk) -> None:
        self._unsent.append(Samples(self.position, self.flushes, chunk))
        self.position += chunk.count

    def flush(self) -> int:
        """Returns its number."""
        self.flushes += 1
        self._unsent.append(Flush(self.flushes, self.position))
        return self.flushes

    def end(self) -> None:
        self._unsent.append(End())

    def clear(self) -> None:
        self._unsent.clear()
        self._sent.clear()
        self._in_doubt = None

    def next(self) -> Entry | None:
        """What is to be sent next, and counts as sent now."""
        if not self._unsent or self._in_doubt is not None:
            return None
        entry = self._unsent.popleft()
        if isinstance(entry, Flush):
            self._in_doubt = entry
        if self._keep:
            self._sent.append(entry)
        return entry

    def confirm(self, received: int, flushes: int) -> None:
        """The server has the samples before `received`, and so many flushes."""
        sent = self._sent
        while sent and _has(sent[0], received, flushes):
            sent.popleft()
        if self._in_doubt is not None and self._in_doubt.number <= flushes:
            self._in_doubt = None

    def take_back(self) -> None:
        """The flush that waits for its answer was refused: it comes next again."""
        if self._in_doubt is not None:
            self._unsent.appendleft(self._in_doubt)
            self._in_doubt = None
            if self._keep:
                self._sent.pop()

    def rewind(self, received: int, flushes: int, *, closing: bool) -> None:
        """Everything is to be sent again but what the server has. Raises BadResponse where it
        misses what it was known to have, or has what it cannot have."""
        log = self._unsent
        log.extendleft(reversed(self._sent))
        self._sent.clear()
        self._in_doubt = None
        while log and (_has(log[0], received, flushes) or (closing and isinstance(log[0], End))):
            log.popleft()
        first = next((entry for entry in log if isinstance(entry, Samples)), None)
        if first is not None and first.position < received < first.end:
            # The rest of a chunk that was taken in part; its time follows from the first part's.
            chunk = self._sampler.rest(first.chunk, received - first.position)
            log[log.index(first)] = first = Samples(received, first.flushes, chunk)
        expected = self.position if first is None else first.position
        if received != expected:
            raise BadResponse(f"resumed at sample {received}, where {expected} was expected")


def _has(entry: Entry, received: int, flushes: int) -> bool:
    """Whether a server with so much has `entry` too: it takes commands in order."""
    if isinstance(entry, Samples):
        return entry.end <= received
    if isinstance(entry, Flush):
        return entry.number <= flushes or entry.position < received
    return False
