"""Unary calls by gRPC's own asyncio client."""

from __future__ import annotations

from functools import partial
from typing import Any

import grpc

from headrace.bench.transports import Done, Prepared
from headrace.bench.transports.channel import connected


class GrpcioTransport:
    """Bytes in, bytes out: nothing is serialised or parsed while the clock runs."""

    name = "grpcio"

    def __init__(self, address: str) -> None:
        self._address = address
        self._channel: grpc.aio.Channel | None = None
        self._methods: dict[str, Any] = {}
        self._calls: set[Any] = set()

    async def open(self) -> None:
        self._channel = await connected(self._address)

    def send(self, request: Prepared, timeout: float | None, done: Done) -> None:
        method = self._methods.get(request.path)
        if method is None:
            assert self._channel is not None, "open() comes first"
            method = self._methods[request.path] = self._channel.unary_unary(request.path)
        call = method(request.body, timeout=timeout)
        self._calls.add(call)
        call.add_done_callback(partial(self._ended, done))

    def _ended(self, done: Done, call: Any) -> None:
        self._calls.discard(call)
        done(_status(call))

    async def close(self) -> None:
        for call in list(self._calls):
            call.cancel()
        if self._channel is not None:
            await self._channel.close()


def _status(call: Any) -> str:
    """Of a call that is done: its `code()` has nothing to wait for, so one step ends it, without a
    task."""
    try:
        call.code().send(None)
    except StopIteration as answer:
        name: str = answer.value.name
        return name
    raise RuntimeError("a call that is done has no status")
