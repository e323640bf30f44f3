"""What to do now: the rules that turn a state into actions."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Protocol

from headrace.batcher.queue import Queue
from headrace.batcher.request import Action, Batch, Dispatch, Drop, Reason, Request, WakeAt, Why
from headrace.batcher.state import State


class Policy(Protocol):
    """A rule for closing batches.

    `decide` is a function of what it is given: it changes nothing, and asked again at the same
    instant about the same state it answers the same. The scheduler applies what it says and asks
    again until it says nothing but when to wake. It must

    1. dispatch only the head of a queue, in order, to an executor that is idle;
    2. never dispatch what has expired, and drop every request that has;
    3. keep a batch within `state.limits.max_batch_rows` unless one request alone exceeds it;
    4. not leave an executor idle while a dispatch is due, nor wake in the past.
    """

    def decide(self, state: State, now: float) -> Sequence[Action]: ...


class WorkConserving:
    """An idle executor takes the most urgent compatible group, as much of it as the cap allows.

    When several executors are idle they share the group, so that none waits for a batch that
    another could have halved. It never waits for company: requests gather while executors are busy.
    """

    def decide(self, state: State, now: float) -> Sequence[Action]:
        drops = [Drop(request, Why.EXPIRED) for request in state.expired(now)]
        if drops:
            return drops
        idle = state.idle
        if idle and state.queues:
            return (Dispatch(self._close(state, idle, now)),)
        deadline = state.next_deadline()
        return () if deadline is None else (WakeAt(deadline),)

    def _close(self, state: State, idle: list[str], now: float) -> Batch:
        key, queue = min(state.queues.items(), key=_urgency_of_head)
        cap = state.limits.max_batch_rows
        share = -(-queue.rows // len(idle))
        requests = _head_of(queue, min(cap, share))
        if requests[0].solo:
            reason = Reason.SOLO
        elif len(requests) == len(queue):
            reason = Reason.EXECUTOR_IDLE
        else:
            reason = Reason.FULL if cap <= share else Reason.SHARED
        left = state.queued_requests - len(requests)
        return Batch(key, requests, idle[0], reason, now, left)


def _urgency_of_head(item: tuple[Hashable, Queue]) -> tuple[float, int]:
    head = item[1].head
    return head.urgency, head.sequence


def _head_of(queue: Queue, cap: int) -> list[Request]:
    """The most urgent requests that fit in `cap` rows together; at least the first."""
    chosen: list[Request] = []
    rows = 0
    for request in queue:
        rows += request.rows
        if chosen and (rows > cap or request.solo):
            break
        chosen.append(request)
        if request.solo:
            break
    return chosen
