"""Which lengths to pad to, so that requests of unequal length can share a batch.

Padding wastes work and company saves some; which wins depends on what batches cost, on the lengths
that are asked for, and on how many rows wait together. All three are learned. With buckets j of
boundary l_j (the length everything in the bucket is padded to), p_j the share of the rows that fall
into it, r the rows of a request and c the rows of others that wait beside it, a row of bucket j is
expected to run in a batch of n_j = r + p_j c rows, at most the largest allowed. The boundaries
minimise the expected time of a row,

    sum over j of  p_j s(l_j, n_j),      s(l, n) = min over k <= n of  t(l, k) / k

with t(l, k) the learned time of k rows of length l. s takes the best size up to n rather than n
itself, because the policy does. The optimum is found exactly, by dynamic programming over the
sorted lengths: the best partition of the first j lengths ends with a bucket (i, j], before which
stands the best partition of the first i.

Lengths are counted in a histogram that forgets: at each rebuild all counts are halved. It holds a
bounded number of lengths; when there are more, neighbours are merged where that would pad least. A
rebuild comes after ever more rows, so that in between a length costs one bisection.

A request that waits alone gains nothing from padding: then n_j is r whatever the buckets, longer
rows never take less time, and every length is served as itself.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from headrace.batcher.curve import isotonic
from headrace.batcher.profiled import Numbers

Cost = Callable[[int, int], float]

# Lengths among which boundaries are chosen, and lengths that are counted between rebuilds.
CANDIDATES = 64
_COUNTED = 256
# Rows between rebuilds: few at first, doubling up to the second.
_FIRST_REBUILD, _RAREST_REBUILD = 64, 4096
# What is left of a count after so many halvings no longer matters.
_FORGOTTEN = 0.25


@dataclass(frozen=True, slots=True)
class Company:
    """Who runs together, in rows: those of a request itself, and those of others that wait."""

    own: float = 1.0
    others: float = 0.0

    def rows(self, share: Numbers | float) -> Numbers | float:
        """The expected batch in a bucket that holds this share of all rows."""
        return self.own + share * self.others


class Buckets:
    """Maps the lengths of one model's requests to the lengths they are padded to.

    `boundaries` are the lengths padded to, ascending; empty while every length is served as itself.
    """

    def __init__(self, largest_batch: int) -> None:
        self.boundaries: list[int] = []
        self._sizes = _batch_sizes(largest_batch)
        self._counts: dict[int, float] = {}
        self._rows = self._own = self._others = 0.0
        self._fresh = 0
        self._due = _FIRST_REBUILD

    def __repr__(self) -> str:
        return f"<Buckets: {self.boundaries or 'exact lengths'}, {self.company}>"

    @property
    def company(self) -> Company:
        """What the average row meets."""
        if not self._rows:
            return Company()
        return Company(self._own / self._rows, self._others / self._rows)

    def of(self, length: int) -> int:
        """The length that `length` is padded to; itself when it is larger than every boundary."""
        at = bisect_left(self.boundaries, length)
        return self.boundaries[at] if at < len(self.boundaries) else length

    def seen(self, length: int, rows: int, others: float, cost: Cost) -> bool:
        """Counts a request of `rows` rows of `length`, beside which `others` rows waited.

        When enough have come, the boundaries are chosen anew by `cost`, which gives the seconds of
        a batch from its length and its rows, and nan where nothing is known. Returns whether they
        were.
        """
        if length not in self._counts and len(self._counts) >= _COUNTED:
            self._counts = _merged(self._counts, _COUNTED // 2)
        self._counts[length] = self._counts.get(length, 0.0) + rows
        self._rows += rows
        self._own += rows * rows
        self._others += rows * others
        self._fresh += rows
        if self._fresh < self._due:
            return False
        self._rebuild(cost)
        return True

    def _rebuild(self, cost: Cost) -> None:
        candidates = _merged(self._counts, CANDIDATES)
        lengths = sorted(candidates)
        counts = np.array([candidates[length] for length in lengths])
        self.boundaries = choose(lengths, counts, self.company, self._sizes, cost)
        self._counts = {n: c / 2 for n, c in self._counts.items() if c / 2 >= _FORGOTTEN}
        self._rows /= 2
        self._own /= 2
        self._others /= 2
        self._fresh = 0
        self._due = min(2 * self._due, _RAREST_REBUILD)


def choose(
    lengths: Sequence[int], counts: Numbers, company: Company, sizes: Sequence[int], cost: Cost
) -> list[int]:
    """The boundaries for `counts[i]` rows of `lengths[i]` (ascending) in such company.

    `sizes` are the batch sizes at which costs are asked for, ascending from 1. Empty when exact
    lengths are best, or when the costs are not known.
    """
    if len(lengths) < 2 or company.others <= 0:
        return []
    row_seconds = _row_seconds(lengths, counts, sizes, cost)
    if row_seconds is None:
        return []
    cut = _partition(counts / counts.sum(), company, np.array(sizes, float), row_seconds)
    # A bucket for every length is no bucket: lengths never seen are not to be padded either.
    return [] if len(cut) == len(lengths) else [lengths[end] for end in cut]


def expected_seconds(
    ends: Sequence[int],
    lengths: Sequence[int],
    counts: Numbers,
    company: Company,
    sizes: Sequence[int],
    cost: Cost,
) -> float:
    """The expected time of a row when buckets end at `lengths[end]` for each of `ends`, ascending.

    The last of `ends` is the last length. nan when the costs are not known.
    """
    row_seconds = _row_seconds(lengths, counts, sizes, cost)
    if row_seconds is None:
        return math.nan
    shares, grid = counts / counts.sum(), np.array(sizes, float)
    total, start = 0.0, 0
    for end in ends:
        share = float(shares[start : end + 1].sum())
        total += share * float(np.interp(company.rows(share), grid, row_seconds[end]))
        start = end + 1
    return total


def _partition(
    shares: Numbers, company: Company, sizes: Numbers, row_seconds: Numbers
) -> list[int]:
    """The index of the last length of each bucket, ascending, of the cheapest partition."""
    count = len(shares)
    before = np.concatenate([[0.0], np.cumsum(shares)])
    best = np.zeros(count + 1)
    begins = [0] * (count + 1)
    for end in range(1, count + 1):
        share = before[end] - before[:end]
        total = best[:end] + share * np.interp(company.rows(share), sizes, row_seconds[end - 1])
        # Of equals the narrowest bucket: the last.
        begins[end] = end - 1 - int(np.argmin(total[::-1]))
        best[end] = total[begins[end]]
    ends, at = [], count
    while at:
        ends.append(at - 1)
        at = begins[at]
    return ends[::-1]


def _row_seconds(
    lengths: Sequence[int], counts: Numbers, sizes: Sequence[int], cost: Cost
) -> Numbers | None:
    """s(l, n) for each length and each of `sizes`; None when a cost is not known.

    Costs of lengths seen rarely are noisy, and a longer row never takes less time: each size's
    costs are made non-decreasing in the length.
    """
    seconds = np.array([[cost(length, rows) for rows in sizes] for length in lengths])
    if np.isnan(seconds).any():
        return None
    per_row = seconds / np.array(sizes, float)
    smooth = np.column_stack([isotonic(column, counts) for column in per_row.T])
    least: Numbers = np.minimum.accumulate(smooth, axis=1)
    return least


def _batch_sizes(largest: int) -> list[int]:
    """1, 2, 4, ... up to `largest`, which is one of them; costs are taken as linear in between."""
    return [*(1 << k for k in range((largest - 1).bit_length())), largest]


def _merged(counts: dict[int, float], most: int) -> dict[int, float]:
    """At most `most` lengths: neighbours merged into the longer one, where that pads least."""
    lengths = np.array(sorted(counts))
    left = np.array([counts[length] for length in lengths.tolist()])
    while len(lengths) > most:
        at = int(np.argmin(left[:-1] * np.diff(lengths)))
        left[at + 1] += left[at]
        lengths, left = np.delete(lengths, at), np.delete(left, at)
    return dict(zip(lengths.tolist(), left.tolist(), strict=True))
