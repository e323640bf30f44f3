"""A scheduler of the learned policy that knows what batches cost, and requests for it."""

from __future__ import annotations

from collections.abc import Callable

from headrace.batcher.learned import Learned
from headrace.batcher.request import Batch, Dispatch, Request
from headrace.batcher.scheduler import Scheduler
from headrace.batcher.state import Limits


def scheduler(cost: Callable[[int], float], executors: int = 1, cap: int = 32) -> Scheduler:
    """One whose costs are known: `cost(n)` seconds for n rows."""
    kinds = {f"e{n}": "cpu" for n in range(executors)}
    sched = Scheduler(kinds, Learned(), Limits(max_batch_rows=cap))
    table = sched.state.cost.table("cpu", "k", 0.0)
    for _ in range(20):
        for n in range(1, cap + 1):
            table.observe(n, cost(n))
    return sched


def pays(n: int) -> float:
    return 0.010 + 0.0001 * n


def loses(n: int) -> float:
    return 0.004 * n * (1 + 0.01 * n)


def submit(
    sched: Scheduler, count: int, arrival: float = 0.0, deadline: float = float("inf")
) -> list[Request]:
    requests = [
        Request(key="k", payload=None, arrival=arrival, deadline=deadline) for _ in range(count)
    ]
    for request in requests:
        assert sched.submit(request) is None
    return requests


def batches(sched: Scheduler, now: float) -> list[Batch]:
    return [action.batch for action in sched.step(now) if isinstance(action, Dispatch)]
