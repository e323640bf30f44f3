"""How long an output is for inputs of a given length: rules fitted to what was seen.

A rule is (length + offset) // stride. Convolutions and pools of any stride, rounding up or down,
with or without margins, come to this, one after the other too:
((n + a) // s + b) // t = (n + a + b s) // (s t).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

# Longer strides would take inputs of several times that length to be told from each other.
LONGEST_STRIDE = 32
Candidate = tuple[int, int]


def fitting(sizes: Mapping[int, int]) -> list[Candidate]:
    """Every (stride, offset) that gives the observed size for each observed length, in order.

    Empty when no rule does, or when all sizes are 0.
    """
    if not any(sizes.values()):
        return []
    found = []
    for stride in range(1, LONGEST_STRIDE + 1):
        low = max(stride * size - length for length, size in sizes.items() if size)
        high = min(stride * size + stride - 1 - length for length, size in sizes.items())
        found += [(stride, offset) for offset in range(low, high + 1)]
    return found


def most_telling(candidates: Sequence[Candidate], lengths: Sequence[int]) -> int | None:
    """The length whose size would rule out the most of `candidates`; None when they all agree."""
    strides, offsets = np.array(candidates).T
    best, fewest = None, len(candidates)
    for length in lengths:
        sizes = np.maximum(0, (length + offsets) // strides)
        most_common = int(np.bincount(sizes).max())
        if most_common < fewest:
            best, fewest = length, most_common
    return best
