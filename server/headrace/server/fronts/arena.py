"""Memory that two processes share: one writes tensors there, the other reads them where they lie.

The writer decides what lies where, in slots; the reader gives a slot back when it has done with it,
by a message. The memory has no name: it is a file descriptor that was handed over, and the kernel
frees it when the last of the two processes has gone, however it went. Nothing stays in /dev/shm,
nor does that folder's size, 64 MB in many containers, limit it. Linux: memfd_create(2).
"""

from __future__ import annotations

import mmap
import os
from bisect import bisect
from collections.abc import Sequence
from typing import Any

# Tensors begin where a cache line, and a vector of any processor, does.
ALIGNMENT = 64


def aligned(size: int) -> int:
    """`size` rounded up to the alignment; never 0."""
    return max(ALIGNMENT, -(-size // ALIGNMENT) * ALIGNMENT)


class Slots:
    """Which parts of `size` bytes are taken. First fit, the lowest offset first: what was used
    lately is used again, and memory that a peak did not reach is never touched."""

    def __init__(self, size: int) -> None:
        self._starts = [0]  # of the free parts, sorted
        self._free = {0: size - size % ALIGNMENT}
        self._taken: dict[int, int] = {}

    def take(self, size: int) -> int | None:
        """The offset of `size` bytes, aligned; None when no free part is large enough."""
        size = aligned(size)
        for index, start in enumerate(self._starts):
            free = self._free[start]
            if free < size:
                continue
            del self._free[start]
            if free > size:
                self._starts[index] = start + size
                self._free[start + size] = free - size
            else:
                del self._starts[index]
            self._taken[start] = size
            return start
        return None

    def give(self, start: int) -> None:
        """Frees what `take` gave. Raises KeyError for what is not taken."""
        size = self._taken.pop(start)
        index = bisect(self._starts, start)
        if index < len(self._starts) and self._starts[index] == start + size:
            size += self._free.pop(self._starts.pop(index))
        if index and self._starts[index - 1] + self._free[self._starts[index - 1]] == start:
            self._free[self._starts[index - 1]] += size
        else:
            self._starts.insert(index, start)
            self._free[start] = size

    def __len__(self) -> int:
        """How many slots are taken."""
        return len(self._taken)


class Writer:
    """The side that writes."""

    def __init__(self, descriptor: int, size: int) -> None:
        """`descriptor` stays the caller's."""
        self._memory = mmap.mmap(descriptor, size)
        self.slots = Slots(size)

    def put(self, parts: Sequence[Any], sizes: Sequence[int], *, apart: bool = False) -> int | None:
        """Copies `parts`, of so many bytes each, into one slot, and gives its offset; None when no
        place is left. They follow each other closely or, `apart`, each begins where it is aligned.

        Parts are bytes, or arrays that lie in one piece.
        """
        spans = [aligned(size) for size in sizes] if apart else sizes
        offset = self.slots.take(sum(spans))
        if offset is None:
            return None
        at = offset
        for part, size, span in zip(parts, sizes, spans, strict=True):
            if size:
                self._memory[at : at + size] = part
            at += span
        return offset


def map_to_read(descriptor: int, size: int) -> mmap.mmap:
    """What a Writer in the other process fills; `descriptor` stays the caller's."""
    return mmap.mmap(descriptor, size, access=mmap.ACCESS_READ)


def new_memory(name: str, size: int) -> int:
    """A descriptor of `size` bytes of memory, none of which are taken until they are written to.

    `name` is for /proc alone.
    """
    descriptor = os.memfd_create(name, os.MFD_CLOEXEC)
    try:
        os.ftruncate(descriptor, size)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor
