"""What callers ask for and what they are answered, whatever brings it: a call, a stream, a file."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from headrace.batcher.callers import Answer
from headrace.batcher.promise import Promise
from headrace.inference.tensors import Array
from headrace.server.contract import InputTensor
from headrace.server.executors.payload import Key
from headrace.server.models.served import ServedModel
from headrace.server.models.spec import ModelSpec, TensorSpec

# The objects of which each request makes one are not frozen: that would triple what they cost.


@dataclass(frozen=True, slots=True)
class SequencePlace:
    """Which sequence of requests this one continues, and whether it is its first or last."""

    id: int | str
    start: bool = False
    end: bool = False


@dataclass(slots=True)
class Prepared:
    """What holds for every request of a kind, at the model whose contract is `spec`."""

    spec: ModelSpec
    key: Key
    outputs: Sequence[TensorSpec]
    rows: int
    nbytes: int
    priority: int
    solo: bool
    notes: dict[Hashable, bytes] = field(default_factory=dict)


class Kind:
    """What requests have in common that differ only in their tensors' contents and in when and from
    whom they come: what was found of the first of them need not be found again.

    prepared: what `submit` has found, at the model that served last.
    """

    __slots__ = ("prepared",)

    def __init__(self) -> None:
        self.prepared: Prepared | None = None


@dataclass(slots=True, init=False)
class InferenceRequest:
    """What a caller asks. Times are seconds: `arrival` of the monotonic clock, the others spans.

    outputs: names wanted; empty for all. remaining: until the transport's deadline. timeout: the
    most to wait in the queue, by the request's own parameter. priority: 1 is the most urgent level,
    0 leaves it to the model. solo: not to be run with others. caller: whose share of the executors
    it takes. states: of a stateful model, what came out of the run before, in the order of its
    contract's states; empty to start from zeros. sequence: whose states those are, by the caller's
    own parameters. kind: shared by requests that are alike in everything but their arrays, arrival,
    remaining, caller, identity, id and states; None where nothing is known of that. id: the
    caller's own name for it. identity: who calls, empty where the server does not ask.
    """

    model: str
    version: str
    inputs: Sequence[InputTensor]
    arrival: float
    outputs: Sequence[str]
    remaining: float
    timeout: float | None
    priority: int
    solo: bool
    caller: str
    states: Sequence[Array]
    sequence: SequencePlace | None
    kind: Kind | None
    id: str
    identity: str

    def __init__(
        self,
        model: str,
        version: str,
        inputs: Sequence[InputTensor],
        arrival: float,
        outputs: Sequence[str] = (),
        remaining: float = math.inf,
        timeout: float | None = None,
        priority: int = 0,
        solo: bool = False,
        caller: str = "",
        states: Sequence[Array] = (),
        sequence: SequencePlace | None = None,
        kind: Kind | None = None,
        id: str = "",
        identity: str = "",
    ) -> None:
        self.model = model
        self.version = version
        self.inputs = inputs
        self.arrival = arrival
        self.outputs = outputs
        self.remaining = remaining
        self.timeout = timeout
        self.priority = priority
        self.solo = solo
        self.caller = caller
        self.states = states
        self.sequence = sequence
        self.kind = kind
        self.id = id
        self.identity = identity


@dataclass(slots=True, init=False)
class InferenceResult:
    """The outputs in the order asked for, shaped as the model's contract has them; and the states
    that came out, in the order of its contract's states.

    padded_to: the length that the inputs were padded to; 0 when they were not. notes: for
    the codec to keep what serves again for requests of the same kind, as long as this model serves
    them; None where there is no kind.
    """

    model: ServedModel
    outputs: Sequence[tuple[TensorSpec, Array]]
    answer: Answer
    states: Sequence[Array]
    padded_to: int
    notes: dict[Hashable, bytes] | None

    def __init__(
        self,
        model: ServedModel,
        outputs: Sequence[tuple[TensorSpec, Array]],
        answer: Answer,
        states: Sequence[Array] = (),
        padded_to: int = 0,
        notes: dict[Hashable, bytes] | None = None,
    ) -> None:
        self.model = model
        self.outputs = outputs
        self.answer = answer
        self.states = states
        self.padded_to = padded_to
        self.notes = notes


class Pending(Protocol):
    """A request on its way. Cancelling the future withdraws it."""

    @property
    def future(self) -> asyncio.Future[Any] | Promise[Any]: ...

    def outcome(self) -> InferenceResult:
        """What the future, which has ended, says to the caller. Raises the errors of `infer`."""
