"""What the batcher moves about: requests, and the batches it makes of them.

What is made for each request or batch has its `__init__` written out, here and elsewhere: one that
is generated stays interpreted where the rest is compiled (docs/performance.md, "Compiled").
"""

from __future__ import annotations

import enum
import itertools
import math
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any, Final

# A request without a deadline, or with a distant one, becomes as urgent as one whose deadline lies
# this many seconds after its arrival. Nothing can be overtaken for longer: no starvation.
PATIENCE: Final = 1.0
# Being one priority level lower is like having arrived this many seconds later.
PRIORITY_STEP: Final = 10.0

_sequence = itertools.count()


class Phase(enum.Enum):
    """Where in its life a request is. It only moves forward, but for a retry: RUNNING to QUEUED."""

    NEW = "new"
    QUEUED = "queued"
    RUNNING = "running"
    ENDED = "ended"


@dataclass(eq=False, slots=True, init=False)
class Request:
    """One caller's work, as far as scheduling it goes.

    Times are seconds of one monotonic clock. `key` is the compatibility key: requests with equal
    keys can share a batch. `rows` counts along the batch axis, at least 1; `nbytes` is what the
    payload holds in memory while it waits. `priority` is 1 for the most urgent level, growing
    downwards. `payload` belongs to the caller: the batcher hands it to the executor unseen. A
    `solo` request is never put in a batch with others, one with a `group` only with its like.
    `caller` is whose share of the executors it takes (`fairness.py`). A `trial` runs although it is
    predicted to be late, to find out whether the prediction still holds. `found` is how many
    requests waited when it came.
    """

    key: Hashable
    payload: Any
    arrival: float
    rows: int
    nbytes: int
    deadline: float
    priority: int
    solo: bool
    caller: Hashable
    trial: bool
    found: int
    phase: Phase
    sequence: int
    started: float
    urgency: float
    turn: int
    group: object | None

    def __init__(
        self,
        key: Hashable,
        payload: Any,
        arrival: float,
        rows: int = 1,
        nbytes: int = 0,
        deadline: float = math.inf,
        priority: int = 1,
        solo: bool = False,
        caller: Hashable = "",
    ) -> None:
        self.key = key
        self.payload = payload
        self.arrival = arrival
        self.rows = rows
        self.nbytes = nbytes
        self.deadline = deadline
        self.priority = priority
        self.solo = solo
        self.caller = caller
        self.trial = False
        self.found = 0
        self.phase = Phase.NEW
        self.sequence = self.turn = next(_sequence)
        self.started = math.nan
        self.urgency = self.soft_deadline + PRIORITY_STEP * (priority - 1)
        self.group = None

    @property
    def soft_deadline(self) -> float:
        """When it should be answered: at its deadline, or when its patience ends if sooner."""
        return min(self.deadline, self.arrival + PATIENCE)

    @property
    def rank(self) -> tuple[float, int, int]:
        """What orders requests, the smallest first: urgency, then arrival."""
        return self.urgency, self.turn, self.sequence

    def before(self, other: Request) -> bool:
        """Whether `rank` is smaller than the other's."""
        if self.urgency != other.urgency:
            return self.urgency < other.urgency
        if self.turn != other.turn:
            return self.turn < other.turn
        return self.sequence < other.sequence

    def follow(self, rank: tuple[float, int, int]) -> None:
        """Takes the place right behind `rank`, and behind those that follow it already."""
        self.urgency, self.turn, _ = rank

    def expired(self, now: float) -> bool:
        return self.deadline <= now


class Reason(enum.Enum):
    """Why a batch closed when it did."""

    FULL = "full"
    EXECUTOR_IDLE = "executor idle"
    SHARED = "shared among executors"
    NO_GAIN = "no gain in a larger batch"
    DEADLINE = "deadline"
    BRIEF = "brief, for callers with deadlines"
    TRIAL = "trial of another size"
    SOLO = "solo"
    RETRY = "half of a batch that failed"


@dataclass(eq=False, slots=True, init=False)
class Batch:
    """Requests of one key that run together, in order, on one executor.

    `waiting` counts the requests that were left in the queue when this batch closed: with `reason`
    it explains the size. `expected` is the predicted time of the run in seconds, nan where nothing
    is known. `live` counts the members whose callers still wait. `cold`: it is among the first runs
    after another team's. `settled`: its executor has run others like it right before.
    `undisturbed`: nothing else was here when it began. `abandoned`: it may end early, or not begin.
    """

    key: Hashable
    requests: list[Request]
    executor: str
    reason: Reason
    started: float
    waiting: int
    expected: float
    cold: bool
    settled: bool
    undisturbed: bool
    abandoned: bool
    rows: int
    live: int

    def __init__(
        self,
        key: Hashable,
        requests: list[Request],
        executor: str,
        reason: Reason,
        started: float,
        waiting: int = 0,
        expected: float = math.nan,
    ) -> None:
        self.key = key
        self.requests = requests
        self.executor = executor
        self.reason = reason
        self.started = started
        self.waiting = waiting
        self.expected = expected
        self.cold = self.undisturbed = self.abandoned = False
        self.settled = True
        self.rows = sum(request.rows for request in requests)
        self.live = len(requests)


class Why(enum.Enum):
    """Why a request ended without an answer."""

    QUEUE_FULL = "queue full"
    QUEUE_BYTES = "queue bytes"
    TOO_LATE = "predicted to miss its deadline"
    TOO_SHORT = "deadline shorter than the run itself"
    EXPIRED = "deadline passed in the queue"
    OVERTAKEN = "could no longer meet its deadline"
    CANCELLED = "cancelled"
    DRAINING = "draining"
    NO_EXECUTOR = "no executor left"


@dataclass(slots=True, init=False)
class Dispatch:
    """Run `batch` on the executor it names."""

    batch: Batch

    def __init__(self, batch: Batch) -> None:
        self.batch = batch


@dataclass(frozen=True, slots=True)
class Reject:
    """Refuse `request`; it may be tried again after `retry_after` seconds."""

    request: Request
    why: Why
    retry_after: float
    message: str


@dataclass(frozen=True, slots=True)
class Drop:
    """End an accepted `request` without running it."""

    request: Request
    why: Why


@dataclass(frozen=True, slots=True)
class WakeAt:
    """Decide again at `time`, whatever happens before."""

    time: float


Action = Dispatch | Reject | Drop | WakeAt
