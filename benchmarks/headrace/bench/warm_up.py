"""When a warm-up is over: by a statistical rule, not by a guess.

The rule is MSER, the marginal standard error rule (K. P. White, "An effective truncation heuristic
for bias reduction in simulation output", Simulation 69(6), 1997). Of a sequence x_1 ... x_n it
drops the first d values, where d makes the squared standard error of the rest's mean,

    sum_{i>d} (x_i - mean_{i>d})^2 / (n - d)^2,

the least: dropping a start-up phase makes the rest tighter, dropping more than it makes the mean
worse known. If d is in the second half, the sequence has not settled. A latency that keeps growing,
as in overload, never does.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from headrace.bench.recorder import CODE, DUE, ENDED, LATE, Rows
from headrace.bench.spec import BurstLoad, ClosedLoad, Load, OpenLoad, SteppedLoad, TraceLoad

WINDOW = 0.25
"""Seconds of a window, whose mean latency is one value of the sequence."""
LEAST = 8
"""Windows without which nothing is said."""
MOST = 60
"""Windows after which the warm-up ends anyway, with a warning."""
_REST = 3  # of fewer values a standard error says nothing

_CALLERS = 16


class Windows:
    """Mean latencies of successive windows, from the rows (see `recorder`) of what was answered."""

    def __init__(self, began: float) -> None:
        self._began = began
        self._sums = np.zeros(MOST)
        self._counts = np.zeros(MOST, np.int64)

    def add(self, rows: Rows) -> None:
        """Counts OK answers, each in the window in which it came."""
        rows = rows[rows[:, CODE] <= LATE]
        windows = ((rows[:, ENDED] - self._began) / WINDOW).astype(np.int64)
        rows, windows = rows[windows < MOST], windows[windows < MOST]
        latencies = rows[:, ENDED] - rows[:, DUE]
        self._sums += np.bincount(windows, latencies, minlength=MOST)
        self._counts += np.bincount(windows, minlength=MOST)

    def means(self, until: float) -> list[float]:
        """Seconds, of those windows that were over at `until` and had answers."""
        over = max(0, math.floor((min(until - self._began, MOST * WINDOW)) / WINDOW))
        counts, sums = self._counts[:over], self._sums[:over]
        means: list[float] = (sums[counts > 0] / counts[counts > 0]).tolist()
        return means


def truncation(means: Sequence[float]) -> int:
    """How many of the first values MSER drops; at least `_REST` remain."""
    values = np.asarray(means, np.float64)
    errors = [
        float(np.var(values[drop:])) / (len(values) - drop)
        for drop in range(len(values) - _REST + 1)
    ]
    return int(np.argmin(errors))


def stable(means: Sequence[float]) -> bool:
    """Whether these mean latencies of successive windows have settled: MSER drops no more than the
    first half."""
    return len(means) >= LEAST and truncation(means) <= len(means) // 2


def steady(load: Load) -> tuple[Load, bool]:
    """What a load is warmed up with, and whether it goes on into the measurement without a pause.

    A load that has no steady state (steps, a trace, bursts) is warmed up with one that has, and
    starts on an idle server.
    """
    if isinstance(load, SteppedLoad):
        seconds = sum(step.seconds for step in load.steps)
        mean = sum(step.seconds * step.rate for step in load.steps) / seconds
        return (OpenLoad(rate=mean) if mean > 0 else ClosedLoad()), False
    if isinstance(load, TraceLoad):
        return ClosedLoad(callers=_CALLERS), False
    if isinstance(load, BurstLoad):
        return ClosedLoad(callers=min(load.count, _CALLERS)), False
    return load, True
