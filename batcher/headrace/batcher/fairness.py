"""A share for each caller: those who fill the queue take turns with those who don't.

Theory of operation. While what comes is predicted to be in time, urgency alone orders requests,
whoever sent them. A request that would be late where its own urgency puts it, while another caller
has more requests waiting than its own, moves up to its caller's turn: a caller's request number r
follows the others' number r, as in a round robin. It moves on arrival, once; nothing is re-ordered
later, and between two requests of one caller at most one of each other caller moves in. When a full
queue leaves no turn to take, the caller with the most gives up its least urgent requests.

Round robin over queues: Nagle, "On packet switches with infinite storage", RFC 970 (1985); a full
buffer taking from the longest queue: McKenney, "Stochastic fairness queueing" (1990).
"""

from __future__ import annotations

from typing import Final

from headrace.batcher.admission import predicted_finish
from headrace.batcher.queue import Queue
from headrace.batcher.request import Reject, Request, Why
from headrace.batcher.state import State

# A caller gives way to one with this many fewer: with one fewer they would only change places.
_MARGIN: Final = 2
# The share of its time that a request may wait where urgency puts it. What is predicted is the
# shortest wait: others that are more urgent will come, and batches are not always the best ones.
_COMFORT: Final = 0.5


def take_turn(state: State, request: Request) -> None:
    """Moves `request`, which does not wait yet, up to its caller's turn if it would be late.

    Changes nothing where one caller is alone, or no caller of the same priority has two requests
    more. Takes O(callers) where one has.
    """
    level = state.shares.get(request.priority)
    if level is None:
        return
    own = level.get(request.caller)
    waiting = 0 if own is None else len(own)
    if state.queued_requests - waiting < waiting + _MARGIN:
        return
    if not any(len(share) >= waiting + _MARGIN for share in level.values()):
        return
    comfortable = _COMFORT * (request.soft_deadline - request.arrival)
    if predicted_finish(state, request) <= comfortable:
        return
    rank = request.rank
    turns = (share[waiting].rank for share in level.values() if len(share) > waiting)
    before = max((turn for turn in turns if turn < rank), default=None)
    if before is not None:
        request.follow(before)
        _stay_in_order(own, request)


def _stay_in_order(own: Queue | None, request: Request) -> None:
    """A move passes no earlier request of the same caller that is as urgent by itself."""
    for earlier in reversed(own or Queue()):
        if earlier.rank < request.rank:
            return
        if earlier.soft_deadline <= request.soft_deadline:
            return request.follow(earlier.rank)


def displaced_by(state: State, request: Request, refusal: Reject) -> list[Reject]:
    """Refusals of waiting requests in whose place `request` fits; none where it has no claim.

    `refusal` says why `request` itself does not fit, and when to come back. They are the least
    urgent of the caller with the most of what is short, requests or bytes, as long as it is left
    with no less than `request`'s caller has then. Lower priorities give way first, higher ones
    never.
    """
    measure = _nbytes if refusal.why is Why.QUEUE_BYTES else len
    for priority in sorted(state.shares, reverse=True):
        if priority < request.priority:
            break
        level = state.shares[priority]
        caller = max(level, key=lambda caller: measure(level[caller]))
        if caller != request.caller:
            left = measure(level[caller]) - measure(level.get(request.caller, Queue()))
            victims = _least_urgent(state, request, level[caller], left, refusal.why)
            if victims:
                return [_refuse(victim, refusal, len(level[caller])) for victim in victims]
    return []


def _nbytes(queue: Queue) -> int:
    return queue.nbytes


def _least_urgent(
    state: State, request: Request, queue: Queue, surplus: int, why: Why
) -> list[Request]:
    """Enough from the end of `queue` for `request` to fit; none where `surplus` does not cover it.

    `surplus` is what the queue's caller has more than `request`'s, in requests or bytes by `why`.
    """
    limits = state.limits
    requests = state.queued_requests + 1 - limits.max_queued_requests
    nbytes = state.queued_bytes + request.nbytes - limits.max_queued_bytes
    surplus -= request.nbytes if why is Why.QUEUE_BYTES else 1
    victims: list[Request] = []
    for victim in reversed(queue):
        if requests <= 0 and nbytes <= 0:
            break
        surplus -= victim.nbytes if why is Why.QUEUE_BYTES else 1
        if surplus < 0:
            return []
        victims.append(victim)
        requests -= 1
        nbytes -= victim.nbytes
    return victims if requests <= 0 and nbytes <= 0 else []


def _refuse(victim: Request, refusal: Reject, waiting: int) -> Reject:
    message = (
        f"the queue is full, and gives its places to callers with fewer requests in it: this one "
        f"has {waiting}"
    )
    return Reject(victim, refusal.why, refusal.retry_after, message)
