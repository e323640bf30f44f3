"""The scheduler's promises, held against random histories under a clock that moves when told."""

from __future__ import annotations

import math
from collections import Counter
from typing import ClassVar

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from headrace.batcher.fixed import Fixed
from headrace.batcher.learned import Learned
from headrace.batcher.policy import TIMER_GRAIN, Policy, WorkConserving
from headrace.batcher.request import (
    Action,
    Batch,
    Dispatch,
    Drop,
    Phase,
    Reject,
    Request,
    WakeAt,
    Why,
)
from headrace.batcher.scheduler import Scheduler
from headrace.batcher.state import Device, Limits
from headrace.batcher.testing import ManualClock

KEYS = ("a", "b", "c")
DELAY = 0.02
CALLERS = ("one", "two", "three")
LIMITS = Limits(max_batch_rows=4, max_queued_requests=12, max_queued_bytes=100)

# The kind of each executor, and its team where it is not the main one: alike, two that one wider
# takes turns with, a fast one and its slow helper.
EXECUTORS: tuple[tuple[dict[str, str], dict[str, int]], ...] = (
    ({"e0": "cpu"}, {}),
    ({"e0": "cpu", "e1": "cpu", "e2": "cpu"}, {}),
    ({"e0": "cpu", "e1": "cpu", "w0": "wide"}, {"w0": 1}),
    ({"e0": "gpu", "h0": "cpu"}, {}),
)


