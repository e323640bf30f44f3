"""Which executor takes the next batch, where they are not all alike.

Two cases, and both are decided by what the executors were measured to take:

- **Teams.** A model on a CPU may have one executor that uses every core beside several that use one
  each. The first answers a lone request sooner, the others together serve a crowd faster, and they
  cannot run at the same time. The team with the least total waiting (`SizePlan.waiting`) of those
  who are here, or usually are, takes over whenever nothing runs.
- **Helpers.** An executor slower than the others of its team (a CPU beside a GPU) takes only what
  it will have ended before the fast ones could have emptied the queue, or a request that they
  cannot serve in time. A helper that takes anything is worse than none: what it holds ends late.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import Final, NamedTuple

from headrace.batcher.cost import CostTable
from headrace.batcher.group import group
from headrace.batcher.queue import Queue
from headrace.batcher.sizing import SizePlan
from headrace.batcher.state import State
from headrace.batcher.trials import Trials

# Costs are noisy: another team must promise at least so much less waiting. A lone request is what
# it was laid out for, so there it must look worse to be left: many threads have slow moments, and
# whoever leaves at each of them learns late that it is over.
_CLEARLY: Final = 0.97
_NOT_CLEARLY_WORSE: Final = 1.1
# Each team's first runs of lone requests come first.
_FIRST: Final = 3
# What another team takes for the size that suits a crowd, sizes up to so many times as large tell,
# or up to the whole crowd.
_NEAR: Final = 2.0
# Below so many others a request is as good as alone.
ALONE: Final = 0.25
# Of a queue that hardly ever empties only the rate counts, which so many rows tell.
_LONG: Final = 64.0
# Of a crowd that another team serves, for the main one to be known.
_CROWD: Final = Trials(64, 512, 16)


class Place(NamedTuple):
    """An idle executor, and the most rows it should take."""

    executor: str
    most: int


def place(state: State, key: Hashable, queue: Queue, now: float) -> Place | None:
    """Where the head of `queue` should run now; None when it had better wait for a faster one."""
    other = _other_team(state, key, queue, now)
    if other is not None:
        return other
    idle = state.idle
    for executor in idle:
        if executor not in state.helpers:
            return Place(executor, state.limits.max_batch_rows)
    for helper in idle:
        most = _help(state, key, queue, helper, now)
        if most:
            return Place(helper, most)
    return None


def _other_team(state: State, key: Hashable, queue: Queue, now: float) -> Place | None:
    """An executor of another team, if that team is to take over now."""
    others = state.alternatives
    if not others:
        return None
    row_bytes = queue.row_bytes
    ours = state.table(state.executors[0], key, row_bytes)
    alone = queue.rows == 1 and state.crowd < ALONE
    margin = _NOT_CLEARLY_WORSE if alone else _CLEARLY
    expected = max(float(queue.rows), 1 + state.crowd)
    seen = None if alone else group(state, key, state.executors[0], now)
    if seen is not None:  # so many will have been here before the queue is empty
        expected = min(expected / (1 - seen.load), max(_LONG, expected))
    for executor in others:
        theirs = state.table(executor, key, row_bytes)
        if ours.plan is None or theirs.plan is None:
            continue
        better = _shared_waiting(theirs.plan, expected, len(state.peers[executor])) < (
            margin * _shared_waiting(ours.plan, expected, len(state.executors))
        )
        if alone:
            better = _on_trial(ours, theirs, better)
        elif better:
            better = _taken_over(ours, theirs, expected / len(state.peers[executor]))
        if better:
            return Place(executor, state.limits.max_batch_rows)
    return None


def lone_was_measured(ours: CostTable, theirs: CostTable, main: float, other: float) -> None:
    """At load a lone row took `main` seconds on the main team, `other` on the other. Measured turn
    about, that compares better than what the tables have of profiles that were made one after the
    other, so that lone requests begin by it."""
    better = other < _NOT_CLEARLY_WORSE * main
    ours.lone.begin(better, ours.observations + theirs.observations)


def _on_trial(ours: CostTable, theirs: CostTable, better: bool) -> bool:
    """Whether the other team takes a lone request that it should take if it is `better`."""
    for table, taken in ((theirs, True), (ours, False)):
        if table.observations < _FIRST:
            return taken
    elsewhere, tried = ours.lone.elsewhere(better, ours.observations + theirs.observations)
    if tried:  # or the few runs of a trial would not show for long
        (ours if elsewhere else theirs).refresh()
    return elsewhere


def _taken_over(ours: CostTable, theirs: CostTable, rows: float) -> bool:
    """Whether the other team takes a crowd, of which `rows` are each of its executors', that it
    should take by its costs.

    Not while ours is known by hearsay alone, nor in its turn to be known again; and where theirs is
    known by hearsay, only now and then, to be known: a profile has all cores to itself.
    """
    if ours.observations < _FIRST or theirs.plan is None:
        return False
    size = theirs.plan.best(rows, theirs.largest)
    if not theirs.told(size, max(_NEAR, rows / size)):
        return theirs.exploration.due()
    return not _CROWD.due(ours.observations + theirs.observations)


def _shared_waiting(plan: SizePlan, rows: float, executors: int) -> float:
    """The total waiting of `rows` rows that so many executors share evenly."""
    sharing = min(float(executors), rows)
    return sharing * plan.waiting(rows / sharing)


def _help(state: State, key: Hashable, queue: Queue, helper: str, now: float) -> int:
    """How many rows of the head a slow executor should take; 0 for none."""
    fast = state.executors
    ours = state.table(fast[0], key, queue.row_bytes).plan
    theirs = state.table(helper, key, queue.row_bytes)
    if ours is None or theirs.plan is None:
        return 0
    free = min(state.free_in(executor, now) for executor in fast)
    slack = (queue.head.deadline - now) / (1 + 2 * theirs.spread)
    if free + ours.seconds[1] > slack >= theirs.seconds(1):
        return 1
    overhead = theirs.plan.overhead
    for rows in range(min(queue.rows, theirs.largest), 0, -1):
        taken = theirs.seconds(rows)
        if taken <= slack and taken + overhead <= free + ours.serial(queue.rows - rows) / len(fast):
            return rows
    return 0
