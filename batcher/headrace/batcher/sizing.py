"""Which batch size to want, given what batches cost.

Batching is not free: on many models a large batch takes longer than its rows would one after the
other, and even where it pays, a row that joins makes the others wait. So the size to want minimises
the total waiting of all that is queued: with t(n) the time of a batch of n and Q rows waiting,

    n = argmin  Q t(n) + W(Q - n),      W(m) = min over k of  m t(k) + W(m - k)

W being the waiting of the rest when it is served best: dynamic programming over the queue's length.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Callable, Sequence
from typing import Final

import numpy as np

# The queue lengths for which sizes are worked out; in between the next one up is used.
_LENGTHS: Final = (1, 2, 3, 4, 5, 6, 8, 10, 12, 16, 20, 24, 32, 40, 48, 64, 80, 96, 128, 192, 256)
# Sizes are chosen for a little more than the measured rate, or the queue would never shrink.
_MARGIN: Final = 1.05
# The last few per cent of the peak rate are noise in the costs, or very large batches.
_NEARLY: Final = 0.97
# A batch that reaches this share of the peak rate saves about as much as company can.
_EFFICIENT: Final = 0.9
# A smaller gain than this share of the batch's own waiting is noise in the costs; the larger batch
# is preferred then. One that does more rows a second is preferred to a somewhat larger gain, too:
# what it saves is certain, and how long the queue will be is not.
_INDIFFERENT: Final = 0.004
_PREFERRED: Final = 0.02


class SizePlan:
    """What follows from one table of costs. Built when that changes, looked up at decisions."""

    def __init__(self, seconds: Sequence[float], overhead: float = 0.0) -> None:
        """`seconds[n]` is the time of a batch of n rows, n up to the largest allowed; its executor
        is busy with it for `overhead` longer. A batch's own deadlines are compared with `seconds`
        alone."""
        self.seconds = seconds
        self.overhead = overhead
        self.largest = len(seconds) - 1
        self._times = times = np.array(seconds[1:]) + overhead
        # Worked out as far as they are asked for: most queues are short, and costs change often.
        self._waiting: list[float] = [0.0]
        self._serial: list[float] = [0.0]
        self._best: dict[int, list[int]] = {}
        sizes = np.arange(1, self.largest + 1)
        self._rates = np.maximum.accumulate(sizes / times).tolist()
        self.peak_rate: float = self._rates[-1]
        self.efficient = bisect_left(self._rates, _EFFICIENT * self.peak_rate) + 1

    def _waiting_of(self, longest: int) -> list[float]:
        """The least waiting of queues of up to `longest` rows, and perhaps longer ones."""
        if len(self._waiting) <= longest:
            self._waiting = self._worked_out(self._waiting, longest, lambda rows: rows)
        return self._waiting

    def _serial_of(self, longest: int) -> list[float]:
        """The shortest time of up to `longest` rows, and perhaps of more."""
        if len(self._serial) <= longest:
            self._serial = self._worked_out(self._serial, longest, lambda rows: 1)
        return self._serial

    def _worked_out(
        self, known: list[float], longest: int, weight: Callable[[int], int]
    ) -> list[float]:
        """`known` continued by x(m) = min over k of  weight(m) t(k) + x(m - k)."""
        least, times = np.empty(longest + 1), self._times
        least[: len(known)] = known
        for m in range(len(known), longest + 1):
            k = min(self.largest, m)
            rest = least[m - 1 :: -1] if k == m else least[m - 1 : m - k - 1 : -1]
            least[m] = np.minimum.reduce(weight(m) * times[:k] + rest)
        out: list[float] = least.tolist()
        return out

    def _sizes(self, queue: int) -> list[int]:
        """The best size for `queue` waiting rows, for each limit on the size from 0 up."""
        times, k = self._times, min(self.largest, queue)
        rest = np.array(self._waiting_of(queue)[queue - k : queue][::-1])
        total = (queue * times[:k] + rest).tolist()
        best, size, rate, out = math.inf, 1, 0.0, [1]
        for n, (waited, seconds) in enumerate(zip(total, times.tolist(), strict=False), 1):
            small = _PREFERRED if n / seconds >= rate else _INDIFFERENT
            if waited <= best + small * queue * seconds:
                best, size, rate = min(best, waited), n, n / seconds
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

    def edge(self, rows: int) -> int:
        """The smallest size that does as many rows a second as any of up to `rows`.

        Of a device that works in tiles, the last edge before `rows`: what is beyond would cost a
        tile of its own.
        """
        return bisect_left(self._rates, self._rates[rows - 1]) + 1

    def needed(self, rate: float, patience: float, executors: int) -> int:
        """The smallest size that keeps up with `rate` rows a second, as far as deadlines allow."""
        allowed = self.allowed(rate, patience, executors)
        return min(allowed, self.sustaining(_MARGIN * rate / executors))

    def allowed(self, rate: float, patience: float, executors: int) -> int:
        """The largest size with which requests are in time that can wait `patience` seconds.

        In a steady state a request waits for the batch before its own, so with K executors
        t(n) (1 + 1/K) must fit in its patience; in overload, where there are always fresh requests
        to take, t(n) + n / rate.
        """
        seconds = self.seconds
        allowed = max(1, self.within(patience / (1 + 1 / executors), self.largest))
        if self.overloaded(rate, patience, executors):
            while allowed < self.largest and (
                seconds[allowed + 1] + (allowed + 1) / rate <= patience
            ):
                allowed += 1
        return allowed

    def overloaded(self, rate: float, patience: float, executors: int) -> bool:
        """Whether no steady state serves `rate` rows a second within `patience` seconds."""
        allowed = max(1, self.within(patience / (1 + 1 / executors), self.largest))
        return executors * allowed / (self.seconds[allowed] + self.overhead) < rate

    def serial(self, rows: int) -> float:
        """The shortest time, in seconds, in which one executor can run `rows` rows."""
        longest = _LENGTHS[-1]
        serial = self._serial_of(min(rows, longest))
        if rows <= longest:
            return serial[rows]
        return serial[longest] + (rows - longest) / self.peak_rate

    def waiting(self, rows: float) -> float:
        """The total waiting, in row-seconds, of `rows` rows that one executor serves best.

        Interpolated, since an expected number of rows need not be whole; beyond the longest queue
        that was worked out it grows with the square.
        """
        longest = _LENGTHS[-1]
        below = int(rows)
        waiting = self._waiting_of(min(below + 1, longest))
        if rows >= longest:
            return waiting[longest] * (rows / longest) ** 2
        return waiting[below] + (rows - below) * (waiting[below + 1] - waiting[below])

    def within(self, seconds: float, limit: int) -> int:
        """The largest size of at most `limit` that takes at most `seconds`; 0 where none does."""
        return bisect_left(self.seconds, seconds * (1 + 1e-9), 0, min(limit, self.largest) + 1) - 1
