"""What is compared, on what, and how well the policy has to do."""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial

from headrace.batcher.fixed import Fixed
from simulation.bound import most_on_time
from simulation.engine import Outcome, Rule, Simulation
from simulation.rules import FixedRule, Knobs, PolicyRule, TritonRule
from simulation.shared import MODELS, SharedCores, shared_cores
from simulation.tuning import (
    BY_HAND,
    FINE,
    QUICK,
    Grid,
    Tuned,
    games,
    mean,
    run,
    sustained,
    tune,
    tune_load,
)
from simulation.workloads import TABLES, Workload

_BOTH = (1, 4)
# What is noisy is played so often, each time with other dice: bursts that make or break a run of a
# few thousand requests, and servers that are saturated from their first moment.
_BURST_GAMES, _SHARED_GAMES = 3, 16


@dataclass(frozen=True)
class Row:
    """One workload: what each side scored, more being better. `shown` are further figures."""

    workload: str
    ours: float
    rivals: dict[str, float]
    knobs: str
    shown: dict[str, str] = field(default_factory=dict)

    def ratio(self, rival: str) -> float:
        """Ours over the rival's, 1 where both are nothing."""
        theirs = self.rivals[rival]
        if theirs <= 0:
            return 1.0 if self.ours <= 0 else math.inf
        return self.ours / theirs


@dataclass(frozen=True)
class Goal:
    """What the ratio to `rival` should reach, as a geometric mean and on every workload."""

    rival: str
    mean: float | None = None
    every: float | None = None


