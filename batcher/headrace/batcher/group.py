"""The group a decision is about: what was learned of it, looked up once."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Final, NamedTuple

from headrace.batcher.cost import CostTable
from headrace.batcher.demand import Demand
from headrace.batcher.queue import Queue
from headrace.batcher.sizing import SizePlan
from headrace.batcher.state import State

_HIGHEST_LOAD: Final = 0.98


class Group(NamedTuple):
    """The waiting requests of one key, as an idle executor sees them.

    asked: executor-seconds a second that all waiting keys ask for, at their best costs. rate: rows
    a second of this key; where others wait too, as if it were asked for as much as all of them
    together, since they take their share of the executors' time.
    """

    key: Hashable
    queue: Queue
    executor: str
    peers: list[str]
    table: CostTable
    plan: SizePlan
    demand: Demand
    asked: float
    rate: float

    @property
    def load(self) -> float:
        """The share of the executors' time that is asked for, below 1."""
        return min(_HIGHEST_LOAD, self.asked / len(self.peers))

    @property
    def patience(self) -> float:
        """Seconds between arrival and deadline that a run may be expected to take."""
        return self.demand.patience / self.table.guard


def group(state: State, key: Hashable, executor: str, now: float) -> Group | None:
    """The group of `key` as seen by `executor`; None where nothing is known of its costs."""
    queue = state.queues[key]
    table = state.table(executor, key, queue.row_bytes)
    plan = table.plan
    if plan is None:
        return None
    demand = state.demands.of(key)
    rate = demand.rate(now)
    if len(state.queues) == 1:
        asked = rate / plan.peak_rate
    else:
        asked = _asked(state, executor, now)
        rate = max(rate, asked * plan.peak_rate)
    return Group(key, queue, executor, state.peers[executor], table, plan, demand, asked, rate)


def _asked(state: State, executor: str, now: float) -> float:
    costs: dict[Hashable, float] = {}
    for key, queue in state.queues.items():
        plan = state.table(executor, key, queue.row_bytes).plan
        if plan is not None:
            costs[key] = 1 / plan.peak_rate
    return state.demands.load(costs, now)
