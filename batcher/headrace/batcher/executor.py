"""What the batcher asks of an executor."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from headrace.batcher.request import Batch


@dataclass(slots=True, init=False)
class Completion:
    """How a batch went.

    `results` has one entry per member, in order, when `error` is None. The three durations, in
    seconds, are measured in the executor's own thread: gathering the inputs, the run itself, and
    handing out the outputs. `work`: seconds of processor time that they took in all, where the
    thread did all of it by itself; else None.
    """

    results: Sequence[Any]
    error: Exception | None
    input_seconds: float
    infer_seconds: float
    output_seconds: float
    work: float | None

    def __init__(
        self,
        results: Sequence[Any] = (),
        error: Exception | None = None,
        input_seconds: float = 0.0,
        infer_seconds: float = 0.0,
        output_seconds: float = 0.0,
        work: float | None = None,
    ) -> None:
        self.results = results
        self.error = error
        self.input_seconds = input_seconds
        self.infer_seconds = infer_seconds
        self.output_seconds = output_seconds
        self.work = work

    @property
    def seconds(self) -> float:
        """The whole run."""
        return self.input_seconds + self.infer_seconds + self.output_seconds


class Done(Protocol):
    """Whom an executor tells of the end of a run, on whichever thread that ended."""

    def __call__(
        self, batch: Batch, completion: Completion, /, *, goes_on: bool = False
    ) -> Batch | None:
        """`goes_on`: whether the calling thread, not the event loop's, could run another at once.
        If so, returns what that is, if there is any: it has been dispatched, and is told of in the
        same way."""


class Executor(Protocol):
    """Runs one batch at a time."""

    @property
    def name(self) -> str:
        """Unique within a runner."""

    @property
    def kind(self) -> str:
        """Executors of one kind are equally fast, as far as is known."""

    @property
    def team(self) -> int:
        """Executors of different teams never run at the same time; 0 is the main team."""

    def start(self, batch: Batch, done: Done) -> None:
        """Begins to run `batch` and returns at once; or runs it, if it is brief.

        Calls `done` exactly once for `batch`, before this returns or later, and so for each batch
        that it returns; a failure is a Completion with an error. Is not called again before all of
        that.
        """

    def abandon(self, batch: Batch) -> None:
        """Nobody waits for `batch` any more: it may end early. `done` is called all the same. May
        come before `start` does, where another executor's thread has dispatched the batch."""

    def desert(self, batch: Batch) -> None:
        """The run of `batch` hangs: this executor is not used again, and lets go of what it can.

        Must not block. `done` may still be called if the run ends after all, and is not heard.
        """
