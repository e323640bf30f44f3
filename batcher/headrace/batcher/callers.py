"""Those whose requests were accepted: what they were promised, and how they are told."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

from headrace.batcher import outcomes
from headrace.batcher.errors import Draining, Overloaded
from headrace.batcher.executor import Completion
from headrace.batcher.observer import Observer
from headrace.batcher.promise import Promise
from headrace.batcher.request import Batch, Reject, Request, Why


@dataclass(slots=True, init=False)
class Answer:
    """The result of one request, and how it came about. `total_seconds` counts from arrival, and
    `found` are the requests that waited then."""

    result: Any
    batch: Batch
    completion: Completion
    queue_seconds: float
    total_seconds: float
    found: int

    def __init__(
        self,
        result: Any,
        batch: Batch,
        completion: Completion,
        queue_seconds: float,
        total_seconds: float,
        found: int = 0,
    ) -> None:
        self.result = result
        self.batch = batch
        self.completion = completion
        self.queue_seconds = queue_seconds
        self.total_seconds = total_seconds
        self.found = found


class Run(NamedTuple):
    """A run that has ended: `ended` are the requests that end with it, `now` is when it did."""

    batch: Batch
    completion: Completion
    ended: list[Request]
    now: float


class Callers:
    """The promises of accepted requests, until they end; and the observer of their ends.

    `aborted`: what fails from now on fails because the server shuts down.
    """

    def __init__(self, observer: Observer) -> None:
        self.aborted = False
        self._observer = observer
        self._promises: dict[Request, Promise[Answer]] = {}

    def __len__(self) -> int:
        return len(self._promises)

    def promise(self, request: Request, withdrawn: Callable[[], None]) -> Promise[Answer]:
        """An end for `request`. `withdrawn` is called should its caller leave before that."""
        promise: Promise[Answer] = Promise(withdrawn)
        self._promises[request] = promise
        return promise

    def leaves(self, request: Request) -> Promise[Answer] | None:
        """Takes `request` out. Returns its promise, None where it has ended."""
        return self._promises.pop(request, None)

    def tell(self, run: Run) -> None:
        """Tells the observer of `run`, and those who are answered by it."""
        batch, completion, ended, now = run
        self._observer.completed(batch, completion, now)
        for request in batch.requests:
            if request not in self._promises or request.expired(now):
                self._observer.wasted(request, batch, now)
        results = dict(zip(batch.requests, completion.results, strict=False))
        for request in ended:
            self._end(request, results.get(request), run)

    def give_up(self, run: Run) -> None:
        """As `tell`, for a run that hangs: nobody knows whether it was for nobody."""
        self._observer.hung(run.batch, run.now)
        self._observer.completed(run.batch, run.completion, run.now)
        for request in run.ended:
            self._end(request, None, run)

    def _end(self, request: Request, result: Any, run: Run) -> None:
        promise = self.leaves(request)
        if promise is None:
            return  # its caller left when another was told
        batch, completion, _, now = run
        if completion.error is None:
            self._observer.answered(request, batch, completion, now)
            queued, total = request.started - request.arrival, now - request.arrival
            promise.resolve(Answer(result, batch, completion, queued, total, request.found))
        elif self.aborted:
            self._observer.dropped(request, Why.DRAINING, now)
            promise.fail(Draining("the server is shutting down"))
        else:
            self._observer.failed(request, now)
            promise.fail(outcomes.of_failure(completion.error))

    def refuse(self, refusal: Reject) -> None:
        """Tells one who was accepted and gave its place to another."""
        promise = self.leaves(refusal.request)
        if promise is not None:
            self._observer.rejected(refusal)
            promise.fail(Overloaded(refusal.message, refusal.retry_after))
