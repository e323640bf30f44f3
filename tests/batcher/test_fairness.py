"""Shares: those who flood the queue take turns with those who don't."""

from __future__ import annotations

import math
import random
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.batcher.fixed import Fixed
from headrace.batcher.learned import Learned
from headrace.batcher.policy import Policy, WorkConserving
from headrace.batcher.request import PATIENCE, Dispatch, Drop, Reject, Request, Why
from headrace.batcher.scheduler import Scheduler
from headrace.batcher.state import Limits

CAP = 8
LIMITS = Limits(CAP)


def seconds(rows: int) -> float:
    """What a batch takes."""
    return 0.01 + 0.005 * rows


def scheduler(
    policy: Policy | None = None, executors: int = 1, limits: Limits = LIMITS
) -> Scheduler:
    """One that knows its costs, with every executor free."""
    made = Scheduler({f"e{n}": "cpu" for n in range(executors)}, policy or WorkConserving(), limits)
    for rows in range(1, CAP + 1):
        for _ in range(3):
            made.state.table("e0", "k", 0.0).observe(rows, seconds(rows))
    return made


def request(caller: str, arrival: float = 0.0, **fields: object) -> Request:
    return Request("k", None, arrival, caller=caller, **fields)  # type: ignore[arg-type]


def flooded(*counts: int, **fields: object) -> tuple[Scheduler, list[list[Request]]]:
    """A scheduler whose executor is busy, and what "f0", "f1", ... sent it one after the other."""
    sched = scheduler(**fields)  # type: ignore[arg-type]
    sched.submit(request("first"))
    sched.step(0.0)
    floods = [[request(f"f{place}") for _ in range(count)] for place, count in enumerate(counts)]
    for flood in floods:
        for one in flood:
            assert sched.submit(one) is None
    return sched, floods


def order(sched: Scheduler) -> list[Request]:
    return list(sched.state.queues["k"])


def test_who_comes_late_to_a_flood_has_the_second_place() -> None:
    sched, (flood,) = flooded(500)
    polite = request("polite")
    assert sched.submit(polite) is None
    assert order(sched)[:3] == [flood[0], polite, flood[1]]


def test_floods_are_interleaved() -> None:
    sched, (one, two) = flooded(500, 500)
    late = [
        place for place, r in enumerate(two) if r.urgency < r.soft_deadline or r.turn != r.sequence
    ]
    assert late == list(range(499))  # the last is where it belongs anyway
    assert order(sched)[:6] == [one[0], two[0], one[1], two[1], one[2], two[2]]


def test_a_third_joins_the_rounds_of_two() -> None:
    sched, (one, two, three) = flooded(400, 400, 2)
    assert order(sched)[:6] == [one[0], two[0], three[0], one[1], two[1], three[1]]


def test_a_caller_alone_keeps_its_order() -> None:
    sched, (flood,) = flooded(500)
    assert order(sched) == flood
    assert [r.turn for r in flood] == [r.sequence for r in flood]


def test_while_all_are_in_time_urgency_orders_whoever_sent_them() -> None:
    sched, (flood,) = flooded(20)
    polite = request("polite")
    sched.submit(polite)
    assert order(sched) == [*flood, polite]


def test_another_priority_is_another_share() -> None:
    sched, (flood,) = flooded(500)
    below = request("polite", priority=2)
    sched.submit(below)
    assert order(sched) == [*flood, below]


def test_a_turn_passes_no_earlier_request_of_the_same_caller() -> None:
    sched, _ = flooded(100)
    first, second = request("polite", arrival=0.2), request("polite", arrival=0.2)
    first.urgency = 1.2  # as if it had been predicted in time
    sched.state.enqueue(first)
    sched.submit(second)
    assert order(sched).index(second) > order(sched).index(first)


