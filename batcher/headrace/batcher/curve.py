"""The curve through what was seen of a few sizes: seconds of every size, never falling.

Sizes seen rarely are drawn towards a line through their neighbours; isotonic regression, since a
larger batch never takes less time (pool adjacent violators: Ayer et al., 1955); straight lines
between sizes, and beyond them.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from headrace.batcher.profiled import Numbers

# How far in log-size neighbours reach when they vouch for a size that was rarely seen.
_REACH = 0.35
_VOUCHED = 40


@dataclass(frozen=True, slots=True)
class Seen:
    """Sizes in ascending order, what each takes on average, how often it was run, how many runs it
    counts for where it speaks for others, and by what part of itself a run is off."""

    sizes: Numbers
    means: Numbers
    weights: Numbers
    vouching: Numbers
    spread: float


def through(seen: Seen, largest: int, trusted: int) -> Numbers:
    """Seconds of 0 to `largest` rows.

    A row of a size beyond `trusted` is not taken to be cheaper than one of that size: noise in two
    measurements would make any size look good from far enough away.
    """
    sizes = seen.sizes
    every = np.arange(largest + 1)
    if len(sizes) == 1:
        # One size says nothing of the slope; most of it is taken to grow with the rows.
        slope = 0.7 * seen.means[0] / sizes[0]
        single: Numbers = seen.means[0] + slope * (every - sizes[0])
        return single
    seconds = isotonic(_smoothed(seen), seen.vouching)
    line = np.interp(every, sizes, seconds)
    half = max(1, len(sizes) // 2)
    slope = max(1e-9, (seconds[-1] - seconds[-1 - half]) / (sizes[-1] - sizes[-1 - half]))
    above, below, beyond = every > sizes[-1], every < sizes[0], every > trusted
    line[above] = seconds[-1] + slope * (every[above] - sizes[-1])
    line[beyond] = np.maximum(line[beyond], line[trusted] * every[beyond] / trusted)
    proportional = seconds[0] * every[below] / sizes[0]
    line[below] = np.maximum(proportional, seconds[0] - slope * (sizes[0] - every[below]))
    return line


def _smoothed(seen: Seen) -> Numbers:
    """Means, those of rarely seen sizes drawn towards a line through their neighbours."""
    sizes, means, weights = seen.sizes, seen.means, seen.weights
    rare = np.flatnonzero(weights < _VOUCHED)
    if not rare.size:
        return means
    logs = np.log(sizes)
    # A row for each rare size, a column for each size that vouches for it.
    kernel = seen.vouching * np.exp(-(((logs - logs[rare, None]) / _REACH) ** 2) / 2)
    kernel /= kernel.sum(1, keepdims=True)
    x, y = kernel @ sizes, kernel @ means
    across, up = sizes - x[:, None], means - y[:, None]
    variance = np.maximum((kernel * across**2).sum(1), 1e-9)
    slope = np.maximum((kernel * across * up).sum(1) / variance, 0.0)
    fitted = y + slope * (sizes[rare] - x)
    strangeness = np.abs(means[rare] / np.maximum(fitted, 1e-12) - 1) / (1.5 * seen.spread + 0.01)
    pull = 4 / (1 + strangeness**2)
    out = means.copy()
    out[rare] = (weights[rare] * means[rare] + pull * fitted) / (weights[rare] + pull)
    return out


def isotonic(values: Numbers, weights: Numbers) -> Numbers:
    """The non-decreasing sequence nearest to `values` in weighted least squares."""
    blocks: list[tuple[float, float, int]] = []
    for value, weight in zip(values.tolist(), weights.tolist(), strict=True):
        block = (value, weight, 1)
        while blocks and blocks[-1][0] > block[0]:
            mean, mass, length = blocks.pop()
            total = mass + block[1]
            block = ((mean * mass + block[0] * block[1]) / total, total, length + block[2])
        blocks.append(block)
    pooled: Numbers = np.concatenate([np.full(length, mean) for mean, _, length in blocks])
    return pooled
