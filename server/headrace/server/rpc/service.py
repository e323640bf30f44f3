"""The inference methods: a unary call, and a stream of many requests in flight."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, NoReturn

import grpc

from headrace.inference.v2 import grpc_service_pb2 as pb
from headrace.server import errors
from headrace.server.rpc import codec
from headrace.server.rpc.wire import WireRequest
from headrace.server.streams.sequences import Sequences
from headrace.server.telemetry.watch import Watch

_log = logging.getLogger(__name__)

_SERVICE = pb.DESCRIPTOR.services_by_name["GRPCInferenceService"].full_name
MODEL_INFER, MODEL_STREAM_INFER = f"{_SERVICE}/ModelInfer", f"{_SERVICE}/ModelStreamInfer"

# A context tells its status as gRPC's constant or as its number, by the way it was set.
_STATUS_NAMES = {key: code.name for code in grpc.StatusCode for key in (code, code.value[0])}

# Requests of one stream that may be in flight; beyond that the stream is not read, and HTTP/2's
# flow control holds its sender back.
STREAM_WINDOW = 1024

# The metadata by which a caller, or a proxy before it, says whose share of a model it takes.
CALLER = "headrace-caller"

# A message that could not be parsed arrives as the error that says so.
Received = WireRequest | errors.InvalidInput

if TYPE_CHECKING:
    Context = grpc.aio.ServicerContext[Any, Any]
else:
    Context = grpc.aio.ServicerContext


class InferenceService:
    """Answers ModelInfer and ModelStreamInfer."""

    def __init__(self, sequences: Sequences, watch: Watch) -> None:
        self._sequences = sequences
        self._watch = watch
        self._draining = False
        self.outcomes: Counter[str] = Counter()
        self._last_arrival = time.monotonic()
        self._streams: set[_Stream] = set()

    def drain(self) -> None:
        """Refuses new work from now on. Streams end once what they have in flight is answered."""
        self._draining = True
        for stream in self._streams:
            stream.drain()

    async def answer(
        self, wire: Received, arrival: float, remaining: float | None, caller: str
    ) -> pb.ModelInferResponse:
        """One request, answered; raises the errors of the server's table, and counts them."""
        self._last_arrival = arrival
        try:
            response = await self._answer(wire, arrival, remaining, caller)
        except Exception as error:
            self.outcomes[errors.row_of(error).reason] += 1
            raise
        self.outcomes["OK"] += 1
        return response

    def quiet_since(self) -> float:
        """When the last request came, in seconds of the monotonic clock."""
        return self._last_arrival

    async def _answer(
        self, wire: Received, arrival: float, remaining: float | None, caller: str
    ) -> pb.ModelInferResponse:
        if self._draining:
            raise errors.Draining("the server is shutting down")
        if isinstance(wire, errors.InvalidInput):
            raise wire
        request = codec.decode(wire, arrival, remaining, caller)
        result = await self._sequences.infer(request)
        return codec.encode(wire.message, result)

    async def model_infer(self, wire: Received, context: Context) -> pb.ModelInferResponse:
        asked = named_in(wire)
        call = self._watch.begin(MODEL_INFER, context.invocation_metadata, asked[0])
        try:
            remaining, call.caller = context.time_remaining(), caller_of(context)
            response = await self.answer(wire, call.arrival, remaining, call.caller)
        except asyncio.CancelledError:
            self._watch.cancelled(call, *asked)
            raise
        except Exception as error:  # noqa: BLE001 (the table knows what each error means)
            self._watch.failed(call, error, *asked)
            await abort(context, error)
        self._watch.answered(call, response.model_name, response.model_version)
        return response

    async def model_stream_infer(self, _: Any, context: Context) -> None:
        async with watched(self._watch, MODEL_STREAM_INFER, context):
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
            wire = await self._context.read()
            if wire is grpc.aio.EOF:
                return
            task = asyncio.get_running_loop().create_task(self._answer(wire))
            self._answering.add(task)
            task.add_done_callback(self._answered)

    def _answered(self, task: asyncio.Task[None]) -> None:
        self._answering.discard(task)
        self._window.release()
        if not task.cancelled() and task.exception() is not None:
            self._reader.cancel()  # the connection is gone: a write failed

    async def _answer(self, wire: Received) -> None:
        arrival = time.monotonic()
        message = wire.message if isinstance(wire, WireRequest) else pb.ModelInferRequest()
        try:
            remaining = self._context.time_remaining()
            response = await self._service.answer(wire, arrival, remaining, self._caller)
            answer = pb.ModelStreamInferResponse(infer_response=response)
        except Exception as error:  # noqa: BLE001 (the table knows what each error means)
            log_unexpected(error)
            if self._strict:
                self._failure = self._failure or error
                self._reader.cancel()
                for task in self._answering - {asyncio.current_task()}:
                    task.cancel()
                return
            answer = _in_band(message, error)
        answer.infer_response.parameters[codec.FINAL_RESPONSE].bool_param = True
        async with self._writing:
            await self._context.write(answer)


def named_in(wire: Received) -> tuple[str, str]:
    """The model and version that a request names."""
    if not isinstance(wire, WireRequest):
        return "", ""
    return wire.message.model_name, wire.message.model_version


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


def caller_of(context: Context) -> str:
    """Who calls: by the call's metadata, else the connection it came on."""
    for key, value in context.invocation_metadata() or ():
        if key == CALLER and value:
            return str(value)
    return str(context.peer())


def _in_band(message: pb.ModelInferRequest, error: Exception) -> pb.ModelStreamInferResponse:
    """`error` as an answer on a stream, with its status in parameters that clients may read."""
    answer = pb.ModelStreamInferResponse(error_message=errors.message_of(error))
    response = answer.infer_response
    response.id, response.model_name = message.id, message.model_name
    response.model_version = message.model_version
    response.parameters["headrace_status"].string_param = errors.row_of(error).code.name
    wait = errors.retry_after(error)
    if wait is not None:
        response.parameters["headrace_retry_after_ms"].int64_param = max(1, int(wait * 1e3))
    return answer


def log_unexpected(error: Exception) -> None:
    """An error that no caller can be blamed for leaves its traceback in the log."""
    if errors.row_of(error) is errors.INTERNAL:
        _log.error("unexpected error", exc_info=error)


async def abort(context: Context, error: Exception) -> NoReturn:
    """Ends the call with the table's status for `error`, details included."""
    log_unexpected(error)
    details = errors.rich_status(error).SerializeToString()
    metadata = (("grpc-status-details-bin", details),)
    try:
        await context.abort(errors.row_of(error).code, errors.message_of(error), metadata)
    except grpc.aio.InternalError as gone:
        # The caller has hung up, at its deadline most likely: there is nobody left to tell.
        raise asyncio.CancelledError from gone


def guarded(
    method: Callable[[Any], Awaitable[Any]], watch: Watch, name: str
) -> Callable[[Any, Context], Awaitable[Any]]:
    """A unary handler of `method`, which raises the errors of the table. `name`: in full."""

    async def handler(request: Any, context: Context) -> Any:
        try:
            async with watched(watch, name, context):
                if isinstance(request, errors.InvalidInput):
                    raise request
                return await method(request)
        except Exception as error:  # noqa: BLE001 (the table knows what each error means)
            await abort(context, error)

    return handler