def test_who_is_accepted_is_predicted_with_its_turn() -> None:
    """The flooder fills what the deadline leaves room for; the polite one is accepted all the same,
    and is in time."""
    sched = scheduler(Learned())
    refusals = [sched.submit(request("flood", deadline=0.4)) for _ in range(400)]
    assert {r.why for r in refusals if r is not None} == {Why.TOO_LATE}
    polite = request("polite", deadline=0.4)
    assert sched.submit(polite) is None
    (batch,) = [a.batch for a in sched.step(0.0) if isinstance(a, Dispatch)]
    assert polite in batch.requests


def test_a_full_queue_takes_from_the_caller_with_the_most() -> None:
    limits = Limits(CAP, max_queued_requests=10)
    sched, (many, _) = flooded(7, 3, limits=limits)
    polite = request("polite")
    assert sched.submit(polite) is None
    (refusal,) = [action for action in sched.step(0.0) if isinstance(action, Reject)]
    assert refusal.request is many[-1]
    assert refusal.why is Why.QUEUE_FULL
    assert refusal.retry_after > 0
    assert "this one has 7" in refusal.message
    assert sched.state.queued_requests == 10
    assert not [action for action in sched.step(0.0) if isinstance(action, Reject)]
    # Its own newcomers are refused as ever, and so is one that would only change places.
    for caller in ("f0", "f1"):
        for _ in range(9):
            last = sched.submit(request(caller))
        assert last is not None
        assert last.why is Why.QUEUE_FULL
    counts = {caller: len(share) for caller, share in sched.state.shares[1].items()}
    assert counts == {"f0": 5, "f1": 4, "polite": 1}


def test_a_more_urgent_level_gives_no_place_to_a_lower_one() -> None:
    sched, _ = flooded(10, limits=Limits(CAP, max_queued_requests=10))
    refusal = sched.submit(request("polite", priority=2))
    assert refusal is not None
    assert sched.submit(request("polite", priority=1)) is None


def test_a_queue_full_of_bytes_takes_from_the_caller_with_the_most_of_them() -> None:
    sched = scheduler(limits=Limits(CAP, max_queued_bytes=1000))
    sched.submit(request("first"))
    sched.step(0.0)
    heavy = [request("heavy", nbytes=300) for _ in range(3)]
    light = [request("light", nbytes=1) for _ in range(50)]
    for one in (*heavy, *light):
        assert sched.submit(one) is None
    assert sched.submit(request("polite", nbytes=250)) is None
    refused = [action for action in sched.step(0.0) if isinstance(action, Reject)]
    assert [(r.request, r.why) for r in refused] == [(heavy[-1], Why.QUEUE_BYTES)]
    too_much = sched.submit(request("polite", nbytes=500))
    assert too_much is not None
    assert too_much.why is Why.QUEUE_BYTES


def test_who_would_be_late_displaces_nobody() -> None:
    limits = Limits(CAP, max_queued_requests=10)
    sched, (flood,) = flooded(10, limits=limits)
    refusal = sched.submit(request("polite", deadline=seconds(1) * 0.5))
    assert refusal is not None
    assert refusal.why is Why.TOO_SHORT
    assert order(sched) == flood