class Histories(RuleBasedStateMachine):
    """Arrivals, completions, failures, cancellations and expiries, in any order; executors that
    hang and are replaced, sooner or later; other models that come to use the device and go, and
    processors that are pressed or have time.

    `ended` counts how often each request came to an end, whatever the end was.
    """

    policy: ClassVar[Policy]

    @initialize(executors=st.sampled_from(EXECUTORS))
    def start(self, executors: tuple[dict[str, str], dict[str, int]]) -> None:
        self.clock = ManualClock()
        kinds, others = executors
        teams = {name: others.get(name, 0) for name in kinds}
        self.device = Device()
        self.scheduler = Scheduler(kinds, self.policy, LIMITS, teams, self.device)
        self.state = self.scheduler.state
        self.requests: list[Request] = []
        self.ended: Counter[Request] = Counter()
        self.displaced: list[Request] = []

    # ---- what can happen

    @rule(
        key=st.sampled_from(KEYS),
        rows=st.integers(1, 6),
        nbytes=st.integers(0, 40),
        patience=st.sampled_from([math.inf, 0.0, 0.01, 0.5, 3.0]),
        priority=st.integers(1, 3),
        solo=st.booleans(),
        # Most from one of them, so that the others are owed a turn.
        caller=st.sampled_from(("one", "one", "one", *CALLERS)),
    )
    def arrive(
        self,
        key: str,
        rows: int,
        nbytes: int,
        patience: float,
        priority: int,
        solo: bool,
        caller: str,
    ) -> None:
        now = self.clock()
        request = Request(
            key=key,
            payload=None,
            arrival=now,
            rows=rows,
            nbytes=nbytes,
            deadline=now + patience,
            priority=priority,
            solo=solo,
            caller=caller,
        )
        waiting = [r for r in self.requests if r.phase is Phase.QUEUED]
        full = self.state.queued_requests >= LIMITS.max_queued_requests
        heavy = self.state.queued_bytes + nbytes > LIMITS.max_queued_bytes
        refusal = self.scheduler.submit(request)
        self.requests.append(request)
        displaced = [r for r in waiting if r.phase is Phase.ENDED]
        self.displaced += displaced
        if refusal is None:
            assert bool(displaced) == (full or (heavy and bool(waiting)))
            assert not full or self.state.queued_requests <= LIMITS.max_queued_requests
            assert not heavy or self.state.queued_bytes <= max(
                LIMITS.max_queued_bytes, nbytes * (len(waiting) == 0)
            )
            self.check_displaced(request, displaced)
        else:
            assert not displaced
            late = refusal.why in (Why.TOO_LATE, Why.TOO_SHORT)
            assert full or heavy or (late and patience < math.inf)
            assert refusal.retry_after > 0 or refusal.why is Why.TOO_SHORT
            self.end(request)

    def check_displaced(self, request: Request, displaced: list[Request]) -> None:
        """They gave way to a caller with less, in requests or bytes, and were its least urgent."""
        if not displaced:
            return
        (caller,) = {r.caller for r in displaced}
        (priority,) = {r.priority for r in displaced}
        assert caller != request.caller
        assert priority >= request.priority
        level = [r for r in self.requests if r.phase is Phase.QUEUED and r.priority == priority]
        left = [r for r in level if r.caller == caller]
        own = [r for r in level if r.caller == request.caller and r is not request] + [request]
        fewer = len(left) >= len(own)
        lighter = sum(r.nbytes for r in left) >= sum(r.nbytes for r in own)
        assert fewer or lighter
        assert all(r.rank < min(d.rank for d in displaced) for r in left)

    @rule(others=st.integers(0, 2), pressed=st.booleans())
    def the_device_changes(self, others: int, pressed: bool) -> None:
        ours = sum(batch is not None for batch in self.state.running.values())
        self.device.running = ours + others
        self.device.pressed = pressed

    @rule(seconds=st.sampled_from([0.0, 0.001, 0.02, 0.6, 5.0]))
    def time_passes(self, seconds: float) -> None:
        self.clock.advance(seconds)

    @rule(pick=st.integers(0, 10**6), failed=st.booleans())
    def complete(self, pick: int, failed: bool) -> None:
        busy = [name for name, batch in self.state.running.items() if batch is not None]
        if not busy:
            return
        executor = busy[pick % len(busy)]
        batch = self.state.running[executor]
        assert batch is not None
        live = [request for request in batch.requests if request.phase is Phase.RUNNING]
        seconds = max(1e-4, self.clock() - batch.started)
        ended = self.scheduler.complete(executor, seconds, failed=failed)
        if failed and len(batch.requests) > 1:
            assert ended == []
            assert all(r.phase is Phase.QUEUED and r.group is not None for r in live)
            assert len({r.group for r in live}) == min(2, len(live))
        else:
            assert ended == live
        for request in ended:
            self.end(request)

    @rule(pick=st.integers(0, 10**6))
    def hang(self, pick: int) -> None:
        """A run that does not come back: it ends all that it holds, and nothing waits again."""
        busy = [name for name, batch in self.state.running.items() if batch is not None]
        if not busy:
            return
        executor = busy[pick % len(busy)]
        batch = self.state.running[executor]
        assert batch is not None
        live = [request for request in batch.requests if request.phase is Phase.RUNNING]
        assert self.scheduler.give_up(executor) == live
        assert self.state.running[executor] is None
        assert executor not in self.state.idle
        for request in live:
            self.end(request)

    @rule(pick=st.integers(0, 10**6))
    def replace(self, pick: int) -> None:
        absent = sorted(self.state.absent)
        if absent:
            self.scheduler.restore(absent[pick % len(absent)])

    @rule(pick=st.integers(0, 10**6))
    def cancel(self, pick: int) -> None:
        live = [r for r in self.requests if r.phase in (Phase.QUEUED, Phase.RUNNING)]
        if not live:
            return
        request = live[pick % len(live)]
        batch = next(
            (b for b in self.state.running.values() if b is not None and request in b.requests),
            None,
        )
        others = batch is not None and any(
            r is not request and r.phase is Phase.RUNNING for r in batch.requests
        )
        abandoned = self.scheduler.cancel(request)
        assert abandoned is (None if others else batch)
        self.end(request)

    @rule()
    def decide(self) -> None:
        now = self.clock()
        waiting = {r: r.key for r in self.requests if r.phase is Phase.QUEUED}
        actions = self.scheduler.step(now)
        self.check_wake(actions, now)
        self.check_teams(actions)
        refused = [action.request for action in actions if isinstance(action, Reject)]
        assert Counter(refused) == Counter(self.displaced)
        self.displaced = []
        for request in refused:
            self.end(request)
        for action in actions:
            if isinstance(action, Dispatch):
                self.check_batch(action.batch, waiting, now)
            elif isinstance(action, Drop):
                if action.why is Why.OVERTAKEN:
                    assert isinstance(self.policy, Learned)
                    assert now < action.request.deadline < math.inf
                else:
                    assert action.why is Why.EXPIRED
                    assert action.request.deadline <= now
                assert waiting.pop(action.request, None) is not None
                self.end(action.request)
        # Nothing is left to do at this instant: not an idle executor beside waiting work, unless it
        # waits for company until a time it has said; nothing expired in a queue; and the same
        # question has no new answer.
        if isinstance(self.policy, Fixed):
            ripe = [
                r for r in self.requests if r.phase is Phase.QUEUED and now >= r.arrival + DELAY
            ]
            assert not (self.state.idle and ripe)
        elif isinstance(self.policy, WorkConserving):
            assert not (self.state.idle and self.state.queued_requests)
        assert not [r for r in self.requests if r.phase is Phase.QUEUED and r.deadline <= now]
        again = self.scheduler.step(now)
        assert all(isinstance(action, WakeAt) for action in again)

    def check_wake(self, actions: list[Action], now: float) -> None:
        wakes = [action.time for action in actions if isinstance(action, WakeAt)]
        assert len(wakes) <= 1
        assert all(time > now for time in wakes)
        deadlines = [r.deadline for r in self.requests if r.phase is Phase.QUEUED]
        first = min(deadlines, default=math.inf)
        if isinstance(self.policy, WorkConserving):
            assert not actions or first == math.inf or wakes == [first]
        elif isinstance(self.policy, Learned):
            assert not actions or first == math.inf or wakes[0] <= first
            fast = [e for e in self.state.idle if e not in self.state.helpers]
            if fast and self.state.queued_requests:
                assert wakes[0] <= now + max(self.longest_run(), TIMER_GRAIN)
        elif self.state.idle and self.state.queued_requests:
            assert wakes
            assert wakes[0] <= now + DELAY

    def check_teams(self, actions: list[Action]) -> None:
        running = [name for name, batch in self.state.running.items() if batch is not None]
        assert len({self.state.teams[name] for name in running}) <= 1
        others = self.device.running - len(running)
        for action in actions:
            if isinstance(action, Dispatch):
                assert action.batch.executor not in self.state.absent
            main = {self.state.teams[name] for name in self.state.executors}
            if isinstance(action, Dispatch) and self.state.teams[action.batch.executor] not in main:
                assert running == [action.batch.executor]
                assert not others

    def longest_run(self) -> float:
        """Seconds of the largest batch of what waits: a wait that saves time is shorter."""
        tables = [
            self.state.table(executor, k, q.row_bytes)
            for k, q in self.state.queues.items()
            for executor in self.state.kinds
        ]
        tables = [table for table in tables if table.known]
        return max(table.seconds(LIMITS.max_batch_rows) for table in tables)

    def check_batch(self, batch: Batch, waiting: dict[Request, object], now: float) -> None:
        for request in batch.requests:
            assert waiting.pop(request, None) == batch.key
            assert request.deadline > now
            assert request.started == now
        assert batch.requests
        assert len(batch.requests) == 1 or batch.rows <= LIMITS.max_batch_rows
        assert len(batch.requests) == 1 or not any(r.solo for r in batch.requests)
        assert len({r.group for r in batch.requests}) == 1
        # Most urgent first: within the key all that stay are less urgent than all that go, and no
        # other key had a more urgent head.
        order = [r.rank for r in batch.requests]
        assert order == sorted(order)
        for request, key in waiting.items():
            assert request.rank > order[-1] or key != batch.key
            if not isinstance(self.policy, Fixed):
                assert request.rank > order[0]

    # ---- what always holds

    def end(self, request: Request) -> None:
        self.ended[request] += 1

    @invariant()
    def every_request_ends_at_most_once_and_none_is_lost(self) -> None:
        for request in getattr(self, "requests", ()):
            told_next = request in self.displaced
            assert self.ended[request] + told_next == (request.phase is Phase.ENDED)

    @precondition(lambda self: hasattr(self, "state"))
    @invariant()
    def counts_are_true(self) -> None:
        waiting = [r for r in self.requests if r.phase is Phase.QUEUED]
        held = [r for queue in self.state.queues.values() for r in queue]
        assert sorted(r.sequence for r in held) == sorted(r.sequence for r in waiting)
        assert self.state.queued_requests == len(waiting)
        assert self.state.queued_bytes == sum(r.nbytes for r in waiting)
        rows = sum(queue.rows for queue in self.state.queues.values())
        assert rows == sum(r.rows for r in waiting)
        assert all(len(queue) for queue in self.state.queues.values())
        shares = [
            (priority, caller, list(share))
            for priority, level in self.state.shares.items()
            for caller, share in level.items()
        ]
        assert sum(len(share) for _, _, share in shares) == len(waiting)
        for priority, caller, share in shares:
            assert all(
                (r.priority, r.caller, r.phase) == (priority, caller, Phase.QUEUED) for r in share
            )
            ranks = [r.rank for r in share]
            assert ranks
            assert ranks == sorted(ranks)
            self.check_own_order(share)
        # a failed batch comes back whole, whatever arrived while it ran
        assert len(waiting) <= LIMITS.max_queued_requests + 3 * LIMITS.max_batch_rows

    def check_own_order(self, share: list[Request]) -> None:
        """No request was moved past an earlier one of its caller that is as urgent by itself.

        One that has run already and waits again was not there to be minded.
        """
        for place, request in enumerate(share):
            for other in share[place + 1 :]:
                if math.isnan(other.started) and other.sequence < request.sequence:
                    assert other.soft_deadline > request.soft_deadline

    def teardown(self) -> None:
        """Whatever happened, all ends once the executors work on."""
        if not hasattr(self, "state"):
            return
        for executor in sorted(self.state.absent):
            self.scheduler.restore(executor)
        self.decide()
        while any(r.phase is not Phase.ENDED for r in self.requests):
            self.complete(0, failed=False)
            self.decide()
            self.clock.advance(0.001)
        assert all(self.ended[r] == 1 for r in self.requests)


class WorkConservingHistories(Histories):
    policy = WorkConserving()


class FixedHistories(Histories):
    policy = Fixed((2, 3), DELAY)


class LearnedHistories(Histories):
    policy = Learned()


_SETTINGS = settings(max_examples=700, stateful_step_count=50, deadline=None)
TestWorkConserving = WorkConservingHistories.TestCase
TestWorkConserving.settings = _SETTINGS
TestFixed = FixedHistories.TestCase
TestFixed.settings = _SETTINGS
TestLearned = LearnedHistories.TestCase
TestLearned.settings = _SETTINGS
