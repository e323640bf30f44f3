"""What a session tells its client, in order: each of these is one delivery."""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass

from headrace.inference.tensors import Array
from headrace.server.models.spec import TensorSpec
from headrace.server.streams.window import Span


class GapReason(enum.Enum):
    """Why windows have no result."""

    OVERLOADED = "overloaded"
    LATE = "late"
    FAILED = "failed"
    UNAVAILABLE = "unavailable"
    STOPPING = "stopping"


@dataclass(frozen=True, slots=True)
class Computed:
    """What a run gave for one window. states: in the order of the model's; empty when stateless.
    Times are seconds; `batch_size` counts the requests that shared the run."""

    outputs: Sequence[tuple[TensorSpec, Array]]
    states: Sequence[Array] = ()
    queue_seconds: float = 0.0
    compute_seconds: float = 0.0
    batch_size: int = 1


@dataclass(frozen=True, slots=True)
class Result:
    """The answer to one window; its span in time is in nanoseconds of the client's clock."""

    span: Span
    start_ns: int
    end_ns: int
    computed: Computed


@dataclass(frozen=True, slots=True)
class Gap:
    """Windows without a result."""

    span: Span
    reason: GapReason
    message: str


@dataclass(frozen=True, slots=True)
class Flushed:
    """All windows before a flush are delivered."""

    windows: int
    samples: int


@dataclass(frozen=True, slots=True)
class Closed:
    """The last delivery. asked: by the client; otherwise the server stops."""

    asked: bool
    samples: int
    windows: int
    answered: int
    dropped: int


Event = Result | Gap | Flushed | Closed