class World:
    """Callers in closed loop: each has so many requests under way, whatever becomes of them.

    A refused caller tries again when something has been answered. `answered` counts by caller,
    `waits` has the latencies of the polite ones, `refused` why they were refused.
    """

    def __init__(
        self, sched: Scheduler, floods: list[int], polite: int, patience: float = math.inf
    ) -> None:
        self.sched, self.patience, self.now = sched, patience, 0.0
        self.target = {f"f{n}": count for n, count in enumerate(floods)}
        self.target |= {f"p{n}": 1 for n in range(polite)}
        self.under_way: Counter[str] = Counter()
        self.answered: Counter[str] = Counter()
        self.refused: Counter[Why] = Counter()
        self.waits: list[float] = []
        self.ends: list[tuple[float, str]] = []
        self.random = random.Random(0)

    def run(self, answers: int) -> None:
        """Goes on until so many were answered."""
        while self.answered.total() < answers:
            self._arrive()
            self._decide()
            self.ends.sort()
            self.now, executor = self.ends.pop(0)
            batch = self.sched.state.running[executor]
            assert batch is not None
            for done in self.sched.complete(executor, seconds(batch.rows)):
                assert self.now <= done.deadline + 1e-9
                self._answered(done)

    def _answered(self, done: Request) -> None:
        caller = str(done.caller)
        self.under_way[caller] -= 1
        self.answered[caller] += 1
        if caller.startswith("p"):
            self.waits.append(self.now - done.arrival)

    def _arrive(self) -> None:
        missing = [
            caller
            for caller, target in self.target.items()
            for _ in range(min(target - self.under_way[caller], 3 * CAP if self.now else target))
        ]
        self.random.shuffle(missing)  # as they would come over a network
        if self.now == 0:
            missing.sort(key=lambda caller: caller[0])  # the floods are there first
        for caller in missing:
            one = request(caller, self.now, deadline=self.now + self.patience)
            refusal = self.sched.submit(one)
            if refusal is None:
                self.under_way[caller] += 1
            elif caller.startswith("p"):
                self.refused[refusal.why] += 1

    def _decide(self) -> None:
        for action in self.sched.step(self.now):
            if isinstance(action, Dispatch):
                end = self.now + seconds(action.batch.rows)
                self.ends.append((end, action.batch.executor))
            elif isinstance(action, Drop | Reject):
                caller = str(action.request.caller)
                self.under_way[caller] -= 1
                if caller.startswith("p"):
                    why = action.why
                    self.refused[why] += 1


@pytest.mark.parametrize("policy", [WorkConserving(), Fixed((), 0.0), Learned()])
@settings(max_examples=8, deadline=None)
@given(
    floods=st.lists(st.integers(500, 700), min_size=1, max_size=3),
    polite=st.integers(1, 4),
    executors=st.integers(1, 3),
)
def test_the_polite_are_served_in_turn_and_floods_share_equally(
    policy: Policy, floods: list[int], polite: int, executors: int
) -> None:
    """Without deadlines, beside floods of which some do not even fit in the queue."""
    limits = Limits(CAP, max_queued_requests=800)
    world = World(scheduler(policy, executors, limits), floods, polite)
    world.run(400)
    callers = len(floods) + polite
    assert not world.refused
    # A turn of everybody, and the runs that were under way; or half of its patience, within which
    # nobody is moved. The floods themselves wait for seconds.
    turns = (math.ceil(callers / CAP) + 2) * seconds(CAP)
    assert max(world.waits) <= max(turns, 0.5 * PATIENCE + seconds(CAP)) + 1e-9
    shares = [world.answered[f"f{n}"] for n in range(len(floods))]
    assert max(shares) - min(shares) <= CAP * (executors + 1)


@settings(max_examples=10, deadline=None)
@given(
    floods=st.lists(st.sampled_from([50, 100, 300]), min_size=1, max_size=3),
    polite=st.integers(1, 3),
    executors=st.integers(1, 3),
    patience=st.sampled_from([0.2, 0.5, 3.0]),
)
def test_the_polite_are_in_time_beside_floods_with_the_same_deadline(
    floods: list[int], polite: int, executors: int, patience: float
) -> None:
    """And no flood is pushed out by another: a late one takes turns with an early one."""
    world = World(scheduler(Learned(), executors, Limits(CAP, 200)), floods, polite, patience)
    world.run(500)
    # Of the shortest patience one is passed over now and then, beside three floods of some sizes.
    assert world.refused.total() <= (polite if patience == 0.2 else 0)
    assert max(world.waits) <= patience + 1e-9
    shares = [world.answered[f"f{n}"] for n in range(len(floods))]
    # But for the runs that were under way at the end.
    assert min(shares) >= 0.5 * sum(shares) / len(shares) - CAP * executors
