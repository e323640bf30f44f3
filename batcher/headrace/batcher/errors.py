"""How the batcher tells a caller that there will be no answer."""

from __future__ import annotations


class BatcherError(Exception):
    """The root of this room's errors."""


class Overloaded(BatcherError):
    """Refused, on arrival or in favour of another caller: a bound of the queue is reached.

    `retry_after` says, in seconds, when to try again.
    """

    def __init__(self, message: str, retry_after: float) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class Overtaken(Overloaded):
    """Let go of while it waited, before its deadline: with so much work it could not be in time."""


class DeadlineTooShort(BatcherError):
    """Refused on arrival: the run alone would take longer than there is time.

    `retry_after` says, in seconds, when to try again, where others may be why so little time was
    left; None where nobody else was here.
    """

    def __init__(self, message: str, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class Expired(BatcherError):
    """The deadline passed while the request waited. It was not computed."""


class Draining(BatcherError):
    """The runner takes no more work: it is being drained."""


class ExecutionFailed(BatcherError):
    """The executor failed on this very request, run alone."""


class ExecutorHung(ExecutionFailed):
    """The run did not come back, and was given up with its executor."""


class OutOfMemory(ExecutionFailed):
    """There was no memory to run this very request, alone."""


class NoExecutor(BatcherError):
    """Every executor was given up, and none could be put in its place so far."""
