"""The methods other than ModelInfer, passed on to the model process as bytes, in either direction.

A call is one of grpc.aio over a socket file: what it brings, its deadline and its end are passed on
as they are. It says whom it comes from, since to the model process all calls come from the same
socket. While there is no model process, health and readiness are answered here.
"""

from __future__ import annotations

import asyncio
from functools import partial
from pathlib import Path
from typing import Any

import grpc
from grpc_health.v1 import health_pb2

from headrace.inference.v2 import grpc_service_pb2 as pb
from headrace.server.errors import ModelProcessAway
from headrace.server.fronts.names import AWAY
from headrace.server.rpc.calls import CALLER, PASSED_ON, abort, caller_of
from headrace.server.rpc.guard import FRONT_NAMES, FRONT_PREFIX, Context, names_of

_SERVICE = pb.DESCRIPTOR.services_by_name["GRPCInferenceService"].full_name
_NOT_SERVING = health_pb2.HealthCheckResponse(status=health_pb2.HealthCheckResponse.NOT_SERVING)
# What is known without a model process.
_MEANWHILE = {
    "/grpc.health.v1.Health/Check": _NOT_SERVING.SerializeToString(),
    f"/{_SERVICE}/ServerLive": pb.ServerLiveResponse(live=True).SerializeToString(),
    f"/{_SERVICE}/ServerReady": pb.ServerReadyResponse(ready=False).SerializeToString(),
    f"/{_SERVICE}/ModelReady": pb.ModelReadyResponse(ready=False).SerializeToString(),
}
_DETAILS = "grpc-status-details-bin"
# Of metadata, what belongs to a connection or is ours.
_KEPT_BACK = ("user-agent", "grpc-", FRONT_PREFIX)
_OPTIONS = [
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    ("grpc.enable_http_proxy", 0),
    ("grpc.enable_retries", 0),
    # Each model process is reached by a connection of its own, not by one that still backs off.
    ("grpc.use_local_subchannel_pool", 1),
]


class Passing(grpc.GenericRpcHandler):
    """Handles every method. `open` and `close` follow the coming and going of the
    model process."""

    def __init__(self) -> None:
        self._channel: grpc.aio.Channel | None = None
        self._passed: set[asyncio.Task[Any]] = set()

    def open(self, path: Path) -> None:
        """A model process listens at `path`."""
        self._channel = grpc.aio.insecure_channel(f"unix:{path}", options=_OPTIONS)

    async def close(self) -> None:
        """It has gone."""
        channel, self._channel = self._channel, None
        if channel is not None:
            await channel.close()

    async def end(self) -> None:
        """Ends the calls that are still there: the event loop is about to be closed."""
        passed = set(self._passed)
        for task in passed:
            task.cancel()
        if passed:
            await asyncio.wait(passed)
        await self.close()

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> Any:
        # On the wire a unary call is a stream of one message each way. Which methods there are the
        # model process knows.
        pass_on: Any = partial(self._pass_on, handler_call_details.method)
        return grpc.stream_stream_rpc_method_handler(pass_on)

    async def _pass_on(self, method: str, _: Any, context: Context) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._passed.add(task)
        task.add_done_callback(self._passed.discard)
        channel = self._channel
        if channel is None:
            await self._answer_meanwhile(method, context)
            return
        call: Any = channel.stream_stream(method)(
            timeout=context.time_remaining(), metadata=_metadata(context)
        )
        sending = asyncio.create_task(_send(context, call))
        try:
            while (message := await call.read()) is not grpc.aio.EOF:
                await context.write(message)
            context.set_trailing_metadata(await call.trailing_metadata() or ())
        except grpc.aio.AioRpcError as error:
            lost = error.code() is grpc.StatusCode.UNAVAILABLE or self._channel is not channel
            if lost and not _told_by_us(error):
                await self._answer_meanwhile(method, context)
            else:
                await _fail(context, error)
        except asyncio.CancelledError:
            if self._channel is channel:  # the caller has left, or this process stops
                raise
            await self._answer_meanwhile(method, context)
        finally:
            sending.cancel()
            call.cancel()

    async def _answer_meanwhile(self, method: str, context: Context) -> None:
        answer: Any = _MEANWHILE.get(method)
        if answer is None:
            await abort(context, ModelProcessAway(AWAY))
        await context.write(answer)


def _told_by_us(error: grpc.aio.AioRpcError) -> bool:
    """Whether the model process has said this, not gRPC in its place."""
    trailing: Any = error.trailing_metadata() or ()
    return any(key == _DETAILS for key, _ in trailing)


async def _fail(context: Context, error: grpc.aio.AioRpcError) -> None:
    """Ends a call as the model process has ended it."""
    trailing: Any = error.trailing_metadata() or ()
    try:
        await context.abort(error.code(), error.details() or "", tuple(trailing))
    except grpc.aio.InternalError as gone:
        raise asyncio.CancelledError from gone


async def _send(context: Context, call: Any) -> None:
    """The caller's messages. When the call ends sooner, `call.read` tells."""
    try:
        await call.wait_for_connection()
        while (message := await context.read()) is not grpc.aio.EOF:
            # `call.write` would put INTERNAL in the place of a status that is on its way.
            await call._cython_call.send_serialized_message(message)  # noqa: SLF001
        await call.done_writing()
    except (grpc.aio.AioRpcError, grpc.aio.InternalError, asyncio.InvalidStateError):
        pass


def _metadata(context: Context) -> list[tuple[str, Any]]:
    metadata: Any = context.invocation_metadata() or ()
    passed = [(key, value) for key, value in metadata if not key.startswith(_KEPT_BACK)]
    peer = str(context.peer())
    if peer != PASSED_ON and not any(key == CALLER for key, _ in passed):
        passed.append((CALLER, caller_of(context)))
    names = names_of(context)
    if names:
        passed.append((FRONT_NAMES, "\0".join(names).encode()))
    return passed