@dataclass(frozen=True)
class Section:
    """A table of the report."""

    letter: str
    title: str
    unit: str
    goals: tuple[Goal, ...]
    workloads: Callable[[], list[Workload]]
    compare: Callable[[Workload, bool], Row]

    def rows(self, quick: bool) -> Iterator[Row]:
        """One row after another, as they are found. `quick`: fewer workloads, and shorter."""
        chosen = self.workloads()
        if quick:
            chosen = [replace(w, requests=w.requests // 3) for w in chosen[::5]]
        for workload in chosen:
            yield self.compare(workload, quick)


def _on_time(outcome: Outcome) -> float:
    return outcome.on_time


def _throughput(outcome: Outcome) -> float:
    return outcome.throughput


def _load_workloads() -> list[Workload]:
    every = [
        Workload(table, executors, arrivals, deadline=deadline, requests=12000)
        for table, executors in itertools.product(TABLES, _BOTH)
        for arrivals, deadline in (("poisson", 5.0), ("gamma", 20.0))
    ]
    return every + [Workload(table, 1, "on-off", deadline=10.0, requests=12000) for table in TABLES]


def _compare_loads(workload: Workload, quick: bool) -> Row:
    tuned = tune_load(workload, FixedRule, _grid(quick))
    by_hand = tuned if quick else tune_load(workload, FixedRule, BY_HAND)
    greedy = sustained(workload, lambda: FixedRule(Knobs(workload.largest)), tuned.score)
    ours = sustained(workload, PolicyRule, tuned.score)
    rivals = {"tuned": tuned.score, "by hand": by_hand.score, "greedy": greedy}
    return Row(workload.name, ours, rivals, str(tuned.knobs))


def _grid(quick: bool) -> Grid:
    return QUICK if quick else FINE


def _pressed_workloads() -> list[Workload]:
    pressures = (
        ("gamma", 0.8, 5.0),
        ("on-off", 0.8, 5.0),
        ("on-off", 1.2, 10.0),
        ("poisson", 1.5, 5.0),
        ("poisson", 3.0, 5.0),
    )
    return [
        Workload(table, executors, arrivals, load, deadline)
        for table, executors in itertools.product(TABLES, _BOTH)
        for arrivals, load, deadline in pressures
    ]


def _compare_on_time(workload: Workload, quick: bool) -> Row:
    played = _pressed_games(workload, quick)
    tuned = tune(played, FixedRule, _on_time, _grid(quick))
    greedy = mean(played, lambda: FixedRule(Knobs(workload.largest)), _on_time)
    ours = mean(played, PolicyRule, _on_time)
    name = f"{workload.name}, load {workload.load:g}"
    return Row(name, ours, {"tuned": tuned.score, "greedy": greedy}, str(tuned.knobs))


def _pressed_games(workload: Workload, quick: bool) -> list[Workload]:
    return games(workload, 1 if quick else _BURST_GAMES)


def _compare_pressed(workload: Workload, quick: bool) -> Row:
    row = _compare_on_time(workload, quick)
    by_hand = row.rivals["tuned"]
    if not quick:
        by_hand = tune(_pressed_games(workload, quick), FixedRule, _on_time, BY_HAND).score
    bound = statistics.mean(map(most_on_time, _pressed_games(workload, quick)))
    rivals = {"tuned": row.rivals["tuned"], "by hand": by_hand, "greedy": row.rivals["greedy"]}
    return replace(row, rivals=rivals, shown={"no rule can": f"{bound:.3f}"})


def _mixed_workloads() -> list[Workload]:
    return [
        Workload(table, executors, "poisson", 0.8, 10.0, shapes)
        for table, executors, shapes in itertools.product(TABLES, _BOTH, (4, 16))
    ]


def _compare_mixed(workload: Workload, quick: bool) -> Row:
    row = _compare_on_time(workload, quick)
    triton = tune(_pressed_games(workload, quick), TritonRule, _on_time, _grid(quick))
    return replace(row, rivals={**row.rivals, "Triton": triton.score})


def _closed_workloads() -> list[Workload]:
    return [
        Workload(table, executors, "closed", 0, math.inf, callers=callers, requests=4000)
        for table, executors, callers in itertools.product(TABLES, _BOTH, (1, 8, 32, 128))
    ]


def _compare_closed(workload: Workload, quick: bool) -> Row:
    tuned = tune([workload], FixedRule, _throughput, _grid(quick))
    greedy = run(workload, FixedRule(Knobs(workload.largest)))
    ours, best = run(workload, PolicyRule()), run(workload, _real(tuned))
    figures = {
        "mean ms": f"{ours.mean * 1e3:.3g} / {best.mean * 1e3:.3g}",
        "p99 ms": f"{ours.p99 * 1e3:.3g} / {best.p99 * 1e3:.3g}",
    }
    rivals = {"tuned": best.throughput, "greedy": greedy.throughput}
    return Row(workload.name, ours.throughput, rivals, str(tuned.knobs), figures)


def _real(tuned: Tuned) -> PolicyRule:
    """The project's own fixed rule at the best point of the grid."""
    return PolicyRule(Fixed(delay=tuned.knobs.delay), max_batch=tuned.knobs.max_batch)


def _shared_workloads() -> list[Workload]:
    return [
        shared_cores(model, callers) for model, callers in itertools.product(MODELS, (8, 32, 128))
    ]


def _compare_shared(workload: Workload, quick: bool) -> Row:
    assert isinstance(workload, SharedCores)
    played = games(workload, _SHARED_GAMES // (4 if quick else 1))

    def rates(rule: Callable[[], Rule]) -> list[float]:
        return [Simulation(game, rule(), game.trace).run().throughput for game in played]

    sizes = [workload.largest >> halvings for halvings in range(workload.largest.bit_length())]
    fixed = {size: rates(partial(FixedRule, Knobs(size))) for size in sizes}
    best = max(fixed, key=lambda size: statistics.mean(fixed[size]))
    ours = rates(PolicyRule)
    ratios = [mine / theirs for mine, theirs in zip(ours, fixed[best], strict=True)]
    error = statistics.stdev(ratios) / math.sqrt(len(ratios))
    shown = {"standard error": f"{error:.3f}", "worst seed": f"{min(ratios):.3f}"}
    rivals = {"tuned": statistics.mean(fixed[best])}
    return Row(workload.name, statistics.mean(ours), rivals, f"max {best}", shown)


SECTIONS = (
    Section(
        "A",
        "Load sustained with 99% on time",
        "share of capacity",
        (Goal("by hand", 1.03, 0.95), Goal("tuned", 1.03, 0.95)),
        _load_workloads,
        _compare_loads,
    ),
    Section(
        "C",
        "On time under bursts and overload",
        f"share on time, the mean of {_BURST_GAMES} seeds",
        (Goal("by hand", 1.08, 0.95), Goal("tuned", 1.08, 0.95)),
        _pressed_workloads,
        _compare_pressed,
    ),
    Section(
        "D",
        "Mixed shapes, on time at 0.8 of capacity",
        f"share on time, the mean of {_BURST_GAMES} seeds",
        (Goal("Triton", 2.0), Goal("tuned", None, 0.95)),
        _mixed_workloads,
        _compare_mixed,
    ),
    Section(
        "E",
        "Closed loop without deadlines",
        "answers a second; latencies ours / tuned",
        (Goal("tuned", None, 0.95),),
        _closed_workloads,
        _compare_closed,
    ),
    Section(
        "F",
        "Closed loop on cores shared with the callers",
        f"answers a second, the mean of {_SHARED_GAMES} seeds",
        (Goal("tuned", None, 0.97),),
        _shared_workloads,
        _compare_shared,
    ),
)
