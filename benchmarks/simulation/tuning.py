"""The best that fixed rules can do: the best point of a grid, chosen with hindsight by workload."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

from simulation.engine import Outcome, Rule, Simulation
from simulation.rules import Knobs
from simulation.workloads import Workload

RuleOf = Callable[[Knobs], Rule]
Play = TypeVar("Play", bound=Workload)
Score = Callable[[Outcome], float]

_SIZE_MOVES = (0.75, 1.25, 1.5)
_DELAY_MOVES = (0.0, 0.25, 0.5, 1.0, 2.0)
_TIMEOUT_MOVES = (-0.1, -0.05, 0.05, 0.1)


@dataclass(frozen=True)
class Grid:
    """The knobs that are tried.

    delays: in multiples of t(1). timeouts: in shares of the deadline. ratio: of a largest batch to
    the next smaller one. finer: afterwards each knob is moved a little from the best point found,
    one at a time.
    """

    delays: tuple[float, ...]
    timeouts: tuple[float, ...]
    ratio: int = 2
    finer: bool = False


FINE = Grid((0.0, 0.5, 1.5), (math.inf, 0.8, 0.6, 0.4, 0.2), finer=True)
# What people try: powers of two, and no timeout, the deadline or half of it.
BY_HAND = Grid((0.0, 0.5, 1.5), (math.inf, 1.0, 0.5))
QUICK = Grid((0.0,), (math.inf, 0.5), ratio=4)

# Loads are tried in steps of this share of capacity, and a load is sustained if this share is on
# time.
_STEP = 0.005
_MOST = 200
_SUSTAINED = 0.99


@dataclass(frozen=True)
class Tuned:
    """The best point found, and its score."""

    knobs: Knobs
    score: float


def run(workload: Workload, rule: Rule) -> Outcome:
    return Simulation(workload, rule).run()


def games(workload: Play, count: int) -> list[Play]:
    """`workload` with other dice each time: seeds 1, 2, 3, ..."""
    return [replace(workload, seed=seed) for seed in range(1, 1 + count)]


def mean(played: Sequence[Workload], rule: Callable[[], Rule], score: Score) -> float:
    """The mean score of a rule that begins each game anew."""
    return statistics.mean(score(run(game, rule())) for game in played)


def tune(played: Sequence[Workload], rule: RuleOf, score: Score, grid: Grid) -> Tuned:
    """The knobs with the highest mean score over games that differ in their seeds alone."""

    def of(knobs: Knobs, beat: float) -> float:
        return mean(played, lambda: rule(knobs), score)

    return _climb(played[0], of, -math.inf, grid)


def tune_load(workload: Workload, rule: RuleOf, grid: Grid) -> Tuned:
    """The knobs that sustain the highest load, as a share of capacity."""

    def of(knobs: Knobs, beat: float) -> float:
        above = min(1.0, beat + _STEP)
        if run(workload.at(above), rule(knobs)).on_time < _SUSTAINED:
            return 0.0
        return sustained(workload, lambda: rule(knobs), above)

    return _climb(workload, of, 0.0, grid)


def sustained(workload: Workload, rule: Callable[[], Rule], near: float) -> float:
    """The highest load, as a share of capacity and at most 1, with 99% on time; 0 for none.

    The share on time is taken to fall with the load: it searches outwards from `near` by doubling
    steps, then by bisection.
    """

    def holds(step: int) -> bool:
        return run(workload.at(step * _STEP), rule()).on_time >= _SUSTAINED

    low = high = min(max(round(near / _STEP), 1), _MOST)
    stride = 1
    if holds(low):
        high += stride
        while high <= _MOST and holds(high):
            low, stride = high, stride * 2
            high = low + stride
        high = min(high, _MOST + 1)
    else:
        low -= stride
        while low > 0 and not holds(low):
            high, stride = low, stride * 2
            low = high - stride
        low = max(low, 0)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if holds(middle) else (low, middle)
    return low * _STEP


def _climb(
    workload: Workload, score: Callable[[Knobs, float], float], least: float, grid: Grid
) -> Tuned:
    best = Tuned(Knobs(workload.largest), least)
    for knobs in _points(workload, grid):
        found = score(knobs, best.score)
        if found > best.score:
            best = Tuned(knobs, found)
    if not grid.finer:
        return best
    for moves in (_other_sizes, _other_timeouts, _other_delays):
        for knobs in moves(best.knobs, workload):
            found = score(knobs, best.score)
            if found > best.score:
                best = Tuned(knobs, found)
    return best


def _points(workload: Workload, grid: Grid) -> Iterator[Knobs]:
    timeouts = (math.inf,) if math.isinf(workload.patience) else grid.timeouts
    size = workload.largest
    while size:
        for delay in (0.0,) if size == 1 else grid.delays:
            for timeout in timeouts:
                yield Knobs(size, delay * workload.alone, timeout * workload.patience)
        size //= grid.ratio


def _other_sizes(knobs: Knobs, workload: Workload) -> Iterator[Knobs]:
    for factor in _SIZE_MOVES:
        size = min(workload.largest, max(1, round(knobs.max_batch * factor)))
        yield replace(knobs, max_batch=size)


def _other_timeouts(knobs: Knobs, workload: Workload) -> Iterator[Knobs]:
    if math.isfinite(knobs.timeout):
        for move in _TIMEOUT_MOVES:
            yield replace(knobs, timeout=max(0.0, knobs.timeout + move * workload.patience))


def _other_delays(knobs: Knobs, workload: Workload) -> Iterator[Knobs]:
    for delay in _DELAY_MOVES:
        yield replace(knobs, delay=delay * workload.alone)
