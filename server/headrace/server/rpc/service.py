"""The inference methods: a unary call, and a stream of many requests in flight."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import ExitStack, asynccontextmanager, suppress
from functools import partial
from typing import Any, NamedTuple

import grpc
from google.protobuf.message import DecodeError

from headrace.batcher.errors import Overloaded
from headrace.inference.v2 import grpc_service_pb2 as pb
from headrace.server import errors
from headrace.server.inference import Pending
from headrace.server.rpc import codec
from headrace.server.rpc.calls import abort, caller_of, log_unexpected
from headrace.server.rpc.guard import Context, asked_by, shown_by
from headrace.server.rpc.limits import InFlight, Limits, cost_of
from headrace.server.rpc.wire import Parts, Reader, WireRequest, delimited
from headrace.server.security.access import Kind, Shown
from headrace.server.security.guard import Guard, nothing_shown
from headrace.server.streams.sequences import Sequences
from headrace.server.telemetry.sampling import Metadata
from headrace.server.telemetry.watch import Call, Watch

_SERVICE = pb.DESCRIPTOR.services_by_name["GRPCInferenceService"].full_name
MODEL_INFER, MODEL_STREAM_INFER = f"{_SERVICE}/ModelInfer", f"{_SERVICE}/ModelStreamInfer"

# A context tells its status as gRPC's constant or as its number, by the way it was set.
_STATUS_NAMES = {key: code.name for code in grpc.StatusCode for key in (code, code.value[0])}

# Requests of one stream that may be in flight; beyond that the stream is not read, and HTTP/2's
# flow control holds its sender back.
STREAM_WINDOW = 1024

_STREAM_RESPONSE_TAG = pb.ModelStreamInferResponse.INFER_RESPONSE_FIELD_NUMBER << 3 | 2

# A message that could not be parsed is the error that says so.
Received = WireRequest | errors.InvalidInput


class Sender(NamedTuple):
    """caller: whose share of the executors a request takes. identity: who that is, empty where the
    server does not ask."""

    caller: str
    identity: str


class Begun(NamedTuple):
    """A request that was taken on. Cancelling the future withdraws it."""

    wire: WireRequest
    pending: Pending
    call: Call | None  # None for a request of a stream, which is one call for all of them

    @property
    def future(self) -> asyncio.Future[Any]:
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
        self.outcomes: Counter[str] = Counter()
        self._last_arrival = time.monotonic()
        self._streams: set[_Stream] = set()

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
        begun ends by `finish` or `left`.
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
        makes of its parts; raises as `begin_call`."""
        try:
            result = begun.pending.outcome()
            response = codec.encode(begun.wire, result, join)
        except Exception as error:
            self.outcomes[errors.row_of(error).reason] += 1
            if begun.call is not None:
                self._watch.failed(begun.call, error, *_named_in(begun.wire))
            raise
        self.outcomes["OK"] += 1
        if begun.call is not None:
            spec = result.model.spec
            self._watch.answered(begun.call, spec.name, spec.version)
        return response

    def left(self, begun: Begun) -> None:
        """The caller has gone: nobody waits for what was begun."""
        begun.future.cancel()
        if begun.call is not None:
            self._watch.cancelled(begun.call, *_named_in(begun.wire))

    async def answer(
        self,
        data: bytes,
        arrival: float,
        remaining: float | None,
        caller: str,
        shown: Callable[[], Shown] = nothing_shown,
    ) -> bytes:
        """One request of a stream, from its beginning to its end. Cancelling this withdraws it."""
        received = _received(self._reader.read, data)
        identity = self._admitted("stream", received, shown)
        sender = Sender(identity or caller, identity)
        return await self._finished(self._begin(received, arrival, remaining, sender, None))

    async def model_infer(self, data: bytes, context: Context) -> bytes:
        try:
            remaining, caller = context.time_remaining(), caller_of(context)
            shown = partial(shown_by, context)
            begun = self.begin_call(data, context.invocation_metadata, remaining, caller, shown)
            return await self._finished(begun)
        except Exception as error:  # noqa: BLE001 (the table knows what each error means)
            await abort(context, error)

    def _admitted(self, kind: Kind, received: Received, shown: Callable[[], Shown]) -> str:
        """Who asks, if the guard knows. Raises Unauthenticated, PermissionDenied; counts them."""
        model = received.head.message.model_name if isinstance(received, WireRequest) else None
        try:
            return self.guard.check(kind, model, shown)
        except errors.ServerError as error:
            self.outcomes[errors.row_of(error).reason] += 1
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
            return Begun(received, self._submit(received, arrival, remaining, sender), call)
        except Exception as error:
            self.outcomes[errors.row_of(error).reason] += 1
            raise

    def _submit(
        self, wire: WireRequest, arrival: float, remaining: float | None, sender: Sender
    ) -> Pending:
        """Raises the errors of the table. What the request holds is let go when its future ends."""
        caller, nbytes = sender.caller, cost_of(wire)
        self.in_flight.take(caller, nbytes)
        try:
            request = codec.decode(wire, arrival, remaining, caller, self._limits)
            request.identity = sender.identity
            pending = self._sequences.submit(request)
        except BaseException:
            self.in_flight.release(caller, nbytes)
            raise
        pending.future.add_done_callback(lambda _: self.in_flight.release(caller, nbytes))
        return pending

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
            stream = _Stream(self, context)
            self._streams.add(stream)
            try:
                await stream.serve()
            finally:
                self._streams.discard(stream)
                stream.close()


