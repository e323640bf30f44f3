"""The clients' streams against the real server, through a network that breaks."""

from __future__ import annotations

import asyncio
import pathlib
import random
import threading
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest

from headrace.client import (
    AsyncClient,
    AsyncSensorStream,
    Cancelled,
    ChannelOptions,
    Client,
    Gap,
    InvalidInput,
    ModelNotFound,
    RetryPolicy,
    SessionLost,
    Signal,
    StreamEvent,
    StreamSummary,
    Unavailable,
    WindowResult,
)
from support import models, server
from support.proxy import Proxy, ThreadedProxy
from support.server import RunningServer

QUICK = RetryPolicy(initial_backoff=0.01, max_backoff=0.05)
# gRPC's own wait for a lost connection is cut short as well.
SOON = ChannelOptions(arguments={"grpc.initial_reconnect_backoff_ms": 10})


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    made = tmp_path_factory.mktemp("stream-clients")
    repository = made / "models"
    models.write(repository, "double", models.scaled(2.0))
    models.write(repository, "two", models.arithmetic())
    models.write(repository, "recurrent", models.recurrent(), toml=models.RECURRENT)
    return made


@pytest.fixture(scope="module")
def running(folder: pathlib.Path) -> Iterator[RunningServer]:
    with server.serving(folder / "server.log", folder / "models") as up:
        yield up


def pieces(signal: Any, rng: random.Random, largest: int) -> Iterator[Any]:
    at = 0
    while at < len(signal):
        size = rng.randint(1, largest)
        yield signal[at : at + size]
        at += size


class Loop:
    """The recurrent model run by ONNX Runtime alone, over a whole signal at once."""

    def __init__(self, folder: pathlib.Path) -> None:
        self._session = ort.InferenceSession(
            folder / "models/recurrent/1/model.onnx", providers=["CPUExecutionProvider"]
        )

    def __call__(self, signal: Any) -> list[Any]:
        state, answers = np.zeros((2, 1, 3), np.float32), []
        for at in range(0, len(signal) - 3, 4):
            y, state = self._session.run(
                ["y", "stateN"], {"x": signal[None, at : at + 4], "state": state}
            )
            answers.append(y)
        return answers


def check(events: list[StreamEvent], expected: list[Any], summary: StreamSummary | None) -> None:
    assert [e.window for e in events if isinstance(e, WindowResult)] == list(range(len(expected)))
    for event, answer in zip(events, expected, strict=True):
        assert isinstance(event, WindowResult)
        np.testing.assert_allclose(event["y"], answer, rtol=1e-5, atol=1e-6)
    assert summary is not None
    assert summary.answered == summary.windows == len(expected)


async def test_sixty_streams_survive_a_network_that_breaks(
    running: RunningServer, folder: pathlib.Path
) -> None:
    """On one call: sent in pieces, cut again and again, and equal to a loop over each signal."""
    rng = random.Random(1)
    loop = Loop(folder)
    left = 60

    async def stream(client: AsyncClient, number: int) -> int:
        nonlocal left
        own = random.Random(number)
        signal = np.random.default_rng(number).standard_normal(400 + 13 * number).astype(np.float32)

        async def chunks() -> AsyncIterator[Any]:
            for piece in pieces(signal, own, 60):
                yield piece
                await asyncio.sleep(own.random() * 0.02)

        opened = client.stream("recurrent", window=4, sample_rate=100, layout="samples")
        async with opened as s:
            events = [event async for event in s.run(chunks())]
        check(events, loop(signal), s.summary)
        left -= 1
        return s.resumes

    async with (
        Proxy(running.grpc) as proxy,
        AsyncClient(proxy.address, retry=QUICK, channel=SOON) as client,
    ):
        streams = asyncio.gather(*(stream(client, number) for number in range(60)))
        cutter = asyncio.ensure_future(_cut(proxy, rng))
        try:
            resumes = await streams
        finally:
            cutter.cancel()
        assert max(resumes) > 0
        assert left == 0


async def _cut(proxy: Proxy, rng: random.Random) -> None:
    while True:
        await asyncio.sleep(rng.uniform(0.05, 0.2))
        proxy.cut()


