"""A clock that moves when told, and executors that finish when told. For tests of any room."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from headrace.batcher.executor import Completion, Done
from headrace.batcher.request import Batch


class ManualClock:
    """Seconds that pass only by `advance`."""

    def __init__(self, now: float = 1000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now

    def advance(self, seconds: float) -> None:
        """Raises ValueError for negative `seconds`: time does not go back."""
        if seconds < 0:
            raise ValueError(f"time cannot go back, got {seconds}")
        self.now += seconds


class FakeExecutor:
    """Holds its batch until `finish` or `fail`; a member's result is its own payload."""

    def __init__(self, name: str = "fake", kind: str = "fake", team: int = 0) -> None:
        self.name = name
        self.kind = kind
        self.team = team
        self.batches: list[Batch] = []
        self.abandoned: list[Batch] = []
        self.deserted: list[Batch] = []
        self._done: Done | None = None

    def start(self, batch: Batch, done: Done) -> None:
        if self._done is not None:
            raise AssertionError(f"{self.name} was started while it ran a batch")
        self.batches.append(batch)
        self._done = done

    def abandon(self, batch: Batch) -> None:
        self.abandoned.append(batch)

    def desert(self, batch: Batch) -> None:
        self.deserted.append(batch)

    @property
    def busy(self) -> bool:
        return self._done is not None

    def finish(self, results: Sequence[Any] | None = None) -> None:
        """Ends the running batch well, with `results` or each member's payload."""
        if results is None:
            results = [request.payload for request in self.batches[-1].requests]
        self._end(Completion(results))

    def fail(self, error: Exception) -> None:
        """Ends the running batch with `error`."""
        self._end(Completion(error=error))

    def _end(self, completion: Completion) -> None:
        if self._done is None:
            raise AssertionError(f"{self.name} runs no batch")
        done, self._done = self._done, None
        done(self.batches[-1], completion)
