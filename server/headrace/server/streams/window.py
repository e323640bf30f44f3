"""Cuts a signal that comes in chunks of any length into windows.

Theory of operation. Samples are written once into a block of memory, behind those that came before;
a window is a view of the block. A full block is not reused, since runs may still read it: a new one
begins with what the windows to come still need, at most one window and its context. Nothing is cut
before it is asked for, so windows that wait cost no more than their samples.

Positions count samples from the start of the session, windows are counted from 0 through all of it.
"""

from __future__ import annotations

import enum
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from headrace.inference.tensors import Array

# Windows that a block has room for, when it is made for less.
_ROOM = 4


class Tail(enum.Enum):
    """What becomes of samples that no full window covers, when the signal is flushed."""

    DROP = "drop"
    PAD = "pad"
    SHORT = "short"


@dataclass(frozen=True, slots=True)
class Framing:
    """How a signal is cut, in samples. hop: from one window's start to the next's, at least 1.
    context: samples that are given in front of a window; zeros before the signal's start."""

    window: int
    hop: int
    context: int = 0
    tail: Tail = Tail.DROP


@dataclass(frozen=True, slots=True)
class Span:
    """Windows and the samples they cover: from `first...` up to, but not with, `end...`."""

    first_window: int
    end_window: int
    first_sample: int
    end_sample: int


@dataclass(frozen=True, slots=True)
class Window:
    """One window. arrays: for each signal [context + samples, channels], read-only by agreement."""

    span: Span
    arrays: Sequence[Array]


@dataclass(frozen=True, slots=True)
class _Mark:
    """A flush: windows before it end at `position` at the latest; the next begins there."""

    position: int
    tail: Tail


