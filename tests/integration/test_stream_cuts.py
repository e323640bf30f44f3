"""Sensor streams over a network that breaks at any byte."""

from __future__ import annotations

import asyncio
import contextlib
import pathlib
from typing import Any

import grpc
import numpy as np
import pytest

from headrace.stream.v1 import stream_pb2 as pb
from support import models, server
from support.streaming import (
    PATIENCE,
    WIDTH,
    StreamCall,
    array,
    chunk,
    noise,
    opening,
    recurrent_loop,
)


class Cutter:
    """A proxy in front of the server that breaks each connection after some bytes, either way."""

    def __init__(self, address: str) -> None:
        self._host, _, port = address.rpartition(":")
        self._port = int(port)
        self._left = 0
        self._writers: list[asyncio.StreamWriter] = []
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self) -> str:
        self._server = await asyncio.start_server(self._connected, "127.0.0.1", 0)
        return f"127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    def allow(self, count: int) -> None:
        """So many bytes pass until everything breaks."""
        self._left = count

    async def close(self) -> None:
        self._server.close()
        self._break()
        if self._tasks:
            await asyncio.wait(self._tasks)
        await self._server.wait_closed()

    def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.get_running_loop().create_task(self._carry(reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        far_reader, far_writer = await asyncio.open_connection(self._host, self._port)
        self._writers += [writer, far_writer]
        async with asyncio.TaskGroup() as group:
            group.create_task(self._pipe(reader, far_writer))
            group.create_task(self._pipe(far_reader, writer))

    async def _pipe(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(1 << 16):
                part = data[: self._left]
                self._left -= len(part)
                writer.write(part)
                if len(part) < len(data):
                    break
                await writer.drain()
        except ConnectionError:
            pass
        self._break()

    def _break(self) -> None:
        for writer in self._writers:
            writer.transport.abort()
        self._writers.clear()


# How a call tells that its connection is gone.
BROKEN = (grpc.aio.AioRpcError, asyncio.InvalidStateError, ConnectionError)
# A broken connection of one channel must not be the next one's too.
NO_SHARING = [("grpc.use_local_subchannel_pool", 1)]


class Resuming:
    """A client that keeps to the rules, over as many connections as it takes."""

    def __init__(self, signal: Any, rng: np.random.Generator) -> None:
        self._signal = signal
        self._rng = rng
        self._opened: pb.Opened | None = None
        self._delivery = 0
        self.results: dict[int, Any] = {}
        self.closed = False

    async def connect(self, channel: grpc.aio.Channel) -> None:
        """One connection, until it breaks or all is done."""
        async with StreamCall(channel) as call:
            with contextlib.suppress(*BROKEN):
                await self._talk(call)
        for event in call.events.get(1, []):
            if event.delivery > self._delivery:
                assert event.delivery == self._delivery + 1
                self._delivery = event.delivery
                assert not event.HasField("gap")
                if event.HasField("result"):
                    self.results[event.result.window] = array(event.result.outputs[0])
                self.closed = self.closed or event.HasField("closed")
            if event.HasField("opened"):
                self._opened = event.opened

    async def _talk(self, call: StreamCall) -> None:
        if self._opened is None:
            asked = opening("recurrent", WIDTH, ttl_ms=60_000)
            sequence, closing = 0, False
            await call.send(pb.Command(handle=1, open=asked))
            up_to = (await call.wait_for(1, "opened")).opened.up_to_sample
        else:
            resume = pb.Resume(
                session_id=self._opened.session_id,
                resume_token=self._opened.resume_token,
                delivery=self._delivery,
            )
            await call.send(pb.Command(handle=1, resume=resume))
            resumed = (await call.wait_for(1, "resumed")).resumed
            sequence, up_to, closing = resumed.next_sequence, resumed.up_to_sample, resumed.closing
        credits_ = 0
        while sequence < len(self._signal) and not closing:
            size = min(int(self._rng.integers(1, 600)), len(self._signal) - sequence)
            while up_to < sequence + size:
                credits_ += 1
                await self._ack(call)
                up_to = (await call.wait_for(1, "credit", credits_)).credit.up_to_sample
            await call.send(chunk(1, sequence, self._signal[sequence : sequence + size]))
            sequence += size
            await self._ack(call)
        if not closing:
            await call.send(pb.Command(handle=1, close=pb.Close()))
        while not call.of(1, "closed"):
            seen = len(call.events.get(1, []))
            await self._ack(call)
            await call.more(1, seen)

    async def _ack(self, call: StreamCall) -> None:
        last = max((event.delivery for event in call.events.get(1, [])), default=0)
        if last:
            await call.send(pb.Command(handle=1, ack=pb.Ack(delivery=last)))


@pytest.mark.parametrize("seed", range(3))
async def test_nothing_is_lost_by_a_network_that_breaks(tmp_path: pathlib.Path, seed: int) -> None:
    """Any byte of any message can be the last; the signal is long enough for dozens of breaks."""
    rng = np.random.default_rng(seed)
    signal = noise(seed, 20_003)
    repository = tmp_path / "models"
    models.write(repository, "recurrent", models.recurrent(), toml=models.RECURRENT)
    expected = recurrent_loop(repository, signal)
    with server.serving(tmp_path / "server.log", repository) as up:
        results, breaks = await listen(up.grpc, signal, rng)
    assert breaks > 10
    assert list(results) == list(range(len(expected)))
    for window, loop in enumerate(expected):
        np.testing.assert_allclose(results[window], loop, atol=1e-5)


async def listen(
    server_address: str, signal: Any, rng: np.random.Generator
) -> tuple[dict[int, Any], int]:
    """Streams `signal` through a proxy that breaks. Returns the results and how often it broke."""
    cutter = Cutter(server_address)
    address = await cutter.start()
    client = Resuming(signal, rng)
    breaks = 0
    try:
        async with asyncio.timeout(PATIENCE):
            while not client.closed:
                cutter.allow(int(rng.integers(3_000, 40_000)) if breaks < 25 else 1 << 30)
                async with grpc.aio.insecure_channel(address, options=NO_SHARING) as channel:
                    await client.connect(channel)
                breaks += 1
    finally:
        await cutter.close()
    return client.results, breaks