def test_threads_share_a_connection_that_breaks(
    running: RunningServer, folder: pathlib.Path
) -> None:
    loop = Loop(folder)

    def stream(client: Client, number: int) -> int:
        own = random.Random(number)
        signal = np.random.default_rng(number).standard_normal(3000 + number).astype(np.float32)
        with client.stream("recurrent", window=4, sample_rate=100, layout="samples") as s:
            events = list(s.run(pieces(signal, own, 40)))
        check(events, loop(signal), s.summary)
        return s.resumes

    done = threading.Event()

    def cut(proxy: ThreadedProxy) -> None:
        rng = random.Random(2)
        while not done.wait(rng.uniform(0.03, 0.15)):
            proxy.cut()

    with (
        ThreadedProxy(running.grpc) as proxy,
        Client(proxy.address, retry=QUICK, channel=SOON) as client,
        ThreadPoolExecutor(9) as pool,
    ):
        cutter = pool.submit(cut, proxy)
        try:
            resumes = list(pool.map(lambda n: stream(client, n), range(8)))
        finally:
            done.set()
        cutter.result()
    assert max(resumes) > 0


def test_sending_and_taking_in_one_thread(running: RunningServer) -> None:
    signal = np.arange(1000, dtype=np.float32)
    with (
        Client(running.grpc) as client,
        client.stream("double", window=100, hop=50, sample_rate=100) as s,
    ):
        assert s.version == "1"
        events: list[StreamEvent] = []
        for at in range(0, 800, 40):
            s.send(signal[at : at + 40])
            events += s.take()
        flushed = s.flush()
        assert (flushed.samples, flushed.windows) == (800, 15)
        s.send(signal[800:], timestamp_ns=10**12)
        s.end()
        events += s
    assert len(events) == 15 + 3
    last = events[-1]
    assert isinstance(last, WindowResult)
    assert (last.window, last.first_sample, last.end_sample) == (17, 900, 1000)
    assert (last.start, last.end) == (1001.0, 1002.0)
    np.testing.assert_array_equal(last["y"], 2 * signal[None, 900:])


def test_several_signals_go_together(running: RunningServer) -> None:
    a, b = np.arange(10, dtype=np.float32), np.ones(10, np.float32)
    signals = {"a": Signal(layout="samples"), "b": Signal()}
    with Client(running.grpc) as client:
        opened = client.stream(
            "two", window=5, sample_rate=10, signals=signals, outputs=["difference"]
        )
        with opened as s:
            events = list(s.run([{"b": b, "a": a}]))
            with pytest.raises(RuntimeError, match="was ended"):
                s.send({"a": a, "b": b})
    got = [event["difference"] for event in events if isinstance(event, WindowResult)]
    np.testing.assert_array_equal(np.concatenate(got), (a - b).reshape(2, 5))
    assert [list(event) for event in events if isinstance(event, WindowResult)] == [
        ["difference"]
    ] * 2


def test_a_flush_behind_many_windows(running: RunningServer) -> None:
    """The server refuses one while too much is outstanding: it is asked for again."""
    signal = np.arange(8_003, dtype=np.float32)
    with (
        Client(running.grpc) as client,
        client.stream("double", window=4, sample_rate=1, tail="pad") as s,
    ):
        for part in (signal[:4001], signal[4001:]):
            s.send(part)
            flushed = s.flush()
        events = s.take()
    assert (flushed.windows, flushed.samples) == (2002, 8003)
    assert [e.window for e in events if isinstance(e, WindowResult)] == list(range(2002))


@pytest.mark.parametrize("how", ["break", "raise", "leave"])
def test_a_loop_that_is_left_with_much_unread(running: RunningServer, how: str) -> None:
    signal = [np.zeros(1000, np.float32)] * 40  # 10,000 windows: more than may wait unread
    left = ValueError("mine")
    caught: BaseException | None = None
    with Client(running.grpc) as client:
        try:
            with client.stream("double", window=4, sample_rate=100) as s:
                for event in s.run(signal):
                    if isinstance(event, WindowResult) and event.window == 10:
                        if how == "raise":
                            raise left
                        if how == "leave":
                            s.leave()
                        break
        except ValueError as error:
            caught = error
    assert caught is (left if how == "raise" else None)


def test_one_array_is_one_chunk(running: RunningServer) -> None:
    with (
        Client(running.grpc) as client,
        client.stream("double", window=4, sample_rate=100) as s,
    ):
        assert len(list(s.run(np.zeros(40, np.float32)))) == 10


def test_results_that_are_large(running: RunningServer) -> None:
    """The server keeps few of them until they are acknowledged."""
    window, count = 131_072, 40
    with (
        Client(running.grpc) as client,
        client.stream("double", window=window, sample_rate=48_000) as s,
    ):
        events = list(s.run(np.full(window, n, np.float32) for n in range(count)))
    assert [event["y"][0, -1] for event in events if isinstance(event, WindowResult)] == [
        2 * n for n in range(count)
    ]


