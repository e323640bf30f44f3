"""Which batch size to want, given what batches cost.

Batching is not free: on many models a large batch takes longer than its rows would one after the
other, and even where it pays, a row that joins makes the others wait. So the size to want minimises
the total waiting of all that is queued: with t(n) the time of a batch of n and Q rows waiting,

    n = argmin  Q t(n) + W(Q - n),      W(m) = min over k of  m t(k) + W(m - k)

W being the waiting of the rest when it is served best: dynamic programming over the queue's length.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence

import numpy as np

# The queue lengths for which sizes are worked out; in between the next one up is used.
_LENGTHS = (1, 2, 3, 4, 5, 6, 8, 10, 12, 16, 20, 24, 32, 40, 48, 64, 80, 96, 128, 192, 256)
# Sizes are chosen for a little more than the measured rate, or the queue would never shrink.
_MARGIN = 1.05
# The last few per cent of the peak rate are noise in the costs, or very large batches.
_NEARLY = 0.97
# A batch that reaches this share of the peak rate saves about as much as company can.
_EFFICIENT = 0.9
# A smaller gain than this share of the batch's own waiting is noise in the costs; the larger batch
# is preferred then.
_INDIFFERENT = 0.004


class SizePlan:
    """What follows from one table of costs. Built when that changes, looked up at decisions."""

    def __init__(self, seconds: Sequence[float]) -> None:
        """`seconds[n]` is the time of a batch of n rows, n up to the largest allowed."""
        self.seconds = seconds
        self.largest = len(seconds) - 1
        self._times = times = np.array(seconds[1:])
        # Worked out as far as they are asked for: most queues are short, and costs change often.
        self._waiting, self._serial = np.zeros(_LENGTHS[-1] + 1), np.zeros(_LENGTHS[-1] + 1)
        self._known = 0
        self._best: dict[int, list[int]] = {}
        sizes = np.arange(1, self.largest + 1)
        self._rates = np.maximum.accumulate(sizes / times).tolist()
        self.peak_rate: float = self._rates[-1]
        self.efficient = bisect_left(self._rates, _EFFICIENT * self.peak_rate) + 1

    def _work_out(self, longest: int) -> None:
        """The least waiting and the shortest time of queues of up to `longest` rows."""
        times, waiting, serial = self._times, self._waiting, self._serial
        for m in range(self._known + 1, longest + 1):
            k = min(self.largest, m)
            waiting[m] = (m * times[:k] + waiting[m - k : m][::-1]).min()
            serial[m] = (times[:k] + serial[m - k : m][::-1]).min()
        self._known = max(self._known, longest)

    def _sizes(self, queue: int) -> list[int]:
        """The best size for `queue` waiting rows, for each limit on the size from 0 up."""
        self._work_out(queue)
        times, k = self._times, min(self.largest, queue)
        total = (queue * times[:k] + self._waiting[queue - k : queue][::-1]).tolist()
        best, size, out = float("inf"), 1, [1]
        for n, (waited, seconds) in enumerate(zip(total, times.tolist(), strict=False), 1):
            if waited <= best + _INDIFFERENT * queue * seconds:
                best, size = min(best, waited), n
            out.append(size)
        return out + [size] * (self.largest - k)

    def best(self, queue: float, limit: int) -> int:
        """The size that minimises the waiting of `queue` rows, at most `limit`."""
        length = _LENGTHS[min(bisect_left(_LENGTHS, queue), len(_LENGTHS) - 1)]
        sizes = self._best.get(length)
        if sizes is None:
            sizes = self._best[length] = self._sizes(length)
        return sizes[min(limit, self.largest)]

    def sustaining(self, rate: float) -> int:
        """The smallest size that serves `rate` rows a second, or nearly the peak if none does."""
        return bisect_left(self._rates, min(rate, _NEARLY * self.peak_rate)) + 1

    def needed(self, rate: float, patience: float, executors: int) -> int:
        """The smallest size that keeps up with `rate` rows a second, as far as deadlines allow it.

        They bound it in a steady state: a request waits for the batch before its own, so with K
        executors t(n) (1 + 1/K) must fit in its `patience`, in seconds; in overload, where there
        are always fresh requests to take, t(n) + n / rate.
        """
        seconds = self.seconds
        allowed = max(1, self.within(patience / (1 + 1 / executors), self.largest))
        if self.overloaded(rate, patience, executors):
            while allowed < self.largest and (
                seconds[allowed + 1] + (allowed + 1) / rate <= patience
            ):
                allowed += 1
        return min(allowed, self.sustaining(_MARGIN * rate / executors))

    def overloaded(self, rate: float, patience: float, executors: int) -> bool:
        """Whether no steady state serves `rate` rows a second within `patience` seconds."""
        allowed = max(1, self.within(patience / (1 + 1 / executors), self.largest))
        return executors * allowed / self.seconds[allowed] < rate

    def serial(self, rows: int) -> float:
        """The shortest time, in seconds, in which one executor can run `rows` rows."""
        longest = _LENGTHS[-1]
        self._work_out(min(rows, longest))
        if rows <= longest:
            return float(self._serial[rows])
        return float(self._serial[longest]) + (rows - longest) / self.peak_rate

    def waiting(self, rows: float) -> float:
        """The total waiting, in row-seconds, of `rows` rows that one executor serves best.

        Interpolated, since an expected number of rows need not be whole; beyond the longest queue
        that was worked out it grows with the square.
        """
        longest = _LENGTHS[-1]
        below = int(rows)
        self._work_out(min(below + 1, longest))
        if rows >= longest:
            return float(self._waiting[longest]) * (rows / longest) ** 2
        part: float = self._waiting[below + 1] - self._waiting[below]
        return float(self._waiting[below] + (rows - below) * part)

    def within(self, seconds: float, limit: int) -> int:
        """The largest size of at most `limit` that takes at most `seconds`; 0 where none does."""
        return bisect_left(self.seconds, seconds * (1 + 1e-9), 0, min(limit, self.largest) + 1) - 1