class _Stream:
    """One ModelStreamInfer call.

    Reading is a task of its own, so that draining can stop it alone; each request is a task; writes
    take turns. In strict mode (`triton_grpc_error: true` in the metadata) the first error ends the
    stream with its status, otherwise errors are answers like others.
    """

    def __init__(self, service: InferenceService, context: Context) -> None:
        self._service = service
        self._context = context
        metadata = dict(context.invocation_metadata() or ())
        self._strict = metadata.get("triton_grpc_error") == "true"
        self._caller = caller_of(context)
        shown = shown_by(context)
        self._shown = lambda: shown
        self._window = asyncio.Semaphore(STREAM_WINDOW)
        self._writing = asyncio.Lock()
        self._answering: set[asyncio.Task[None]] = set()
        self._reader = asyncio.get_running_loop().create_task(self._read())
        self._failure: Exception | None = None
        self._draining = False

    async def serve(self) -> None:
        """Returns when the caller has ended its side and everything is answered."""
        await asyncio.wait([self._reader])
        if self._answering:
            await asyncio.wait(self._answering)
        if self._failure is not None:
            await abort(self._context, self._failure)
        if self._draining:
            await abort(self._context, errors.Draining("the server is shutting down"))
        if not self._reader.cancelled():
            self._reader.result()

    def drain(self) -> None:
        """Reads no more; the call ends once what is in flight is answered."""
        if not self._reader.done():
            self._draining = True
            self._reader.cancel()

    def close(self) -> None:
        """The call is over: nobody waits for what is still in flight."""
        self._reader.cancel()
        for task in self._answering:
            task.cancel()

    async def _read(self) -> None:
        while True:
            await self._window.acquire()
            data = await self._context.read()
            if data is grpc.aio.EOF:
                return
            task = asyncio.get_running_loop().create_task(self._answer(data))
            self._answering.add(task)
            task.add_done_callback(self._answered)

    def _answered(self, task: asyncio.Task[None]) -> None:
        self._answering.discard(task)
        self._window.release()
        if not task.cancelled() and task.exception() is not None:
            self._reader.cancel()  # the connection is gone: a write failed

    async def _answer(self, data: bytes) -> None:
        arrival = time.monotonic()
        try:
            remaining = self._context.time_remaining()
            response = await self._service.answer(
                data, arrival, remaining, self._caller, self._shown
            )
            answer = _final(response)
        except Exception as error:  # noqa: BLE001 (the table knows what each error means)
            log_unexpected(error)
            if self._strict:
                self._failure = self._failure or error
                self._reader.cancel()
                for task in self._answering - {asyncio.current_task()}:
                    task.cancel()
                return
            answer = _in_band(data, error)
        async with self._writing:
            await self._context.write(answer)


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
    return received.head.message.model_name, received.head.message.model_version


@asynccontextmanager
async def watched(watch: Watch, method: str, context: Context) -> AsyncIterator[None]:
    """One call, of its whole length, around what answers it or raises the status it ends with."""
    call = watch.begin(method, context.invocation_metadata)
    call.caller = caller_of(context)
    try:
        yield
    except asyncio.CancelledError:
        watch.cancelled(call)
        raise
    except grpc.aio.AbortError:
        status: Any = context.code()
        watch.aborted(call, _STATUS_NAMES.get(status, "UNKNOWN"), context.details())
        raise
    except Exception as error:
        watch.failed(call, error)
        raise
    watch.answered(call)


@asynccontextmanager
async def admitted(guard: Guard, in_flight: InFlight, context: Context) -> AsyncIterator[None]:
    """One stream, inside the block. Ends the call unless whoever makes it may open streams at all,
    and has not too many."""
    with ExitStack() as opened:
        try:
            caller = guard.check("stream", None, partial(shown_by, context)) or caller_of(context)
            opened.enter_context(in_flight.stream(caller))
        except (errors.ServerError, Overloaded) as error:
            await abort(context, error)
        yield


def _final(response: bytes) -> bytes:
    """A serialized ModelInferResponse as the one and final answer to a request of a stream."""
    size = len(response) + len(_FINAL)
    return b"".join((delimited(_STREAM_RESPONSE_TAG, size), response, _FINAL))


def _flag(name: str) -> bytes:
    """A response that has the parameter `name` only: appended to another, it adds that to it."""
    flag = pb.InferParameter(bool_param=True)
    return pb.ModelInferResponse(parameters={name: flag}).SerializeToString()


_FINAL = _flag(codec.FINAL_RESPONSE)


def _in_band(data: bytes, error: Exception) -> bytes:
    """`error` as the answer to `data` on a stream, its status in parameters for clients to read."""
    message = pb.ModelInferRequest()
    with suppress(DecodeError):
        message = pb.ModelInferRequest.FromString(data)
    answer = pb.ModelStreamInferResponse(error_message=errors.message_of(error))
    response = answer.infer_response
    response.id, response.model_name = message.id, message.model_name
    response.model_version = message.model_version
    response.parameters["headrace_status"].string_param = errors.row_of(error).code.name
    wait = errors.retry_after(error)
    if wait is not None:
        response.parameters["headrace_retry_after_ms"].int64_param = max(1, int(wait * 1e3))
    response.parameters[codec.FINAL_RESPONSE].bool_param = True
    return answer.SerializeToString()


def guarded(
    method: Callable[[Any], Awaitable[Any]], watch: Watch, name: str, guard: Guard
) -> Callable[[Any, Context], Awaitable[Any]]:
    """A unary handler of `method`, which raises the errors of the table. `name`: in full."""
    short = name.rpartition("/")[2]

    async def handler(request: Any, context: Context) -> Any:
        try:
            async with watched(watch, name, context):
                if isinstance(request, errors.InvalidInput):
                    guard.check("read", None, partial(shown_by, context))
                    raise request
                asked = asked_by(short, request)
                if asked is not None:
                    guard.check(*asked, partial(shown_by, context))
                return await method(request)
        except Exception as error:  # noqa: BLE001 (the table knows what each error means)
            await abort(context, error)

    return handler
