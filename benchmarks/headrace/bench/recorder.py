"""From the raw facts of requests to what they come to.

A load process only notes four numbers for each request that has ended, a *row*: when it was due,
when it was sent, when it ended, and a code that says how. All else is derived here, in the process
that draws no load, many rows at a time: recording into a histogram of pure Python costs over a
microsecond a value, a row costs a tenth of that.

What counts (began and ended are the edges of the measured stretch):

- A request belongs to the measurement when it was due in the stretch, whenever its answer comes.
  So `sent = ok + errors + unfinished`, each request in exactly one of them.
- An interval counts what *ended* in it, also answers to what was sent at the end of the warm-up;
  and throughput is what ended in the stretch. In a steady state these balance what is answered
  after it; under overload nothing that only drained afterwards counts.
- Latency and service time are those of OK answers, late ones included; and of unfinished requests,
  with their age when the waiting was given up: less than the truth, but leaving them out would
  hide the slowest. Errors have no latency: a refusal is quick, and would flatter.
- A request without an answer whose deadline has passed is an error, DEADLINE_EXCEEDED. One that
  was answered OK after its deadline is `ok` but not `good`.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from headrace.bench.results import Distribution, Interval
from headrace.bench.times import Times

Rows = npt.NDArray[np.float64]
"""[requests, 4]: due, sent and ended in seconds of the monotonic clock, and the code."""

DUE, SENT, ENDED, CODE = range(4)
GOOD, LATE, UNFINISHED, FIRST_ERROR = range(4)
"""Codes: OK within the deadline, OK after it, no answer; from FIRST_ERROR on, an error of the
status that many places further in the table of statuses."""


@dataclass(frozen=True, slots=True)
class Totals:
    """The sums of a measurement, named as `Measurement` has them."""

    sent: int
    ok: int
    good: int
    unfinished: int
    errors: dict[str, int]
    throughput: float
    goodput: float
    latency: Distribution | None
    service: Distribution | None
    behind: Distribution | None


@dataclass(slots=True)
class _Second:
    ok: int = 0
    good: int = 0
    errors: int = 0
    latencies: list[npt.NDArray[np.float64]] = field(default_factory=list)


class Recorder:
    """Takes the rows of all processes, in any order. `began` is on the clock of the rows; `seconds`
    may be infinite, for a warm-up."""

    def __init__(self, began: float, seconds: float) -> None:
        self.began, self.seconds = began, seconds
        self.latency, self.service, self.behind = Times(), Times(), Times()
        self._counts: Counter[str] = Counter()
        self._seconds: dict[int, _Second] = {}
        self._intervals: dict[int, Interval] = {}

    def add(self, rows: Rows, statuses: Sequence[str]) -> None:
        """Counts `rows`; `statuses` is the table that their codes point into."""
        self._add_by_end(rows)
        mine = rows[(rows[:, DUE] >= self.began) & (rows[:, DUE] < self.began + self.seconds)]
        for code, count in zip(*np.unique(mine[:, CODE], return_counts=True), strict=True):
            self._counts[_name(int(code), statuses)] += int(count)
        self.behind.add(mine[:, SENT] - mine[:, DUE])
        timed = mine[mine[:, CODE] <= UNFINISHED]
        self.latency.add(timed[:, ENDED] - timed[:, DUE])
        self.service.add(timed[:, ENDED] - timed[:, SENT])

    def _add_by_end(self, rows: Rows) -> None:
        rows = rows[rows[:, CODE] != UNFINISHED]
        since = rows[:, ENDED] - self.began
        inside = (since >= 0) & (since < self.seconds)
        rows, seconds = rows[inside], since[inside].astype(np.int64)
        for number in np.unique(seconds).tolist():
            of = rows[seconds == number]
            second = self._seconds.setdefault(number, _Second())
            answered = of[of[:, CODE] <= LATE]
            second.ok += len(answered)
            second.good += int(np.count_nonzero(of[:, CODE] == GOOD))
            second.errors += len(of) - len(answered)
            second.latencies.append(answered[:, ENDED] - answered[:, DUE])

    def interval(self, number: int) -> Interval:
        """The second of this number, once all of its rows have come; later rows don't change it."""
        if number not in self._intervals:
            second = self._seconds.setdefault(number, _Second())
            latencies = np.concatenate(second.latencies or [np.empty(0)]) * 1e3
            second.latencies = []
            p50, p99 = np.percentile(latencies, [50, 99]) if len(latencies) else (None, None)
            self._intervals[number] = Interval(
                start=float(number),
                seconds=min(1.0, self.seconds - number),
                ok=second.ok,
                errors=second.errors,
                p50_ms=p50 if p50 is None else float(p50),
                p99_ms=p99 if p99 is None else float(p99),
            )
        return self._intervals[number]

    def edge(self, number: int) -> float:
        """Seconds from the beginning to the end of the second of this number."""
        return min(number + 1.0, self.seconds)

    def intervals(self) -> tuple[Interval, ...]:
        """All of them, also those in which nothing ended."""
        return tuple(self.interval(number) for number in range(math.ceil(self.seconds)))

    def totals(self) -> Totals:
        """What it all comes to."""
        counts = self._counts
        errors = {
            status: count
            for status, count in sorted(counts.items())
            if status not in (_OK, _LATE, _UNFINISHED)
        }
        ended = self._seconds.values()
        return Totals(
            sent=counts.total(),
            ok=counts[_OK] + counts[_LATE],
            good=counts[_OK],
            unfinished=counts[_UNFINISHED],
            errors=errors,
            throughput=sum(second.ok for second in ended) / self.seconds,
            goodput=sum(second.good for second in ended) / self.seconds,
            latency=self.latency.distribution(),
            service=self.service.distribution(),
            behind=self.behind.distribution(),
        )


_OK, _LATE, _UNFINISHED = "ok", "late", "unfinished"  # no gRPC status is in lower case


def _name(code: int, statuses: Sequence[str]) -> str:
    if code >= FIRST_ERROR:
        return statuses[code - FIRST_ERROR]
    return (_OK, _LATE, _UNFINISHED)[code]
