"""ModelStreamInfer: a stream of requests, many in flight, answered as they are done."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress

import grpc
from google.protobuf.message import DecodeError

from headrace.inference.v2 import grpc_service_pb2 as pb
from headrace.server import errors
from headrace.server.rpc import codec
from headrace.server.rpc.calls import abort, caller_of, log_unexpected
from headrace.server.rpc.guard import Context, shown_by
from headrace.server.rpc.limits import Charge
from headrace.server.rpc.wire import delimited
from headrace.server.security.access import Shown

# Requests of one stream that may be in flight; beyond that the stream is not read, and HTTP/2's
# flow control holds its sender back.
STREAM_WINDOW = 1024

# Characters that are repeated of what a refused request calls itself and its model.
_ECHOED = 1024

_STREAM_RESPONSE_TAG = pb.ModelStreamInferResponse.INFER_RESPONSE_FIELD_NUMBER << 3 | 2

# The message, when it came, the seconds its call has left, its caller, and what that one shows.
# Gives the response, and what it holds until it is written.
Answer = Callable[
    [bytes, float, float | None, str, Callable[[], Shown]], Awaitable[tuple[bytes, Charge]]
]


class InferStream:
    """One ModelStreamInfer call.

    Reading is a task of its own, so that draining can stop it alone; each request is a task; writes
    take turns. In strict mode (`triton_grpc_error: true` in the metadata) the first error ends the
    stream with its status, otherwise errors are answers like others.
    """

    def __init__(self, answer: Answer, context: Context) -> None:
        """`answer` gives the response to one request."""
        self._answer_one = answer
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
        arrival, charge = time.monotonic(), None
        try:
            remaining = self._context.time_remaining()
            response, charge = await self._answer_one(
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
        del data  # writes wait for who reads, and a refused message is charged to nobody
        try:
            async with self._writing:
                await self._context.write(answer)
        finally:
            if charge is not None:
                charge.release()


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
    """`error` as the answer to `data` on a stream, its status and reason in parameters for clients
    to read."""
    message = pb.ModelInferRequest()
    with suppress(DecodeError):
        message = pb.ModelInferRequest.FromString(data)
    answer = pb.ModelStreamInferResponse(error_message=errors.message_of(error))
    response = answer.infer_response
    response.id, response.model_name = message.id[:_ECHOED], message.model_name[:_ECHOED]
    response.model_version = message.model_version[:_ECHOED]
    row = errors.row_of(error)
    response.parameters["headrace_status"].string_param = row.code.name
    response.parameters["headrace_error_reason"].string_param = row.reason
    wait = errors.retry_after(error)
    if wait is not None:
        response.parameters["headrace_retry_after_ms"].int64_param = max(1, int(wait * 1e3))
    response.parameters[codec.FINAL_RESPONSE].bool_param = True
    return answer.SerializeToString()
