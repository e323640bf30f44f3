"""Times of many requests, in the buckets of HdrHistogram (hdrhistogram.org)."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from hdrh.histogram import HdrHistogram

from headrace.bench.results import Distribution

_MOST_US = 3_600_000_000  # an hour; what takes longer counts as that
_DIGITS = 3
# HdrHistogram's layout for three digits: values up to 2047 have a bucket each, and every further
# power of two has 1024.
_SUB_BITS = 11
_HALF_BITS = _SUB_BITS - 1


class Times:
    """Counts times by bucket, an array at once."""

    def __init__(self) -> None:
        self._empty = HdrHistogram(1, _MOST_US, _DIGITS)
        self._counts = np.zeros(self._empty.counts_len, np.int64)
        self._sum = self._max = 0.0

    def add(self, seconds: npt.NDArray[np.float64]) -> None:
        """Counts `seconds`, each rounded to a microsecond."""
        if not len(seconds):
            return
        self._sum += float(seconds.sum())
        self._max = max(self._max, float(seconds.max()))
        micros = np.rint(np.clip(seconds * 1e6, 0, _MOST_US)).astype(np.int64)
        self._counts += np.bincount(buckets(micros), minlength=len(self._counts))

    def histogram(self) -> HdrHistogram:
        """The same as an HdrHistogram, in microseconds."""
        made = HdrHistogram(1, _MOST_US, _DIGITS)
        for index in np.flatnonzero(self._counts).tolist():
            made.record_value(made.get_value_from_index(index), int(self._counts[index]))
        return made

    def distribution(self) -> Distribution | None:
        """Percentiles from the histogram, mean and maximum exact; None where there is nothing."""
        count = int(self._counts.sum())
        if not count:
            return None
        whole = self.histogram()
        # The histogram gives the upper edge of a bucket, which may lie above all that was counted.
        p50, p90, p99, p999 = (
            min(whole.get_value_at_percentile(p) / 1e3, self._max * 1e3) for p in (50, 90, 99, 99.9)
        )
        return Distribution(
            count=count,
            mean_ms=self._sum / count * 1e3,
            p50_ms=p50,
            p90_ms=p90,
            p99_ms=p99,
            p999_ms=p999,
            max_ms=self._max * 1e3,
            histogram=whole.encode().decode("ascii"),
        )


def buckets(micros: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """The index of each value's bucket, as HdrHistogram numbers them."""
    bits = np.frexp((micros | ((1 << _SUB_BITS) - 1)).astype(np.float64))[1].astype(np.int64)
    shift = bits - _SUB_BITS
    result: npt.NDArray[np.int64] = (shift << _HALF_BITS) + (micros >> shift)
    return result
