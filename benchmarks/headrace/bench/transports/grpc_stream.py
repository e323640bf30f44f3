"""ModelStreamInfer: all requests of a process on one bidirectional call, answers matched by id."""

from __future__ import annotations

import asyncio
import itertools
from collections import deque
from typing import Any

import grpc

from headrace.bench.transports import OK, Done, Prepared
from headrace.bench.transports.channel import connected
from headrace.client.messages import STATUS_PARAMETER
from headrace.inference.v2 import grpc_service_pb2 as pb

PATH = "/inference.GRPCInferenceService/ModelStreamInfer"


class GrpcStreamTransport:
    """A deadline is told by the request parameter `timeout` (microseconds), as Triton has it: that
    of gRPC is the call's. After the call has broken, the next request makes another one."""

    name = "grpcio, one stream"

    def __init__(self, address: str) -> None:
        self._address = address
        self._channel: grpc.aio.Channel | None = None
        self._ids = itertools.count()
        self._waiting: dict[str, Done] = {}
        self._outgoing: deque[bytes] = deque()
        self._work = asyncio.Event()
        self._carrier: asyncio.Task[None] | None = None

    async def open(self) -> None:
        self._channel = await connected(self._address)

    def send(self, request: Prepared, timeout: float | None, done: Done) -> None:
        identity = str(next(self._ids))
        # Two serialised messages in a row are one message that has the fields of both.
        rest = pb.ModelInferRequest(id=identity)
        if timeout is not None:
            rest.parameters["timeout"].int64_param = max(1, round(timeout * 1e6))
        self._waiting[identity] = done
        self._outgoing.append(request.body + rest.SerializeToString())
        self._work.set()
        if self._carrier is None:
            self._carrier = asyncio.get_running_loop().create_task(self._carry())

    async def _carry(self) -> None:
        """Carries requests and answers on one call, to its end."""
        assert self._channel is not None, "open() comes first"
        method: Any = self._channel.stream_stream(
            PATH, response_deserializer=pb.ModelStreamInferResponse.FromString
        )
        call = method()
        writer = asyncio.get_running_loop().create_task(self._write(call))
        status = grpc.StatusCode.CANCELLED
        try:
            async for response in call:
                self._answer(response)
            status = grpc.StatusCode.UNAVAILABLE  # ended with answers missing, whatever it says
        except grpc.RpcError as error:
            status = error.code()
        finally:
            writer.cancel()
            call.cancel()
            await asyncio.wait([writer])
            self._end(status.name)

    async def _write(self, call: Any) -> None:
        try:
            while True:
                while self._outgoing:
                    await call.write(self._outgoing.popleft())
                self._work.clear()
                await self._work.wait()
        except (grpc.RpcError, asyncio.InvalidStateError):
            pass  # the call has ended: why, its reader learns

    def _answer(self, response: pb.ModelStreamInferResponse) -> None:
        identity = response.infer_response.id
        if not response.error_message:
            status = OK
        else:
            told = response.infer_response.parameters.get(STATUS_PARAMETER)
            # Servers other than Headrace send the message alone.
            status = (told.string_param if told is not None else "") or "UNKNOWN"
            if not identity and self._waiting:  # ... and some without the id: the oldest, then
                identity = next(iter(self._waiting))
        done = self._waiting.pop(identity, None)
        if done is not None:
            done(status)

    def _end(self, status: str) -> None:
        self._carrier = None
        self._outgoing.clear()
        waiting, self._waiting = self._waiting, {}
        for done in waiting.values():
            done(status)

    async def close(self) -> None:
        if self._carrier is not None:
            self._carrier.cancel()
            await asyncio.wait([self._carrier])
        if self._channel is not None:
            await self._channel.close()
