"""The lean client of the load generator against grpcio's server."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest

from headrace.bench.transports import Prepared
from headrace.bench.transports.lean import Lean

PATH = "/test.Echo/Call"


class Echo(grpc.GenericRpcHandler):
    """Answers with the request, or as its first bytes say: a status, silence, or much."""

    address: str
    server: grpc.aio.Server

    def __init__(self) -> None:
        self.seen: list[bytes] = []
        self.deadlines: list[float | None] = []
        self.called = asyncio.Condition()

    def service(self, details: Any) -> Any:
        if details.method != PATH:
            return None
        return grpc.unary_unary_rpc_method_handler(self.call)

    async def call(self, message: bytes, context: Any) -> bytes:
        self.seen.append(bytes(message))
        self.deadlines.append(context.time_remaining())
        async with self.called:
            self.called.notify_all()
        if message.startswith(b"status:"):
            name = message.removeprefix(b"status:").decode()
            await context.abort(grpc.StatusCode[name], "as was asked")
        if message == b"hang":
            await asyncio.sleep(60)
        if message.startswith(b"much:"):
            return bytes(int(message.removeprefix(b"much:")))
        return message

    async def until(self, calls: int) -> None:
        async with self.called:
            await self.called.wait_for(lambda: len(self.seen) >= calls)


@pytest.fixture
async def echo() -> AsyncIterator[Echo]:
    handler = Echo()
    options = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
    server = grpc.aio.server(options=options)
    server.add_generic_rpc_handlers([handler])
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    handler.address, handler.server = f"127.0.0.1:{port}", server
    yield handler
    await server.stop(0)


@pytest.fixture
async def lean(echo: Echo) -> AsyncIterator[Lean]:
    client = Lean(echo.address)
    await client.open()
    yield client
    await client.close()


async def call(client: Lean, body: bytes, timeout: float | None = None, path: str = PATH) -> str:
    done: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    client.send(Prepared(path, body), timeout, done.set_result)
    return await done


async def test_a_call_arrives_and_is_answered(lean: Lean, echo: Echo) -> None:
    assert await call(lean, b"hello") == "OK"
    assert echo.seen == [b"hello"]


@pytest.mark.parametrize("name", [s.name for s in grpc.StatusCode if s.name != "OK"])
async def test_every_status_is_told_by_name(lean: Lean, name: str) -> None:
    assert await call(lean, b"status:" + name.encode()) == name


async def test_an_unknown_method_is_unimplemented(lean: Lean) -> None:
    assert await call(lean, b"x", path="/test.Echo/Other") == "UNIMPLEMENTED"


@pytest.mark.parametrize("size", [0, 1, 16379, 16380, 65530, 65531, 3_000_000])
async def test_messages_of_any_size_go_and_come(lean: Lean, echo: Echo, size: int) -> None:
    body = bytes(range(256)) * (size // 256) + bytes(size % 256)
    assert await call(lean, body) == "OK"
    assert echo.seen == [body]


async def test_many_large_answers_pass_the_connections_window(lean: Lean) -> None:
    size = b"much:4000000"
    assert set(await asyncio.gather(*(call(lean, size) for _ in range(20)))) == {"OK"}


async def test_large_and_small_calls_mix(lean: Lean, echo: Echo) -> None:
    bodies = [bytes([i]) * (1 if i % 2 else 500_000) for i in range(30)]
    assert set(await asyncio.gather(*(call(lean, body) for body in bodies))) == {"OK"}
    assert Counter(echo.seen) == Counter(bodies)


async def test_a_deadline_is_told_and_kept(lean: Lean, echo: Echo) -> None:
    assert await call(lean, b"x", timeout=30) == "OK"
    assert 25 < (echo.deadlines[0] or 0) <= 30.1
    assert await call(lean, b"hang", timeout=0.05) == "DEADLINE_EXCEEDED"
    assert await call(lean, b"x", timeout=0) == "DEADLINE_EXCEEDED"
    assert await call(lean, b"after") == "OK"


async def test_ten_thousand_calls_on_one_connection(lean: Lean) -> None:
    left, statuses = 10_000, Counter[str]()
    ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def done(status: str) -> None:
        nonlocal left
        statuses[status] += 1
        left -= 1
        if left >= 64:
            lean.send(Prepared(PATH, b"x"), None, done)
        elif not left:
            ended.set_result(None)

    for _ in range(64):
        lean.send(Prepared(PATH, b"x"), None, done)
    await ended
    assert statuses == {"OK": 10_000}


async def test_nobody_listening_names_the_address(unused_tcp_port: int) -> None:
    client = Lean(f"127.0.0.1:{unused_tcp_port}")
    with pytest.raises(ConnectionError, match=str(unused_tcp_port)):
        await client.open()


async def test_a_server_that_goes_fails_its_calls_and_is_found_again(
    lean: Lean, echo: Echo
) -> None:
    calls = [asyncio.ensure_future(call(lean, b"hang")) for _ in range(5)]
    await echo.until(5)
    await echo.server.stop(0)
    assert set(await asyncio.gather(*calls)) <= {"UNAVAILABLE", "CANCELLED"}
    assert await call(lean, b"x") == "UNAVAILABLE"
    again = grpc.aio.server()
    again.add_generic_rpc_handlers([echo])
    again.add_insecure_port(echo.address)
    await again.start()
    while await call(lean, b"x") != "OK":  # noqa: ASYNC110 - the client tries again by itself
        await asyncio.sleep(0.02)
    await again.stop(0)


async def test_closing_ends_what_is_in_flight(echo: Echo) -> None:
    client = Lean(echo.address)
    await client.open()
    waiting = asyncio.ensure_future(call(client, b"hang"))
    await echo.until(1)
    await client.close()
    assert await waiting == "CANCELLED"
