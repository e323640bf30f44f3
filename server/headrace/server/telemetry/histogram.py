"""Histograms that are preallocated: to observe is one bisection and two additions.

The buckets of a scale are those of two families of bounds at once, so that what was counted can be
told exactly in either: decimal bounds, for Prometheus and people, and powers of 2 ** 2 ** -s, the
bounds of a base-2 exponential histogram of scale s (OpenTelemetry's data model).
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Exponential:
    """Counts of the buckets (base ** (offset + k), base ** (offset + k + 1)], k from 0, where base
    is 2 ** 2 ** -scale. What lies below the first or above the last is counted there.
    """

    scale: int
    offset: int
    counts: Sequence[int]


class Scale:
    """Bounds of buckets, ascending; upper ends belong to their buckets.

    `decimal`: bounds as people write them. `exponents`: the powers of 2 ** 2 ** -`exponent` that
    are bounds as well.
    """

    def __init__(self, decimal: Sequence[float], exponent: int, exponents: range) -> None:
        self.decimal = tuple(decimal)
        self.exponent = exponent
        self.offset = exponents[0] - 1
        powers = [2.0 ** (power * 2.0**-exponent) for power in exponents]
        self.bounds = sorted({*self.decimal, *powers})
        ends = [*self.bounds, float("inf")]
        self._decimal_of = [bisect_left(self.decimal, end) for end in ends]
        self._power_of = [bisect_left(powers, end) for end in ends]

    def decimal_counts(self, counts: Sequence[int]) -> list[int]:
        """One for each decimal bound, and what lies above the last."""
        return _sums(counts, self._decimal_of, len(self.decimal) + 1)

    def exponential(self, counts: Sequence[int]) -> Exponential:
        sums = _sums(counts, self._power_of, self._power_of[-1] + 1)
        return Exponential(self.exponent, self.offset, sums)


def _sums(counts: Sequence[int], places: Sequence[int], size: int) -> list[int]:
    sums = [0] * size
    for place, count in zip(places, counts, strict=True):
        sums[place] += count
    return sums


class Histogram:
    """Counts of values by the buckets of `scale`, and their sum."""

    __slots__ = ("_bounds", "counts", "scale", "sum")

    def __init__(self, scale: Scale) -> None:
        self.scale = scale
        self._bounds = scale.bounds
        self.counts = [0] * (len(scale.bounds) + 1)
        self.sum = 0.0

    def __repr__(self) -> str:
        return f"<Histogram: {self.count} values, sum {self.sum:g}>"

    @property
    def count(self) -> int:
        return sum(self.counts)

    def observe(self, value: float) -> None:
        self.counts[bisect_left(self._bounds, value)] += 1
        self.sum += value

    def copy(self) -> Histogram:
        """What was counted until now."""
        twin = Histogram(self.scale)
        twin.counts, twin.sum = self.counts.copy(), self.sum
        return twin


# 100 us to 60 s, eleven bounds below 5 ms; exponential from 8 us to 128 s, 19% wide.
SECONDS = Scale(
    (
        *(0.0001, 0.0002, 0.0003, 0.0005, 0.00075),
        *(0.001, 0.0015, 0.002, 0.0025, 0.003, 0.004),
        *(0.005, 0.0075, 0.01, 0.015, 0.025, 0.05, 0.075),
        *(0.1, 0.15, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0),
    ),
    2,
    range(-17 * 4, 7 * 4 + 1),
)
ROWS = Scale([2.0**power for power in range(11)], 0, range(11))
# A measured time over its prediction.
RATIO = Scale((0.25, 0.5, 0.7, 0.8, 0.9, 1.0, 1.1, 1.25, 1.5, 2.0, 4.0), 2, range(-8, 9))
