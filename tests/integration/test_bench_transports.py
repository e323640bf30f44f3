"""Each way a request travels: it ends exactly once, by the status that the server gave, or by how
the connection ended."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
from aiohttp import web

from headrace.bench.prepare import INFER
from headrace.bench.spec import Target
from headrace.bench.transports import Prepared, Transport
from headrace.bench.transports.choose import transport
from headrace.inference.v2 import grpc_service_pb2 as pb
from headrace.inference.v2 import grpc_service_pb2_grpc as rpc


class Scripted(rpc.GRPCInferenceServiceServicer):
    """The model's name says what becomes of a request."""

    async def ModelInfer(self, request: Any, context: Any) -> pb.ModelInferResponse:
        if request.model_name == "hang":
            await asyncio.Event().wait()
        if request.model_name != "ok":
            await context.abort(grpc.StatusCode[request.model_name], "scripted")
        return pb.ModelInferResponse()

    async def ModelStreamInfer(
        self, requests: Any, context: Any
    ) -> AsyncIterator[pb.ModelStreamInferResponse]:
        async for request in requests:
            answer = pb.ModelStreamInferResponse()
            answer.infer_response.id = request.id
            if request.model_name == "break":
                await context.abort(grpc.StatusCode.UNAVAILABLE, "scripted")
            elif request.model_name == "timeout":
                told = request.parameters["timeout"].int64_param
                answer.error_message = "scripted"
                answer.infer_response.parameters["headrace_status"].string_param = (
                    "DEADLINE_EXCEEDED" if told == 250_000 else f"timeout was {told}"
                )
            elif request.model_name == "anonymous":
                answer = pb.ModelStreamInferResponse(error_message="scripted")
            if request.model_name != "hang":
                yield answer


@pytest.fixture
async def grpc_address() -> AsyncIterator[str]:
    server = grpc.aio.server()
    rpc.add_GRPCInferenceServiceServicer_to_server(Scripted(), server)  # type: ignore[abstract]
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    yield f"127.0.0.1:{port}"
    await server.stop(None)


@pytest.fixture
async def http_address() -> AsyncIterator[str]:
    async def answer(request: web.Request) -> web.Response:
        if request.path == "/hang":
            await asyncio.Event().wait()
        assert await request.read() == b"body"
        assert request.headers["x-test"] == "yes"
        return web.Response(status=int(request.path[1:]))

    app = web.Application()
    app.add_routes([web.post("/{status}", answer)])
    runner = web.AppRunner(app, handler_cancellation=True)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    host, port = runner.addresses[0][:2]
    yield f"http://{host}:{port}"
    await runner.cleanup()


def request(model: str) -> Prepared:
    return Prepared(INFER, pb.ModelInferRequest(model_name=model).SerializeToString())


class Sent:
    """Requests sent by a transport, and how each has ended."""

    def __init__(self, by: Transport) -> None:
        self._transport = by
        self._ended: list[list[str]] = []
        self._more = asyncio.Event()

    def send(self, request: Prepared, timeout: float | None = None) -> None:
        ended: list[str] = []
        self._ended.append(ended)

        def done(status: str) -> None:
            ended.append(status)
            self._more.set()

        self._transport.send(request, timeout, done)
        assert not ended  # never from within

    async def statuses(self) -> list[str]:
        """Of all, once they have ended: each exactly once."""
        while not all(self._ended):
            self._more.clear()
            await self._more.wait()
        assert all(len(ended) == 1 for ended in self._ended)
        return [status for [status] in self._ended]


@pytest.mark.parametrize("name", ["grpcio", "lean"])
async def test_unary(grpc_address: str, name: str) -> None:
    by = transport(Target.model_validate({"address": grpc_address, "transport": name}))
    assert by.name == name
    await by.open()
    sent = Sent(by)
    for model in ("ok", "NOT_FOUND", "RESOURCE_EXHAUSTED", "ok"):
        sent.send(request(model))
    sent.send(request("hang"), 0.05)
    statuses = await sent.statuses()
    assert statuses == ["OK", "NOT_FOUND", "RESOURCE_EXHAUSTED", "OK", "DEADLINE_EXCEEDED"]
    sent.send(request("hang"))
    await asyncio.sleep(0)
    await by.close()
    assert (await sent.statuses())[-1] == "CANCELLED"


async def test_stream(grpc_address: str) -> None:
    by = transport(Target(address=grpc_address, protocol="grpc-stream"))
    await by.open()
    sent = Sent(by)
    sent.send(request("ok"))
    sent.send(request("timeout"), 0.25)
    assert await sent.statuses() == ["OK", "DEADLINE_EXCEEDED"]
    sent.send(request("anonymous"))
    assert (await sent.statuses())[-1] == "UNKNOWN"
    sent.send(request("hang"))
    sent.send(request("break"))
    assert (await sent.statuses())[-2:] == ["UNAVAILABLE", "UNAVAILABLE"]
    sent.send(request("ok"))  # on another call
    assert (await sent.statuses())[-1] == "OK"
    sent.send(request("hang"))
    await by.close()
    assert (await sent.statuses())[-1] == "CANCELLED"


async def test_http(http_address: str) -> None:
    by = transport(Target(address=http_address, protocol="http"))
    await by.open()
    sent = Sent(by)
    headers = (("x-test", "yes"),)
    for status in (200, 503, 204):
        sent.send(Prepared(f"/{status}", b"body", headers))
    sent.send(Prepared("/hang", b"body", headers), 0.05)
    assert await sent.statuses() == ["OK", "HTTP 503", "OK", "DEADLINE_EXCEEDED"]
    sent.send(Prepared("/hang", b"body", headers))
    await asyncio.sleep(0)
    await by.close()
    assert (await sent.statuses())[-1] == "CANCELLED"


@pytest.mark.parametrize("protocol", ["grpc", "http"])
async def test_nobody_listens(protocol: str, unused_tcp_port: int) -> None:
    address = f"127.0.0.1:{unused_tcp_port}"
    by = transport(Target.model_validate({"address": address, "protocol": protocol}))
    with pytest.raises(ConnectionError, match=address):
        await by.open()


async def test_http_is_unavailable_once_the_server_is_gone(unused_tcp_port: int) -> None:
    server = await asyncio.start_server(lambda reader, writer: writer.close(), "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    by = transport(Target(address=f"http://127.0.0.1:{port}", protocol="http"))
    await by.open()
    server.close()
    await server.wait_closed()
    sent = Sent(by)
    sent.send(Prepared("/200", b"body"))
    assert await sent.statuses() == ["UNAVAILABLE"]
    await by.close()
