"""Who may wait: the answer a request gets on arrival."""

from __future__ import annotations

from headrace.batcher.request import Reject, Request, Why
from headrace.batcher.state import State

# What a refused caller is told before any batch has run.
_UNKNOWN_WAIT = 0.1
_SHORTEST_WAIT, _LONGEST_WAIT = 0.001, 30.0


def admit(state: State, request: Request) -> Reject | None:
    """None when `request` may wait, else why not and when to try again.

    Deadlines are not looked at here: what is late already is dropped by the next decision.
    """
    limits = state.limits
    if state.queued_requests >= limits.max_queued_requests:
        message = (
            f"the queue is full: {state.queued_requests} requests wait, "
            f"the limit is {limits.max_queued_requests}"
        )
        return Reject(request, Why.QUEUE_FULL, predicted_wait(state), message)
    total = state.queued_bytes + request.nbytes
    if state.queued_requests and total > limits.max_queued_bytes:
        message = (
            f"the queue is full: {state.queued_bytes} bytes wait and this request has "
            f"{request.nbytes}, the limit is {limits.max_queued_bytes}"
        )
        return Reject(request, Why.QUEUE_BYTES, predicted_wait(state), message)
    return None


def predicted_wait(state: State) -> float:
    """Seconds until all that waits now has been started, by the pace of recent batches."""
    if state.seconds_per_row is None:
        return _UNKNOWN_WAIT
    wait = state.queued_rows * state.seconds_per_row / max(1, len(state.running))
    return min(max(wait, _SHORTEST_WAIT), _LONGEST_WAIT)
