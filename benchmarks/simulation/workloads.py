"""What is simulated: executors with a table of costs, callers, and what they ask for.

All times are seconds, all rates are rows a second.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
import numpy.typing as npt

Numbers = npt.NDArray[np.float64]

# A run takes its table's time, times a lognormal factor; a few take much longer.
_JITTER = 0.05
_SPIKE_SHARE, _SPIKE = 0.002, 3.0
_NOISES = 1 << 14
# Gamma arrivals with a coefficient of variation of 4.
_GAMMA_SHAPE = 1 / 16
# On-off arrivals: a fifth of the time at four times the mean rate, else at a quarter of it. A burst
# lasts this many t(1) on average.
_ON_RATE, _OFF_RATE, _ON_SHARE = 4.0, 0.25, 0.2
_BURST = 30.0
# What a row of each shape costs, relative to the first: repeated for as many shapes as there are.
_SHAPE_COSTS = (1.0, 0.5, 2.0, 0.7)


def _line(fixed: float, per_row: float, largest: int) -> tuple[float, ...]:
    return (0.0, *((fixed + per_row * n) * 1e-3 for n in range(1, largest + 1)))


def _tiles(milliseconds: dict[int, float]) -> tuple[float, ...]:
    """Every size costs what the next tile up does."""
    times, size = [0.0], 1
    for tile, cost in sorted(milliseconds.items()):
        times += [cost * 1e-3] * (tile - size + 1)
        size = tile + 1
    return tuple(times)


# Seconds by rows of a batch, entry 0 being 0.
TABLES: dict[str, tuple[float, ...]] = {
    "CPU transformer": _line(0.5, 3.0, 32),  # batching gains a seventh at most
    "GPU CNN": _line(2.0, 0.15, 128),
    "CPU MLP": _line(0.15, 0.05, 128),
    "GPU tiles": _tiles({1: 1.9, 2: 2.0, 4: 2.2, 8: 2.9, 16: 4.6, 32: 8.4, 64: 16.1}),
}


@dataclass(frozen=True)
class Workload:
    """One thing to be simulated.

    arrivals: "poisson", "gamma", "on-off", or "closed" for `callers` who each ask again after an
        exponential pause of mean `think` seconds.
    load: what is asked for, as a share of the executors' best capacity; unused in closed loop.
    deadline: in multiples of the mean time of one row alone; infinite for none.
    shapes: how many; the k-th is asked for in proportion to 1/k.
    """

    table: str
    executors: int = 1
    arrivals: str = "poisson"
    load: float = 0.8
    deadline: float = 5.0
    shapes: int = 1
    callers: int = 0
    think: float = 1e-4
    requests: int = 6000
    seed: int = 1

    def at(self, load: float) -> Workload:
        """The same at another load."""
        return replace(self, load=load)

    @property
    def name(self) -> str:
        parts = [self.table, f"{self.executors}x"]
        if self.shapes > 1:
            parts.append(f"{self.shapes} shapes")
        if self.arrivals == "closed":
            parts.append(f"{self.callers} callers")
        else:
            parts.append(self.arrivals)
            parts.append("no deadline" if math.isinf(self.deadline) else f"{self.deadline:g} t(1)")
        return ", ".join(parts)

    @property
    def largest(self) -> int:
        """The most rows that may share a batch."""
        return len(TABLES[self.table]) - 1

    @property
    def costs(self) -> list[float]:
        """What a row of each shape costs, relative to the first."""
        return [_SHAPE_COSTS[k % len(_SHAPE_COSTS)] for k in range(self.shapes)]

    @property
    def popularity(self) -> Numbers:
        weights = 1 / np.arange(1.0, self.shapes + 1)
        shares: Numbers = weights / weights.sum()
        return shares

    @property
    def alone(self) -> float:
        """Seconds that one row takes alone, on average over the shapes."""
        return TABLES[self.table][1] * float(self.popularity @ np.array(self.costs))

    @property
    def capacity(self) -> float:
        """Rows a second, each shape in its best batch size on every executor."""
        table = TABLES[self.table]
        best = min(table[n] / n for n in range(1, len(table)))
        return self.executors / (best * float(self.popularity @ np.array(self.costs)))

    @property
    def patience(self) -> float:
        """Seconds between arrival and deadline."""
        return self.deadline * self.alone


@dataclass(frozen=True)
class Profile:
    """What is run when a model is loaded: its seconds by rows, and the bytes of a row as a share of
    those of the first shape, where it is another shape."""

    table: Sequence[float]
    share: float = 1.0


@dataclass(frozen=True)
class Trace:
    """The dice of a workload, thrown before: every rule meets the same ones.

    arrivals: when each request comes, empty in closed loop, where `pauses` are used in turn.
    noise: the factor on the time of each run, in the order of dispatch.
    profile: what is known before the first request, None for `tables[0]`.
    overhead: seconds beside each run for which its executor is busy too.
    """

    tables: list[list[float]]
    shapes: list[int]
    arrivals: list[float]
    pauses: list[float]
    noise: list[float]
    profile: Profile | None = None
    overhead: float = 0.0


@lru_cache(maxsize=64)
def trace(workload: Workload) -> Trace:
    random = np.random.default_rng(workload.seed)
    count, closed = workload.requests, workload.arrivals == "closed"
    shapes = random.choice(workload.shapes, count, p=workload.popularity)
    noise = np.exp(random.normal(-(_JITTER**2) / 2, _JITTER, _NOISES))
    noise[random.random(_NOISES) < _SPIKE_SHARE] *= _SPIKE
    return Trace(
        tables=[[cost * t for t in TABLES[workload.table]] for cost in workload.costs],
        shapes=shapes.tolist(),
        arrivals=[] if closed else _exactly(workload, _arrivals(workload, random)).tolist(),
        pauses=random.exponential(workload.think, count).tolist() if closed else [],
        noise=noise.tolist(),
    )


def _exactly(workload: Workload, arrivals: Numbers) -> Numbers:
    """Arrivals stretched so that the load is what it says: in bursts a few thousand may be off by a
    tenth, and one would not know whether an overload was meant."""
    meant = workload.requests / (workload.load * workload.capacity)
    stretched: Numbers = arrivals * (meant / arrivals[-1])
    return stretched


def _arrivals(workload: Workload, random: np.random.Generator) -> Numbers:
    rate, count = workload.load * workload.capacity, workload.requests
    if workload.arrivals == "poisson":
        return np.cumsum(random.exponential(1 / rate, count))
    if workload.arrivals == "gamma":
        return np.cumsum(random.gamma(_GAMMA_SHAPE, 1 / (rate * _GAMMA_SHAPE), count))
    if workload.arrivals == "on-off":
        return _bursts(rate, _BURST * workload.alone, count, random)
    raise ValueError(
        f"arrivals: expected poisson, gamma, on-off or closed, got {workload.arrivals}"
    )


def _bursts(rate: float, burst: float, count: int, random: np.random.Generator) -> Numbers:
    pieces: list[Numbers] = []
    start, on, found = 0.0, False, 0
    while found < count:
        mean = burst if on else burst * (1 / _ON_SHARE - 1)
        seconds = random.exponential(mean)
        here = random.poisson(seconds * rate * (_ON_RATE if on else _OFF_RATE))
        pieces.append(start + np.sort(random.random(here)) * seconds)
        start, on, found = start + seconds, not on, found + here
    return np.concatenate(pieces)[:count]
