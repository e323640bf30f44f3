"""Memory that batches are gathered into, kept from one batch to the next."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Hashable, Sequence

import numpy as np
import numpy.typing as npt

from headrace.inference.tensors import Array

_KEPT_KEYS = 16


class Buffers:
    """One buffer for each input of the keys seen last, grown when too small.

    Not for several threads: what it gives out is overwritten when the same key is asked for again.
    """

    def __init__(self) -> None:
        self._kept: OrderedDict[Hashable, Array] = OrderedDict()

    def get(self, key: Hashable, shape: Sequence[int], dtype: npt.DTypeLike) -> Array:
        """An array of `shape` with anything in it, contiguous whatever axis its rows lie along."""
        count = math.prod(shape)
        flat = self._kept.get(key)
        if flat is None or len(flat) < count or flat.dtype != dtype:
            flat = np.empty(count, dtype)
            self._kept[key] = flat
        self._kept.move_to_end(key)
        if len(self._kept) > _KEPT_KEYS:
            self._kept.popitem(last=False)
        return flat[:count].reshape(shape)
