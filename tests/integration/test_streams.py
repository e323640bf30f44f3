"""Sensor streams through the real server."""

from __future__ import annotations

import pathlib
from collections.abc import AsyncIterator, Iterator
from typing import Any

import grpc
import numpy as np
import onnxruntime as ort
import pytest

from headrace.stream.v1 import stream_pb2 as pb
from support import models, server
from support.server import RunningServer
from support.streaming import StreamCall, array, chunk


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    folder = tmp_path_factory.mktemp("streams")
    repository = folder / "models"
    models.write(repository, "double", models.scaled(2.0))
    models.write(repository, "recurrent", models.recurrent(), toml=models.RECURRENT)
    with server.serving(folder / "server.log", repository) as up:
        up.folder = folder  # type: ignore[attr-defined]
        yield up


@pytest.fixture
async def channel(running: RunningServer) -> AsyncIterator[grpc.aio.Channel]:
    async with grpc.aio.insecure_channel(running.grpc) as made:
        yield made


async def test_a_stream_from_open_to_close(channel: grpc.aio.Channel) -> None:
    signal = np.arange(1000, dtype=np.float32)
    async with StreamCall(channel) as call:
        opened = await call.open(1, model="double", window=100, hop=50)
        assert opened.version == "1"
        assert opened.resume_token == b""
        at = 0
        for size in (1, 99, 300, 250, 350):
            await call.send(chunk(1, at, signal[at : at + size]))
            at += size
        closed = await call.close(1)
        assert (closed.samples, closed.windows, closed.answered) == (1000, 19, 19)
        results = call.of(1, "result")
        assert [event.delivery for event in results] == list(range(1, 20))
        for number, event in enumerate(results):
            result = event.result
            first = number * 50
            assert (result.first_sample, result.end_sample) == (first, first + 100)
            assert (result.start_ns, result.end_ns) == (first * 10**7, (first + 100) * 10**7)
            expected = 2 * signal[first : first + 100]
            np.testing.assert_array_equal(array(result.outputs[0]), expected[None])
        assert await call.end() is grpc.StatusCode.OK
