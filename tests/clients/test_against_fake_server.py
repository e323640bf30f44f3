"""Both clients against a real gRPC server on a local port that does what each test tells it."""

from __future__ import annotations

import asyncio
import math
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing, closing

import grpc
import pytest

from clients.fake_server import LONG, Either, FakeServer, X, fail
from headrace.client import (
    AsyncClient,
    Client,
    DeadlineExceeded,
    InferOptions,
    InvalidInput,
    ModelNotFound,
    Overloaded,
    StreamAnswer,
    StreamRequest,
    Unavailable,
    Unimplemented,
)


async def test_infer_there_and_back(client: Either, server: FakeServer) -> None:
    result = await client.infer(request_id="7", headers={"tenant": "a"})
    assert result["x"].tolist() == X.tolist()
    assert result.id == "7"
    assert server.metadata[0]["who"] == "me"
    assert server.metadata[0]["tenant"] == "a"


async def test_keywords_win_over_the_options_object(client: Either, server: FakeServer) -> None:
    await client.infer(options=InferOptions(version="1", request_id="a"), request_id="b")
    assert (server.requests[0].model_version, server.requests[0].id) == ("1", "b")


async def test_questions_about_models(client: Either) -> None:
    assert await client.call("model_ready", "m", "2", deadline=LONG) is True
    assert await client.call("model_ready", "m") is False
    (index,) = await client.call("repository_index", ready=True)
    assert (index.name, index.state) == ("m", "READY")
    assert await client.call("load_model", "m") is None
    with pytest.raises(ModelNotFound, match="no such model"):
        await client.call("load_model", "n")
    with pytest.raises(Unimplemented):
        await client.call("server_live")


async def test_unavailable_is_tried_again(client: Either, server: FakeServer) -> None:
    server.scripts = [fail(grpc.StatusCode.UNAVAILABLE)] * 3
    assert (await client.infer())["x"].tolist() == X.tolist()
    assert len(server.requests) == 4


async def test_unavailable_is_raised_after_the_last_attempt(
    client: Either, server: FakeServer
) -> None:
    server.scripts = [fail(grpc.StatusCode.UNAVAILABLE)] * 4
    with pytest.raises(Unavailable) as raised:
        await client.infer()
    assert len(server.requests) == 4
    assert isinstance(raised.value.__cause__, grpc.RpcError)


async def test_one_deadline_covers_all_attempts(client: Either, server: FakeServer) -> None:
    server.scripts = [fail(grpc.StatusCode.RESOURCE_EXHAUSTED, retry_after_ms=300)]
    await client.infer(deadline=9.0)
    _, second = server.remaining
    assert second is not None
    # gRPC rounds a deadline of this size up by 10 ms on its way; 300 ms have certainly been spent.
    assert second <= 9.0 - 0.3 + 0.05


async def test_overloaded_is_tried_again_when_told_to(client: Either, server: FakeServer) -> None:
    server.scripts = [fail(grpc.StatusCode.RESOURCE_EXHAUSTED, retry_after_ms=1)]
    await client.infer()
    assert len(server.requests) == 2


async def test_overloaded_is_raised_at_once_when_not_told_to(
    client: Either, server: FakeServer
) -> None:
    server.scripts = [fail(grpc.StatusCode.RESOURCE_EXHAUSTED)]
    with pytest.raises(Overloaded):
        await client.infer()
    assert len(server.requests) == 1


async def test_a_delay_beyond_the_deadline_is_not_waited_for(
    client: Either, server: FakeServer
) -> None:
    server.scripts = [fail(grpc.StatusCode.RESOURCE_EXHAUSTED, retry_after_ms=3_600_000)]
    with pytest.raises(Overloaded) as raised:
        await client.infer()
    assert len(server.requests) == 1
    assert raised.value.retry_after == 3600
    assert raised.value.reason == "OVERLOADED"
    assert raised.value.details == "no"


async def test_a_sequence_is_not_tried_again(client: Either, server: FakeServer) -> None:
    server.scripts = [fail(grpc.StatusCode.UNAVAILABLE)]
    with pytest.raises(Unavailable):
        await client.infer(parameters={"sequence_id": 1})
    assert len(server.requests) == 1


async def test_other_errors_are_not_tried_again(client: Either, server: FakeServer) -> None:
    server.scripts = [fail(grpc.StatusCode.INVALID_ARGUMENT)]
    with pytest.raises(InvalidInput):
        await client.infer()
    assert len(server.requests) == 1


