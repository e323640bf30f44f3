"""A runner on a fake executor and a manual clock, with a log of what its observer is told."""

from __future__ import annotations

import asyncio
import math

from headrace.batcher.callers import Answer
from headrace.batcher.executor import Completion
from headrace.batcher.observer import Observer
from headrace.batcher.policy import Policy, WorkConserving
from headrace.batcher.promise import Promise
from headrace.batcher.request import Batch, Reject, Request, Why
from headrace.batcher.runner import Runner
from headrace.batcher.state import Limits
from headrace.batcher.testing import FakeExecutor, ManualClock


class Log(Observer):
    """Writes down every call."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, object]] = []

    def accepted(self, request: Request) -> None:
        self.calls.append(("accepted", request.payload))

    def rejected(self, refusal: Reject) -> None:
        self.calls.append(("rejected", refusal.why))

    def dropped(self, request: Request, why: Why, now: float) -> None:
        self.calls.append(("dropped", (request.payload, why)))

    def dispatched(self, batch: Batch) -> None:
        self.calls.append(("dispatched", [r.payload for r in batch.requests]))

    def completed(self, batch: Batch, completion: Completion, now: float) -> None:
        self.calls.append(("completed", completion.error is None))

    def wasted(self, request: Request, batch: Batch, now: float) -> None:
        self.calls.append(("wasted", request.payload))

    def answered(self, request: Request, batch: Batch, completion: Completion, now: float) -> None:
        self.calls.append(("answered", request.payload))

    def failed(self, request: Request, now: float) -> None:
        self.calls.append(("failed", request.payload))


class Bench:
    """A runner with one fake executor, a manual clock, and a log."""

    def __init__(self, policy: Policy | None = None, **limits: int) -> None:
        self.clock = ManualClock()
        self.executor = FakeExecutor()
        self.log = Log()
        self.runner = Runner(
            [self.executor], policy or WorkConserving(), Limits(**limits), self.clock, self.log
        )

    def submit(
        self, payload: object, deadline: float = math.inf, caller: str = ""
    ) -> Promise[Answer]:
        now = self.clock()
        request = Request("key", payload, now, deadline=now + deadline, caller=caller)
        return self.runner.submit(request)


async def settle() -> None:
    """Lets the loop run what is scheduled: decisions, then the callbacks that they cause."""
    for _ in range(4):
        await asyncio.sleep(0)
