"""The lean client of the load generator against grpcio's server."""

import asyncio
from collections import Counter

import grpc
import pytest

from headrace.bench.transports import Prepared
from headrace.bench.transports.lean import Lean

PATH = "/test.Echo/Call"


class Echo(grpc.GenericRpcHandler):
    """Answers with the request, or as its first bytes say: a status, silence, or much."""

    def __init__(self):
        self.seen = []
        self.deadlines = []
        self.called = asyncio.Condition()

    def service(self, details):
        if details.method != PATH:
            return None
        return grpc.unary_unary_rpc_method_handler(self.call)

    async def call(self, message, context):
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

    async def until(self, calls):
        async with self.called:
            await self.called.wait_for(lambda: len(self.seen) >= calls)


@pytest.fixture
async def echo():
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
async def lean(echo):
    client = Lean(echo.address)
    await client.open()
    yield client
    await client.close()


async def call(client, body, timeout=None, path=PATH, headers=()):
    done = asyncio.get_running_loop().create_future()
    client.send(Prepared(path, body, headers), timeout, done.set_result)
    return await done


async def test_a_call_arrives_and_is_answered(lean, echo):
    assert await call(lean, b"hello") == "OK"
    assert echo.seen == [b"hello"]


@pytest.mark.parametrize("name", [s.name for s in grpc.StatusCode if s.name != "OK"])
async def test_every_status_is_told_by_name(lean, name):
    assert await call(lean, b"status:" + name.encode()) == name


async def test_an_unknown_method_is_unimplemented(lean):
    assert await call(lean, b"x", path="/test.Echo/Other") == "UNIMPLEMENTED"


@pytest.mark.parametrize("size", [0, 1, 16379, 16380, 65530, 65531, 3_000_000])
async def test_messages_of_any_size_go_and_come(lean, echo, size):
    body = bytes(range(256)) * (size // 256) + bytes(size % 256)
    assert await call(lean, body) == "OK"
    assert echo.seen == [body]


async def test_many_large_answers_pass_the_connections_window(lean):
    size = b"much:4000000"
    assert set(await asyncio.gather(*(call(lean, size) for _ in range(20)))) == {"OK"}


async def test_large_and_small_calls_mix(lean, echo):
    bodies = [bytes([i]) * (1 if i % 2 else 500_000) for i in range(30)]
    assert set(await asyncio.gather(*(call(lean, body) for body in bodies))) == {"OK"}
    assert Counter(echo.seen) == Counter(bodies)


async def test_a_deadline_is_told_and_kept(lean, echo):
    assert await call(lean, b"x", timeout=30) == "OK"
    assert 25 < echo.deadlines[0] <= 30.1
    assert await call(lean, b"hang", timeout=0.05) == "DEADLINE_EXCEEDED"
    assert await call(lean, b"x", timeout=0) == "DEADLINE_EXCEEDED"
    assert await call(lean, b"after") == "OK"


async def test_ten_thousand_calls_on_one_connection(lean):
    left, statuses = 10_000, Counter()
    ended = asyncio.get_running_loop().create_future()

    def done(status):
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


async def test_nobody_listening_names_the_address(unused_tcp_port):
    client = Lean(f"127.0.0.1:{unused_tcp_port}")
    with pytest.raises(ConnectionError, match=str(unused_tcp_port)):
        await client.open()


async def test_a_server_that_goes_fails_its_calls_and_is_found_again(lean, echo):
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


async def test_closing_ends_what_is_in_flight(echo):
    client = Lean(echo.address)
    await client.open()
    waiting = asyncio.ensure_future(call(client, b"hang"))
    await echo.until(1)
    await client.close()
    assert await waiting == "CANCELLED"