async def test_windows_that_give_way_are_all_reported(running: RunningServer) -> None:
    signal = np.arange(100_000, dtype=np.float32)
    async with (
        AsyncClient(running.grpc) as client,
        client.stream("double", window=10, sample_rate=1000, overload="latest_only") as s,
    ):
        await s.send(signal, timestamp_ns=0)
        flushed = await s.flush()
        events = s.take()
        summary = await s.close()
        events += [event async for event in s]
    covered: list[int] = []
    for event in events:
        if isinstance(event, Gap):
            assert event.reason == "overloaded"
            assert event.end_sample == event.end_window * 10
            covered += range(event.first_window, event.end_window)
        else:
            covered.append(event.window)
            at = event.first_sample
            np.testing.assert_array_equal(event["y"], 2 * signal[None, at : at + 10])
    assert covered == list(range(10_000))
    assert flushed.windows == summary.windows == 10_000
    assert summary.dropped == sum(event.windows for event in events if isinstance(event, Gap)) > 0


async def test_what_cannot_be_opened_says_why(running: RunningServer) -> None:
    async with AsyncClient(running.grpc) as client:
        with pytest.raises(ModelNotFound, match="no model is called 'nothing'"):
            await client.stream("nothing", window=4, sample_rate=1).open()
        with pytest.raises(InvalidInput, match=r"open\.signals\[0\]\.datatype: expected FP32"):
            await client.stream("double", window=4, sample_rate=1, dtype=np.int16).open()
    async with AsyncClient("127.0.0.1:1", retry=QUICK) as client:
        with pytest.raises(Unavailable):
            await client.stream("double", window=4, sample_rate=1).open()


async def test_a_client_that_was_closed_opens_nothing(running: RunningServer) -> None:
    client = AsyncClient(running.grpc)
    stream, later = (client.stream("double", window=4, sample_rate=1) for _ in range(2))
    await stream.open()
    await client.close()
    with pytest.raises(Cancelled, match="the client was closed"):
        await stream.send([1.0])
    with pytest.raises(Cancelled, match="the client was closed"):
        await later.open()
    with pytest.raises(RuntimeError, match="this AsyncClient is closed"):
        client.stream("double", window=4, sample_rate=1)
    blocking = Client(running.grpc)
    opened = blocking.stream("double", window=4, sample_rate=1)
    opened.open()
    blocking.close()
    with pytest.raises(Cancelled, match="the client was closed"):
        opened.send([1.0])


async def test_a_neighbour_is_not_harmed(running: RunningServer) -> None:
    """One leaves in the middle, one never opens, one is not read; the fourth has its results."""
    signal = np.arange(400, dtype=np.float32)
    async with AsyncClient(running.grpc) as client:
        with pytest.raises(ZeroDivisionError):
            await _leave_in_the_middle(client.stream("double", window=4, sample_rate=1), signal)
        with pytest.raises(ModelNotFound):
            await client.stream("nothing", window=4, sample_rate=1).open()
        options = {"window": 4, "sample_rate": 1.0}
        async with client.stream("double", **options, buffer=4000, max_unread=2) as unread:  # type: ignore[arg-type]
            with pytest.raises(RuntimeError, match="none was taken"):
                await unread.send(np.zeros(150_000, np.float32))
            async with client.stream("double", **options) as s:  # type: ignore[arg-type]
                events = [event async for event in s.run([signal])]
            assert len(events) == 100


async def _leave_in_the_middle(stream: AsyncSensorStream, signal: Any) -> None:
    async with stream:
        await stream.send(signal)
        raise ZeroDivisionError


async def test_a_session_that_may_not_outlive_its_connection(running: RunningServer) -> None:
    async with (
        Proxy(running.grpc) as proxy,
        AsyncClient(proxy.address, retry=QUICK) as client,
        client.stream("double", window=4, sample_rate=1, ttl=0.0) as s,
    ):
        await s.send(np.ones(4, np.float32))
        assert isinstance(await anext(s), WindowResult)
        proxy.cut()
        with pytest.raises(SessionLost):
            await anext(s)


def test_a_server_that_stops_says_what_it_took(
    folder: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    with (
        server.serving(tmp_path / "log", folder / "models") as up,
        Client(up.grpc, retry=QUICK) as client,
        client.stream("double", window=100, sample_rate=100) as s,
    ):
        s.send(np.zeros(250, np.float32))
        s.flush()
        up.terminate()
        assert [e.window for e in s.take() if not isinstance(e, Gap)] == [0, 1]
        with pytest.raises(Unavailable, match="it received 250 samples of 250"):
            next(s)
        assert up.wait() == 0
