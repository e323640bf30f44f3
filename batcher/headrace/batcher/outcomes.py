"""The exceptions by which requests end that were accepted and not answered."""

from __future__ import annotations

from headrace.batcher.admission import come_back
from headrace.batcher.errors import (
    Draining,
    ExecutionFailed,
    Expired,
    NoExecutor,
    Overtaken,
)
from headrace.batcher.request import Request, Why
from headrace.batcher.state import State


def of_drop(request: Request, why: Why, state: State, now: float, unable: str) -> Exception:
    """What is told to the caller of a request that is let go of. `unable`: why no executor is left,
    where none is."""
    waited = f"{(now - request.arrival) * 1e3:.1f} ms in the queue"
    if why is Why.EXPIRED:
        return Expired(f"the deadline passed after {waited}")
    if why is Why.OVERTAKEN:
        message = f"after {waited} the deadline cannot be met any more"
        return Overtaken(message, come_back(state, request, now))
    if why is Why.NO_EXECUTOR:
        return NoExecutor(unable)
    return Draining("the server is shutting down")


def of_failure(error: Exception) -> ExecutionFailed:
    """What one caller is told of `error`, which may end several: each is given its own."""
    kind = type(error) if isinstance(error, ExecutionFailed) else ExecutionFailed
    failure = kind(str(error) or type(error).__name__)
    failure.__cause__ = error
    return failure
