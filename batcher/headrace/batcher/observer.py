"""What a runner tells whoever watches it. Telemetry implements this, unknown to the batcher."""

from __future__ import annotations

from headrace.batcher.executor import Completion
from headrace.batcher.request import Batch, Reject, Request, Why


class Observer:
    """Override what you need; everything here does nothing.

    Called on the event loop, between events: an observer must be quick and must not raise.
    """

    def accepted(self, request: Request) -> None:
        """`request` waits."""

    def rejected(self, refusal: Reject) -> None:
        """A request was refused: on arrival, or later for another caller's in a full queue. Where
        the runner takes none at all, nothing says when it will: `retry_after` is infinite."""

    def dropped(self, request: Request, why: Why, now: float) -> None:
        """An accepted request ended without having been run to its end."""

    def dispatched(self, batch: Batch) -> None:
        """`batch` was handed to its executor."""

    def hung(self, batch: Batch, now: float) -> None:
        """The run of `batch` is given up, and its executor with it. `completed` comes next."""

    def completed(self, batch: Batch, completion: Completion, now: float) -> None:
        """The executor is done with `batch`, whether it succeeded or not."""

    def wasted(self, request: Request, batch: Batch, now: float) -> None:
        """`request` was computed in `batch` for nobody: at the end of the run, at `now`, its caller
        had left or its deadline had passed. Told beside whatever else becomes of it.
        """

    def answered(self, request: Request, batch: Batch, completion: Completion, now: float) -> None:
        """`request` ended with an answer."""

    def failed(self, request: Request, now: float) -> None:
        """`request` ended with the executor's error."""