class Windower:
    """One session's signals, sampled together. dtypes and channels: of each signal."""

    def __init__(
        self, framing: Framing, dtypes: Sequence[np.dtype], channels: Sequence[int]
    ) -> None:
        self.framing = framing
        self.received = 0
        self.windows = 0
        self._start = 0  # of the next window
        self._covered = 0  # where the last window ended
        self._marks: deque[_Mark] = deque()
        self._formats = list(zip(dtypes, channels, strict=True))
        self._blocks: list[Array] = []
        self._sample_bytes = sum(dtype.itemsize * c for dtype, c in self._formats)
        self._base = -framing.context  # the position of a block's first sample
        self._capacity = 0
        self.generation = 0  # counts blocks that were replaced

    @property
    def released(self) -> int:
        """All samples before this position are no longer needed."""
        return max(0, self._needed(self.received))

    def _needed(self, received: int) -> int:
        """The first position that a window to come may read. A flush may end the current hop, so
        the last samples are always kept for the context."""
        limit = self._marks[0].position if self._marks else received
        return min(self._start, limit) - self.framing.context

    @property
    def waiting(self) -> int:
        """Windows that can be cut now, up to the next flush."""
        end = self._marks[0].position if self._marks else self.received
        left = end - self._start
        window, hop = self.framing.window, self.framing.hop
        full = (left - window) // hop + 1 if left >= window else 0
        return full + (1 if self._marks and self._has_tail(full) else 0)

    def _has_tail(self, full: int) -> bool:
        """Whether the samples between the last of `full` windows and the flush make one more."""
        framing, mark = self.framing, self._marks[0]
        covered = self._start + (full - 1) * framing.hop + framing.window if full else self._covered
        start = self._start + full * framing.hop
        return mark.tail is not Tail.DROP and start < mark.position and covered < mark.position

    @property
    def marks(self) -> int:
        """Flushes that were asked for and not passed."""
        return len(self._marks)

    def ended_by(self, position: int) -> int:
        """How many of the waiting windows end at `position` or before."""
        left = position - self._start - self.framing.window
        return min(self.waiting, left // self.framing.hop + 1) if left >= 0 else 0

    @property
    def at_mark(self) -> bool:
        """Whether a flush comes next, every window before it having been cut or skipped."""
        return bool(self._marks) and self.waiting == 0

    def append(self, arrays: Sequence[Array]) -> None:
        """Takes the next samples: for each signal [samples, channels], equally many of each."""
        count = len(arrays[0])
        unneeded = min(count, max(0, self._needed(self.received + count) - self.received))
        if unneeded:  # the hop leaves them out
            self._blocks, self._capacity = [], 0
            self.generation += 1
            self.received += unneeded
            self._base = self.received
            count -= unneeded
            arrays = [array[unneeded:] for array in arrays]
        if not count:
            return
        at = self.received - self._base
        if at + count > self._capacity:
            at = self._new_blocks(count)
        for block, array in zip(self._blocks, arrays, strict=True):
            block[at : at + count] = array
        self.received += count

    @property
    def nbytes(self) -> int:
        """Bytes of the blocks that samples are written to now."""
        return self._capacity * self._sample_bytes

    def growth(self, count: int) -> int:
        """Bytes at most of the blocks that taking `count` samples would make; 0 where they fit."""
        at = self.received - self._base
        if not count or (self._blocks and at + count <= self._capacity):
            return 0
        waiting = self.received - max(self._base, self._needed(self.received))
        return (max(0, waiting) + max(count, self._room)) * self._sample_bytes

    @property
    def _room(self) -> int:
        return _ROOM * (self.framing.window + self.framing.context)

    def _new_blocks(self, count: int) -> int:
        """Makes room for `count` samples. Returns where in the blocks they go."""
        self.generation += 1
        old, old_base = self._blocks, self._base
        if old:
            self._base = self._needed(self.received)
        kept = self.received - self._base
        self._capacity = kept + max(count, self._room)
        self._blocks = [np.empty((self._capacity, c), dtype) for dtype, c in self._formats]
        for number, block in enumerate(self._blocks):
            if old:
                from_ = self._base - old_base
                block[:kept] = old[number][from_ : from_ + kept]
            else:
                block[:kept] = 0  # the context of the first window
        return kept

    def flush(self, tail: Tail | None = None) -> None:
        """Ends the windows here; those of later samples start anew. `tail`: in place of the
        framing's."""
        self._marks.append(_Mark(self.received, tail or self.framing.tail))

    def pass_mark(self) -> int:
        """Goes past the flush that comes next. Returns its position."""
        mark = self._marks.popleft()
        self._start = self._covered = mark.position
        return mark.position

    def peek(self) -> Span:
        """The window that comes next. Raises IndexError when none waits."""
        if not self.waiting:
            raise IndexError("no window waits")
        end = self._start + self.framing.window
        if self._marks:
            end = min(end, self._marks[0].position)
        return Span(self.windows, self.windows + 1, self._start, end)

    def cut(self) -> Window:
        """Takes the window that comes next. Raises IndexError when none waits."""
        span = self.peek()
        framing = self.framing
        low = span.first_sample - framing.context - self._base
        high = span.end_sample - self._base
        arrays = [block[low:high] for block in self._blocks]
        missing = framing.window - (span.end_sample - span.first_sample)
        if missing and self._marks[0].tail is Tail.PAD:
            arrays = [np.pad(array, ((0, missing), (0, 0))) for array in arrays]
        self._advance(1, span.end_sample)
        return Window(span, arrays)

    def skip(self, count: int) -> Span:
        """Gives up the next `count` windows, of those that wait."""
        if not 0 < count <= self.waiting:
            raise IndexError(f"{self.waiting} windows wait, asked to skip {count}")
        last = self._start + (count - 1) * self.framing.hop + self.framing.window
        end = min(last, self._marks[0].position) if self._marks else last
        span = Span(self.windows, self.windows + count, self._start, end)
        self._advance(count, end)
        return span

    def _advance(self, count: int, covered: int) -> None:
        self.windows += count
        self._start += count * self.framing.hop
        self._covered = covered
