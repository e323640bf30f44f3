"""The inference methods: a unary call, and a stream of many requests in flight."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any

from google.protobuf.message import DecodeError

from headrace.batcher.promise import Promise
from headrace.inference.v2 import grpc_service_pb2 as pb
from headrace.server import errors
from headrace.server.exchange import Pending
from headrace.server.rpc import codec
from headrace.server.rpc.calls import abort, caller_of, remaining_of
from headrace.server.rpc.guard import Context, shown_by
from headrace.server.rpc.handlers import admitted, watched
from headrace.server.rpc.infer_stream import InferStream
from headrace.server.rpc.limits import Charge, InFlight, Limits, cost_of
from headrace.server.rpc.wire import Parts, Reader, WireRequest
from headrace.server.security.access import Kind, Shown
from headrace.server.security.guard import Guard, nothing_shown
from headrace.server.streams.sequences import Sequences
from headrace.server.telemetry.sampling import Metadata
from headrace.server.telemetry.watch import Call, Watch

_SERVICE = pb.DESCRIPTOR.services_by_name["GRPCInferenceService"].full_name
MODEL_INFER, MODEL_STREAM_INFER = f"{_SERVICE}/ModelInfer", f"{_SERVICE}/ModelStreamInfer"

# A message that could not be parsed is the error that says so.
Received = WireRequest | errors.InvalidInput


class Sender:
    """caller: whose share of the executors a request takes. identity: who that is, empty where the
    server does not ask."""

    __slots__ = ("caller", "identity")

    def __init__(self, caller: str, identity: str) -> None:
        self.caller = caller
        self.identity = identity


class Begun:
    """A request that was taken on. Cancelling the future withdraws it. charge: what it holds, and
    its answer, to be let go once that has left. call: None for a request of a stream, which is one
    call for all of them."""

    __slots__ = ("call", "charge", "pending", "wire")

    def __init__(
        self, wire: WireRequest, pending: Pending, charge: Charge, call: Call | None
    ) -> None:
        self.wire = wire
        self.pending = pending
        self.charge = charge
        self.call = call

    @property
    def future(self) -> asyncio.Future[Any] | Promise[Any]:
        return self.pending.future


class InferenceService:
    """Answers ModelInfer and ModelStreamInfer.

    A request is begun, its future waited for in whatever way suits the transport, and finished.
    Messages are bytes on both sides.
    """

    def __init__(
        self,
        sequences: Sequences,
        watch: Watch,
        guard: Guard | None = None,
        limits: Limits | None = None,
    ) -> None:
        self._sequences = sequences
        self._watch = watch
        self.guard = guard or Guard()
        self._limits = limits or Limits()
        self.in_flight = InFlight(self._limits)
        self._reader = Reader(self._limits.head_bytes)
        self._draining = False
        self.outcomes: dict[str, int] = {}
        self._last_arrival = time.monotonic()
        self._streams: set[InferStream] = set()

    def drain(self) -> None:
        """Refuses new work from now on. Streams end once what they have in flight is answered."""
        self._draining = True
        for stream in self._streams:
            stream.drain()

    def begin_call(
        self,
        data: bytes,
        metadata: Callable[[], Metadata | None],
        remaining: float | None,
        caller: str,
        shown: Callable[[], Shown] = nothing_shown,
    ) -> Begun:
        """Takes on a call of ModelInfer; raises the errors of the server's table, and counts them.

        `metadata` gives the caller's; `remaining` are the seconds of the call's deadline, None when
        it has none; `caller` whom it comes from; `shown` gives what it shows of that. What is
        begun ends by `left`, or by `finish` and then `sent`.
        """
        received = _received(self._reader.read, data)
        return self.begin_received(received, metadata, remaining, caller, shown)

    def assemble(self, parts: Parts) -> Received:
        """A message that was taken apart elsewhere."""
        return _received(self._reader.assemble, parts)

    def begin_received(
        self,
        received: Received,
        metadata: Callable[[], Metadata | None],
        remaining: float | None,
        caller: str,
        shown: Callable[[], Shown] = nothing_shown,
        arrival: float | None = None,
    ) -> Begun:
        """`begin_call` for a message that has been read. `arrival`: when the call came, and the
        deadline had `remaining` seconds left, by the monotonic clock; None for now."""
        asked = _named_in(received)
        call = self._watch.begin(MODEL_INFER, metadata, lambda: asked[0], arrival)
        call.caller = caller
        try:
            identity = self._admitted("infer", received, shown)
            call.caller = caller = identity or caller
            return self._begin(received, call.arrival, remaining, Sender(caller, identity), call)
        except Exception as error:
            self._watch.failed(call, error, *asked)
            raise

    def finish(self, begun: Begun, join: codec.Join = b"".join) -> Any:
        """The ModelInferResponse to a request whose future has ended, as bytes or what else `join`
        makes of its parts; raises as `begin_call`, and MemoryError where too many answers wait for
        their readers."""
        try:
            result = begun.pending.outcome()
            response = codec.encode(begun.wire, result, join)
            if isinstance(response, bytes):  # anything else lies in memory with a bound of its own
                begun.charge.answer(len(response))
        except BaseException as error:
            begun.charge.release()
            if not isinstance(error, Exception):
                raise
            self._count(errors.row_of(error).reason)
            if begun.call is not None:
                self._watch.failed(begun.call, error, *_named_in(begun.wire))
            raise
        self._count("OK")
        if begun.call is not None:
            spec = result.model.spec
            queued = result.answer.queue_seconds
            self._watch.answered(begun.call, spec.name, spec.version, queued)
        return response

    def _count(self, reason: str) -> None:
        self.outcomes[reason] = self.outcomes.get(reason, 0) + 1

    def sent(self, begun: Begun) -> None:
        """The answer has left: what it held is free."""
        begun.charge.release()

    def left(self, begun: Begun) -> None:
        """The caller has gone: nobody waits for what was begun."""
        begun.future.cancel()
        begun.charge.release()
        if begun.call is not None:
            self._watch.cancelled(begun.call, *_named_in(begun.wire))

    async def answer(
        self,
        data: bytes,
        arrival: float,
        remaining: float | None,
        caller: str,
        shown: Callable[[], Shown] = nothing_shown,
    ) -> tuple[bytes, Charge]:
        """One request of a stream, from its beginning to its end, and what is to be released once
        the answer has left. Cancelling this withdraws it."""
        received = _received(self._reader.read, data)
        identity = self._admitted("stream", received, shown)
        sender = Sender(identity or caller, identity)
        begun = self._begin(received, arrival, remaining, sender, None)
        return await self._finished(begun), begun.charge

    async def model_infer(self, data: bytes, context: Context) -> bytes:
        try:
            remaining, caller = remaining_of(context), caller_of(context)
            shown = partial(shown_by, context)
            begun = self.begin_call(data, context.invocation_metadata, remaining, caller, shown)
            # gRPC calls back when it has written the answer, or given up: some never read theirs.
            released: Any = begun.charge.release
            context.add_done_callback(released)
            return await self._finished(begun)
        except Exception as error:  # noqa: BLE001 (the table knows what each error means)
            await abort(context, error)

    def _admitted(self, kind: Kind, received: Received, shown: Callable[[], Shown]) -> str:
        """Who asks, if the guard knows. Raises Unauthenticated, PermissionDenied; counts them."""
        model = received.head.model if isinstance(received, WireRequest) else None
        try:
            return self.guard.check(kind, model, shown)
        except errors.ServerError as error:
            self._count(errors.row_of(error).reason)
            raise

    def _begin(
        self,
        received: Received,
        arrival: float,
        remaining: float | None,
        sender: Sender,
        call: Call | None,
    ) -> Begun:
        self._last_arrival = arrival
        try:
            if self._draining:
                raise errors.Draining("the server is shutting down")
            if isinstance(received, errors.InvalidInput):
                raise received
            pending, charge = self._submit(received, arrival, remaining, sender)
            return Begun(received, pending, charge, call)
        except Exception as error:
            self._count(errors.row_of(error).reason)
            raise

    def _submit(
        self, wire: WireRequest, arrival: float, remaining: float | None, sender: Sender
    ) -> tuple[Pending, Charge]:
        """Raises the errors of the table."""
        charge = self.in_flight.take(sender.caller, cost_of(wire))
        try:
            request = codec.decode(wire, arrival, remaining, sender.caller, self._limits)
            request.identity = sender.identity
            return self._sequences.submit(request), charge
        except BaseException:
            charge.release()
            raise

    async def _finished(self, begun: Begun) -> bytes:
        try:
            with suppress(Exception):  # told by `finish`
                await begun.future
        except asyncio.CancelledError:
            self.left(begun)
            raise
        response: bytes = self.finish(begun)
        return response

    def quiet_since(self) -> float:
        """When the last request came, in seconds of the monotonic clock."""
        return self._last_arrival

    async def model_stream_infer(self, _: Any, context: Context) -> None:
        async with (
            watched(self._watch, MODEL_STREAM_INFER, context),
            admitted(self.guard, self.in_flight, context),
        ):
            stream = InferStream(self.answer, context)
            self._streams.add(stream)
            try:
                await stream.serve()
            finally:
                self._streams.discard(stream)
                stream.close()


def _received(read: Callable[[Any], WireRequest], message: Any) -> Received:
    # Left to gRPC, it would be UNKNOWN to the caller, and a traceback in the log for each.
    try:
        return read(message)
    except DecodeError as error:
        return errors.InvalidInput(f"the message cannot be parsed: {error}")


def _named_in(received: Received) -> tuple[str, str]:
    """The model and version that a request names."""
    if not isinstance(received, WireRequest):
        return "", ""
    return received.head.model, received.head.version
