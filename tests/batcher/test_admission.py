"""A burst far beyond what can be served in time: those who get no answer are told on arrival."""

from __future__ import annotations

import heapq
import random
from collections import Counter
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.batcher.admission import ample, predicted_late
from headrace.batcher.learned import Learned
from headrace.batcher.request import Batch, Dispatch, Drop, Request, WakeAt
from headrace.batcher.scheduler import Scheduler
from headrace.batcher.state import Limits

ALONE = 0.03  # seconds that one row takes
PATIENCE = 1.0


@dataclass
class Burst:
    """Requests that come within `seconds`, each to be answered within PATIENCE of its arrival.

    A batch of n takes `fixed` + (1 - `fixed`) n times ALONE, times `slow` and a jitter that was not
    there when costs were learned.
    """

    requests: int
    seconds: float
    executors: int
    fixed: float
    slow: float = 1.0
    jitter: float = 0.0
    ended: Counter[str] = field(default_factory=Counter)
    wasted: list[Batch] = field(default_factory=list)

    def __post_init__(self) -> None:
        kinds = {f"e{n}": "cpu" for n in range(self.executors)}
        self.scheduler = Scheduler(kinds, Learned(), Limits(max_batch_rows=64))
        self.random = random.Random(1)
        table = self.scheduler.state.cost.table("cpu", "k", 0.0)
        for _ in range(3):
            for rows in (1, 2, 4, 8, 16, 32, 64):
                table.observe(rows, self.cost(rows))

    def cost(self, rows: int) -> float:
        return ALONE * (self.fixed + (1 - self.fixed) * rows)

    def run(self) -> None:
        came = 0
        every = self.seconds / self.requests
        ends: list[tuple[float, int, Batch]] = []
        wake = float("inf")
        while came < self.requests or ends or wake < float("inf"):
            arrival = came * every if came < self.requests else float("inf")
            now = min(arrival, ends[0][0] if ends else float("inf"), wake)
            if now == arrival:
                came += 1
                self.arrive(now)
            elif now != wake:
                self.complete(heapq.heappop(ends)[2], now)
            wake = float("inf")
            for action in self.scheduler.step(now):
                if isinstance(action, Dispatch):
                    factor = self.slow * (1 + self.jitter * self.random.uniform(-1, 1))
                    end = now + self.cost(action.batch.rows) * factor
                    heapq.heappush(ends, (end, id(action.batch), action.batch))
                elif isinstance(action, WakeAt):
                    wake = max(action.time, now + 0.001)
                elif isinstance(action, Drop):
                    self.ended["let go"] += 1

    def arrive(self, now: float) -> None:
        request = Request(key="k", payload=None, arrival=now, deadline=now + PATIENCE)
        self.ended["refused" if self.scheduler.submit(request) else "accepted"] += 1

    def complete(self, batch: Batch, now: float) -> None:
        ended = self.scheduler.complete(batch.executor, now - batch.started, now=now)
        late = [request for request in ended if request.deadline < now]
        self.ended["in time"] += len(batch.requests) - len(late)
        if late:
            self.wasted.append(batch)


bursts = st.builds(
    Burst,
    requests=st.integers(100, 250),
    seconds=st.sampled_from([0.0, 0.01, 0.06]),
    executors=st.integers(1, 4),
    fixed=st.sampled_from([0.0, 0.2, 0.5]),
    jitter=st.sampled_from([0.0, 0.03]),
)


@settings(max_examples=30, deadline=None)
@given(burst=bursts)
def test_of_a_burst_those_who_get_no_answer_are_refused_on_arrival(burst: Burst) -> None:
    burst.run()
    ended = burst.ended
    assert ended["in time"] + ended["let go"] <= ended["accepted"]
    # A burst that comes in 60 ms looks, half-way, like a load that will last: of those who come
    # last more are taken than there is time for. In one of 300 such bursts they are over a fifth.
    assert ended["let go"] <= 2 + 0.3 * ended["accepted"]
    assert len(burst.wasted) <= 1


@settings(max_examples=30, deadline=None)
@given(burst=bursts)
def test_a_burst_is_not_refused_beyond_need(burst: Burst) -> None:
    burst.run()
    best = max(n / burst.cost(n) for n in range(1, 65) if burst.cost(n) <= PATIENCE / 2)
    could = min(burst.requests, int(best * burst.executors * PATIENCE))
    # One that comes in 60 ms may look like a load that will last, as above: in one of 250 such
    # bursts, of those measured, up to four tenths are let go of in favour of some who never come.
    share = 0.75 if burst.seconds < 0.06 else 0.5
    assert burst.ended["in time"] >= share * could - 2 * burst.executors


@pytest.mark.parametrize(("spread", "refused"), [(0.03, False), (0.2, True)])
def test_the_less_sure_the_costs_the_shorter_the_queue(spread: float, refused: bool) -> None:
    scheduler = Burst(1, 0.0, 1, fixed=0.0).scheduler
    for _ in range(29):  # 870 ms of work
        assert scheduler.submit(Request("k", None, arrival=0.0, deadline=PATIENCE)) is None
    scheduler.state.cost.table("cpu", "k", 0.0).spread = spread
    last = Request(key="k", payload=None, arrival=0.0, deadline=PATIENCE)
    assert (scheduler.submit(last) is not None) is refused


TIMES = st.lists(st.floats(0.0005, 0.05), min_size=4, max_size=4)


@settings(max_examples=500)
@given(
    costs=TIMES,
    waiting=st.lists(st.tuples(st.integers(1, 4), st.sampled_from("kkkl")), max_size=12),
    busy=st.integers(0, 2),
    rows=st.integers(1, 9),
    patience=st.floats(0.001, 4.0),
)
def test_what_has_ample_time_would_not_be_refused(
    costs: list[float], waiting: list[tuple[int, str]], busy: int, rows: int, patience: float
) -> None:
    """Whatever batches cost, more for each row in larger ones even."""
    scheduler = Scheduler({"e0": "cpu", "e1": "cpu"}, Learned(), Limits(max_batch_rows=8))
    state = scheduler.state
    for key in "kl":
        table = state.cost.table("cpu", key, 0.0)
        for size, seconds in zip((1, 2, 4, 8), costs, strict=True):
            table.observe(size, seconds)
    for _ in range(busy):
        scheduler.submit(Request("k", None, 0.0))
        scheduler.step(0.0)
    for count, key in waiting:
        state.enqueue(Request(key, None, 0.0, count))
    request = Request("k", None, 0.001, rows, deadline=0.001 + patience)
    if ample(state, request):
        assert predicted_late(state, request) is None


def test_most_have_ample_time() -> None:
    """Else the property above holds of nothing."""
    scheduler = Scheduler({"e0": "cpu"}, Learned(), Limits())
    scheduler.state.cost.table("cpu", "k", 0.0).observe(1, 0.001)
    for deadline in (1.0, 0.01):
        assert ample(scheduler.state, Request("k", None, 0.0, deadline=deadline))
    assert not ample(scheduler.state, Request("k", None, 0.0, deadline=0.003))
    assert not ample(scheduler.state, Request("unknown", None, 0.0, 3, 1, deadline=1e-6))