async def test_a_deadline_that_passes(client: Either, server: FakeServer) -> None:
    server.scripts = [server.hang]
    with pytest.raises(DeadlineExceeded):
        await client.infer(deadline=0.05)


async def test_cancelling_a_task_cancels_the_call(server: FakeServer) -> None:
    server.scripts = [server.hang]
    async with AsyncClient(server.address) as client:
        task = asyncio.create_task(client.infer("m", {"x": X}, deadline=LONG))
        await asyncio.to_thread(server.waiting.wait, LONG)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert await asyncio.to_thread(server.cancelled.wait, LONG)


def requests(*models: str) -> Iterator[StreamRequest]:
    return (StreamRequest(model, {"x": X}) for model in models)


async def test_a_stream_outlives_the_errors_of_its_requests(client: Either) -> None:
    answers: list[StreamAnswer] = []
    await client.stream(requests("a", "full", "b"), answers)
    assert [answer.id for answer in answers] == ["#0", "#1", "#2"]
    assert answers[0].unwrap().model == "a"
    assert answers[2].unwrap()["x"].tolist() == X.tolist()
    error = answers[1].error
    assert isinstance(error, Overloaded)
    assert (error.reason, error.retry_after) == ("OVERLOADED", 0.25)


async def test_a_stream_that_the_server_ends_raises(client: Either) -> None:
    answers: list[StreamAnswer] = []
    with pytest.raises(Unavailable, match=r"draining|gRPC lost the reason"):
        await client.stream(requests("a", "abort", "b"), answers)
    assert [answer.id for answer in answers] == ["#0"]


async def test_what_the_requests_raise_comes_after_the_answers(client: Either) -> None:
    def broken() -> Iterator[StreamRequest]:
        yield from requests("a")
        raise KeyError("the caller's own")

    answers: list[StreamAnswer] = []
    with pytest.raises(KeyError, match="the caller's own"):
        await client.stream(broken(), answers)
    assert [answer.id for answer in answers] == ["#0"]


async def test_a_streams_deadline(client: Either) -> None:
    answers: list[StreamAnswer] = []
    with pytest.raises(DeadlineExceeded):
        await client.stream(requests("hang"), answers, deadline=0.05)
    assert answers == []


async def test_a_streams_deadline_that_is_over_or_no_time(client: Either) -> None:
    for deadline, error in ((-1.0, DeadlineExceeded), (0.0, DeadlineExceeded), ("1", TypeError)):
        with pytest.raises(error, match="deadline"):
            await client.stream(requests("a"), [], deadline=deadline)
    answers: list[StreamAnswer] = []
    await client.stream(requests("a"), answers, deadline=math.inf)
    assert [answer.id for answer in answers] == ["#0"]


async def test_a_mistyped_option_is_named_as_the_methods(client: Either) -> None:
    for method, given in (("infer", {"dead_line": 1}), ("stream", {"overlap": 2})):
        (name,) = given
        arguments = {"infer": ("m", {"x": X}), "stream": ("m",)}[method]
        more = {} if method == "infer" else {"window": 4, "sample_rate": 1.0}
        with pytest.raises(TypeError, match=rf"^{method}\(\) .*'{name}'; options are "):
            await client.call(method, *arguments, **more, **given)


async def test_an_async_iterable_that_waits_ends_with_its_stream(server: FakeServer) -> None:
    ended = asyncio.Event()

    async def live() -> AsyncIterator[StreamRequest]:
        try:
            for request in requests("a", "abort"):
                yield request
            await asyncio.Event().wait()
        finally:
            ended.set()

    async with AsyncClient(server.address) as client:
        with pytest.raises(Unavailable):
            [answer async for answer in client.infer_stream(live())]
        assert ended.is_set()


async def test_leaving_an_async_stream_cancels_it(server: FakeServer) -> None:
    async def live() -> AsyncIterator[StreamRequest]:
        for request in requests("a"):
            yield request
        await asyncio.Event().wait()

    async with AsyncClient(server.address) as client:
        async with aclosing(client.infer_stream(live())) as answers:
            assert (await anext(answers)).id == "#0"
        assert await asyncio.to_thread(server.cancelled.wait, LONG)


def test_leaving_a_sync_stream_cancels_it(server: FakeServer) -> None:
    hold = threading.Event()

    def live() -> Iterator[StreamRequest]:
        yield from requests("a")
        hold.wait(LONG)

    with Client(server.address) as client:
        with closing(client.infer_stream(live())) as answers:
            assert next(answers).id == "#0"
        assert server.cancelled.wait(LONG)
        hold.set()
