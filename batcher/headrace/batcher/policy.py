"""What to do now: the rules that turn a state into actions."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Final, Protocol

from headrace.batcher.queue import Queue
from headrace.batcher.request import Action, Batch, Dispatch, Drop, Reason, Request, WakeAt, Why
from headrace.batcher.state import State

# Event loops round timers to so many seconds.
TIMER_GRAIN: Final = 0.001


class Policy(Protocol):
    """A rule for closing batches.

    `decide` is a function of what it is given: it changes nothing, and asked again at the same
    instant about the same state it answers the same. The scheduler applies what it says and asks
    again until it says nothing but when to wake. It must

    1. dispatch only the head of a queue, in order, to an executor that is idle;
    2. never dispatch what has expired, and drop every request that has;
    3. keep a batch within `state.limits.max_batch_rows` unless one request alone exceeds it;
    4. not leave an executor idle while a dispatch is due: where work waits beside an idle executor
       it must say when to wake, soon and not in the past, and dispatch if nothing came by then.

    Wake-ups may be early, and late by TIMER_GRAIN.
    """

    def decide(self, state: State, now: float) -> Sequence[Action]: ...


class WorkConserving:
    """An idle executor takes the most urgent compatible group, as much of it as the cap allows.

    When several executors are idle they share the group, so that none waits for a batch that
    another could have halved. It knows nothing of costs, and never waits for company: requests
    gather while executors are busy.
    """

    def decide(self, state: State, now: float) -> Sequence[Action]:
        drops = [Drop(request, Why.EXPIRED) for request in state.expired(now)]
        if drops:
            return drops
        if state.idle and state.queues:
            key, queue = most_urgent(state)
            idle, cap = state.idle, state.limits.max_batch_rows
            share = -(-queue.rows // len(idle))
            reason = Reason.FULL if cap <= share else Reason.SHARED
            return (Dispatch(close(state, key, idle[0], min(cap, share), reason, now)),)
        return wake(state)


def most_urgent(state: State) -> tuple[Hashable, Queue]:
    """The key whose head is the most urgent of all, and its queue."""
    return min(state.queues.items(), key=rank_of_head)


def rank_of_head(item: tuple[Hashable, Queue]) -> tuple[float, int, int]:
    """What orders keys: the rank of the most urgent request of each."""
    return item[1].head.rank


def wake(state: State) -> Sequence[WakeAt]:
    """When there is something to decide even if nothing happens: at the next deadline."""
    deadline = state.next_deadline()
    return () if deadline is None else (WakeAt(deadline),)


def close(
    state: State, key: Hashable, executor: str, rows: int, reason: Reason, now: float
) -> Batch:
    """A batch of the head of `key`'s queue, of at most `rows` rows but at least one request.

    `reason` tells why it is not larger, where more wait. A solo request goes alone, and a group
    without the others.
    """
    queue = state.queues[key]
    group = queue.head.group
    requests: list[Request] = []
    taken = 0
    for request in queue:
        taken += request.rows
        if requests and (taken > rows or request.solo or request.group is not group):
            break
        requests.append(request)
        if request.solo:
            break
    if requests[0].solo:
        reason = Reason.SOLO
    elif group is not None:
        reason = Reason.RETRY
    elif len(requests) == len(queue):
        reason = Reason.EXECUTOR_IDLE
    batch = Batch(key, requests, executor, reason, now, state.queued_requests - len(requests))
    table = state.table(executor, key, queue.row_bytes)
    if table.known:
        batch.expected = table.seconds(batch.rows)
    return batch
