"""How much one request, one caller and all of them together may ask for."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from headrace.batcher.errors import Overloaded
from headrace.server.errors import InvalidInput

if TYPE_CHECKING:
    from headrace.server.rpc.wire import WireRequest

# What a parsed byte of a message's head comes to in memory, about: typed contents are held once by
# protobuf and once by NumPy, and text more often than that.
_HEAD_COST: Final = 4
# When a caller who has been refused for what others hold may come again, seconds.
_RETRY_SECONDS: Final = 0.1


@dataclass(frozen=True, slots=True)
class Limits:
    """elements, dimensions: of one tensor. parameters: of a request, of each of its tensors.
    tensors: inputs, and outputs asked for. head_bytes: of a message without its raw tensors, which
    takes several times its size once it is parsed. bytes_in_flight: of all requests together.
    caller_calls, caller_streams: at once, of one caller.
    """

    elements: int = 1 << 28
    dimensions: int = 16
    parameters: int = 128
    tensors: int = 1024
    head_bytes: int = 64 << 20
    bytes_in_flight: int = 2 << 30
    caller_calls: int = 16_384
    caller_streams: int = 1024


def check_head(message: Any, limits: Limits) -> None:
    """Raises InvalidInput for a ModelInferRequest that names more than `limits` allow."""
    _at_most("parameters", "parameters", len(message.parameters), limits.parameters)
    _at_most("inputs", "tensors", len(message.inputs), limits.tensors)
    _at_most("outputs", "tensors", len(message.outputs), limits.tensors)
    for tensor in message.inputs:
        where = f"input '{tensor.name}'"
        _at_most(where, "parameters", len(tensor.parameters), limits.parameters)
        _at_most(where, "dimensions", len(tensor.shape), limits.dimensions)
    for tensor in message.outputs:
        where = f"output '{tensor.name}'"
        _at_most(where, "parameters", len(tensor.parameters), limits.parameters)


def check_shape(where: str, shape: Sequence[int], limits: Limits) -> None:
    """Raises InvalidInput for a `shape` that no tensor has, or none may have here."""
    if any(dim < 0 for dim in shape):
        raise InvalidInput(f"{where}: expected dimensions of 0 or more, got shape {list(shape)}")
    count = 1
    for dim in shape:  # an empty tensor's other dimensions count too: they are sizes all the same
        count *= dim or 1
    _at_most(f"{where}: shape {list(shape)}", "elements", count, limits.elements)


def _at_most(where: str, what: str, got: int, limit: int) -> None:
    if got > limit:
        raise InvalidInput(f"{where}: expected at most {limit} {what}, got {got}")


def cost_of(wire: WireRequest) -> int:
    """The bytes of memory that a request holds until it is answered, about."""
    nbytes = _HEAD_COST * (wire.head.nbytes + len(wire.id))
    for tensor in wire.raw:
        nbytes += len(tensor)
    return nbytes


def message_cost(message: Any) -> int:
    """The bytes of memory that a parsed message holds, about."""
    return _HEAD_COST * int(message.ByteSize())


class Charge:
    """What one request holds, from when it is taken on until its answer has left, in bytes."""

    __slots__ = ("_caller", "_in_flight", "nbytes")

    def __init__(self, in_flight: InFlight, caller: str, nbytes: int) -> None:
        self._in_flight: InFlight | None = in_flight
        self._caller = caller
        self.nbytes = nbytes

    def answer(self, nbytes: int) -> None:
        """The answer is held too. Raises MemoryError where there is no room, and then has taken
        nothing."""
        if self._in_flight is not None:
            self._in_flight.hold(nbytes, self.nbytes)
            self.nbytes += nbytes

    def release(self, *_: object) -> None:
        """All of it is let go. Once is enough, more often does no harm."""
        in_flight, self._in_flight = self._in_flight, None
        if in_flight is not None:
            in_flight.release(self._caller, self.nbytes)


class InFlight:
    """What is held for requests that have been taken on, and for whom.

    Requests are taken on up to the limit, and answers may take as much again: so those that were
    taken on can be answered, and what nobody reads is bounded by twice the limit.
    """

    def __init__(self, limits: Limits) -> None:
        self.nbytes = 0
        self._limits = limits
        self._calls: dict[str, int] = {}
        self._streams: dict[str, int] = {}

    def take(self, caller: str, nbytes: int) -> Charge:
        """Raises Overloaded. A request that is alone is taken, however large a message may be."""
        limits, calls = self._limits, self._calls.get(caller, 0)
        if calls >= limits.caller_calls:
            raise Overloaded(
                f"too many calls: '{caller}' has {calls} in flight, the limit is "
                f"{limits.caller_calls} (max_caller_calls)",
                _RETRY_SECONDS,
            )
        if self.nbytes and self.nbytes + nbytes > limits.bytes_in_flight:
            raise Overloaded(
                f"out of memory for requests: {self.nbytes} bytes are in flight and this request "
                f"takes {nbytes}, the limit is {limits.bytes_in_flight} (max_inflight_bytes)",
                _RETRY_SECONDS,
            )
        self._calls[caller] = calls + 1
        self.nbytes += nbytes
        return Charge(self, caller, nbytes)

    def hold(self, nbytes: int, own: int) -> None:
        """`nbytes` of an answer, to a request that holds `own` already. Raises MemoryError, which
        tells no time to come back: it was computed, and would be once more. An answer that is alone
        is held, however large it is."""
        most = 2 * self._limits.bytes_in_flight
        if self.nbytes > own and self.nbytes + nbytes > most:
            raise MemoryError(
                f"out of memory for answers: {self.nbytes} bytes are in flight, answers on their "
                f"way to their readers among them, and this one takes {nbytes}, the limit is "
                f"{most} (twice max_inflight_bytes)"
            )
        self.nbytes += nbytes

    def release(self, caller: str, nbytes: int) -> None:
        self.nbytes -= nbytes
        _less(self._calls, caller)

    @contextmanager
    def stream(self, caller: str) -> Iterator[None]:
        """One stream of `caller`, open inside the block. Raises Overloaded."""
        streams = self._streams.get(caller, 0)
        if streams >= self._limits.caller_streams:
            raise Overloaded(
                f"too many streams: '{caller}' has {streams} open, the limit is "
                f"{self._limits.caller_streams} (max_caller_streams)",
                _RETRY_SECONDS,
            )
        self._streams[caller] = streams + 1
        try:
            yield
        finally:
            _less(self._streams, caller)


def _less(counts: dict[str, int], caller: str) -> None:
    """Callers who have nothing in flight any more are not remembered."""
    counts[caller] -= 1
    if not counts[caller]:
        del counts[caller]
