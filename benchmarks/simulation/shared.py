"""Models on processors that their callers use too: what the clean executors leave out.

Small real models as they were met on a machine of two processors. What a run takes is skewed,
drifts, and now and then is a multiple of the usual; an executor is busy for longer than its run,
with what comes before and after; and what was measured at load, with nobody else there and perhaps
with another shape, is not what a run takes beside callers.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from simulation.workloads import Numbers, Profile, Trace, Workload

# A run takes its table's time, times a lognormal factor of this spread, times a slow walk between
# these bounds; one in twenty takes several times as long.
_JITTER, _STEP, _WALK = 0.18, 0.002, (0.94, 1.07)
_SPIKE_SHARE, _SPIKES = 0.05, (1.5, 3.5)
_NOISES = 1 << 14
# Seconds beside each run for which its executor can do nothing else.
_OVERHEAD = 4e-4
_LARGEST = 64
# A workload has as many requests as the executors can answer in so many seconds.
_SECONDS = 3.0


@dataclass(frozen=True)
class Model:
    """What a batch takes beside callers, in seconds by rows, and what it took at load."""

    table: tuple[float, ...]
    profile: Profile


def _by_rows(seconds: Callable[[int], float]) -> tuple[float, ...]:
    return (0.0, *(seconds(rows) for rows in range(1, _LARGEST + 1)))


def _per_row(milliseconds: dict[int, float]) -> tuple[float, ...]:
    """From what a row takes in batches of some sizes; between them it is a line."""
    sizes, times = list(milliseconds), list(milliseconds.values())
    return _by_rows(lambda rows: float(np.interp(rows, sizes, times)) * rows * 1e-3)


_TRANSFORMER = _by_rows(lambda rows: 5.8e-3 * rows * (1 + 0.001 * rows))
_RECURRENT = _by_rows(lambda rows: (0.35 + 0.09 * rows) * 1e-3)
# Its batches cost more by the row the larger they are, a little; and of its free shape the profile
# took the smallest, 1/144 of what callers send, of which a row costs less in batches.
_CONVOLUTION = _per_row({1: 1.05, 2: 1.08, 4: 1.1, 8: 1.13, 16: 1.22, 32: 1.3, 64: 1.35})
_SMALLEST = _per_row({1: 0.17, 2: 0.12, 4: 0.1, 8: 0.09, 16: 0.085, 32: 0.085, 64: 0.11})

MODELS = {
    "transformer": Model(_TRANSFORMER, Profile(_TRANSFORMER)),
    "recurrent": Model(_RECURRENT, Profile(_RECURRENT)),
    "convolution": Model(_CONVOLUTION, Profile(_SMALLEST, share=1 / 144)),
}


@dataclass(frozen=True)
class SharedCores(Workload):
    """Callers in closed loop, without deadlines, of one of MODELS."""

    @property
    def largest(self) -> int:
        return _LARGEST

    @property
    def alone(self) -> float:
        return MODELS[self.table].table[1]

    @property
    def capacity(self) -> float:
        best = min((t + _OVERHEAD) / n for n, t in enumerate(MODELS[self.table].table) if n)
        return self.executors / best

    @property
    def patience(self) -> float:
        return math.inf

    @cached_property
    def trace(self) -> Trace:
        model, random = MODELS[self.table], np.random.default_rng(self.seed)
        return Trace(
            tables=[list(model.table)],
            shapes=[0] * self.requests,
            arrivals=[],
            pauses=random.exponential(self.think, self.requests).tolist(),
            noise=_noise(random).tolist(),
            profile=model.profile,
            overhead=_OVERHEAD,
        )


def _noise(random: np.random.Generator) -> Numbers:
    noise: Numbers = np.exp(random.normal(0, _JITTER, _NOISES))
    slow = random.random(_NOISES) < _SPIKE_SHARE
    noise[slow] *= random.uniform(*_SPIKES, int(slow.sum()))
    walk = np.cumsum(random.normal(0, _STEP, _NOISES))
    noise *= np.clip(np.exp(walk - walk.mean()), *_WALK)
    mean_of_one: Numbers = noise / noise.mean()
    return mean_of_one


def shared_cores(model: str, callers: int) -> SharedCores:
    """`callers` who go on for some seconds, on a machine of two processors."""
    one = SharedCores(model, 2, "closed", 0, callers=callers, think=2e-4)
    return replace(one, requests=int(_SECONDS * one.capacity))
