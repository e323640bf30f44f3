"""The latest of many numbers."""

from __future__ import annotations

import numpy as np

from headrace.inference.tensors import Array


class Rolling:
    """Keeps the last `size` numbers that were added, as float64."""

    def __init__(self, size: int) -> None:
        self._kept = np.empty(size)
        self._at = 0  # where the next one goes
        self._count = 0

    def __len__(self) -> int:
        return self._count

    @property
    def full(self) -> bool:
        return self._count == len(self._kept)

    def add(self, numbers: Array) -> None:
        """`numbers` are flat. Of more than there is room for the last ones count."""
        size = len(self._kept)
        numbers = numbers[-size:]
        places = (self._at + np.arange(len(numbers))) % size
        self._kept[places] = numbers
        self._at = (self._at + len(numbers)) % size
        self._count = min(size, self._count + len(numbers))

    def numbers(self) -> Array:
        """Those that are kept, in no order."""
        return self._kept[: self._count]

    def mean(self) -> float | None:
        """None as long as there are none."""
        return float(self.numbers().mean()) if self._count else None
