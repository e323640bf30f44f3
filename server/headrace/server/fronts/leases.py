"""Tensors of requests, read where a front process has put them, and the end of each reading."""

from __future__ import annotations

import mmap
import weakref
from collections import deque
from functools import partial
from typing import Any

import numpy as np


class Leases:
    """Parts of an arena that are lent to requests.

    A part may be written again once nothing refers to it: not when its request is answered, since a
    run whose caller has left still reads. So each is an array of its own that dies with the last
    view of it, on whatever thread that is.
    """

    def __init__(self, memory: mmap.mmap) -> None:
        self._memory = memory
        self._lent: dict[int, weakref.ref[Any]] = {}
        self._ended: deque[int] = deque()

    def view(self, offset: int, size: int) -> memoryview:
        """Read-only. Arrays made of it keep the part lent."""
        # Made from the map, not cut from an array: NumPy would have views of it refer to that.
        part: Any = np.frombuffer(self._memory, np.uint8, size, offset)
        self._lent[offset] = weakref.ref(part, partial(self._end, offset))
        return memoryview(part)

    def _end(self, offset: int, _: Any) -> None:
        del self._lent[offset]
        self._ended.append(offset)

    def ended(self) -> list[int]:
        """Offsets of what nothing refers to any more, since this was asked last."""
        return [self._ended.popleft() for _ in range(len(self._ended))]
