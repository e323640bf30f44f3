"""A bare client of headrace.stream.v1 for tests: it sends what it is told, and keeps what comes."""

from __future__ import annotations

import asyncio
import pathlib
from dataclasses import dataclass
from typing import Any, Self

import grpc
import numpy as np
import onnxruntime as ort

from headrace.inference.tensors import DATATYPES, decode_raw
from headrace.stream.v1 import stream_pb2 as pb
from headrace.stream.v1.stream_pb2_grpc import SensorStreamStub
from support.server import RunningServer

PATIENCE = 60.0
WIDTH = 4  # of the recurrent model


@dataclass(frozen=True)
class Running:
    """A server, and the folder of its models."""

    server: RunningServer
    repository: pathlib.Path


class StreamCall:
    """One call. Events are kept by handle, in the order in which they came. While `reading` is
    cleared, nothing is taken from the transport."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self.reading = asyncio.Event()
        self.reading.set()
        self.call: Any = SensorStreamStub(channel).Stream()
        self.events: dict[int, list[pb.Event]] = {}
        self._news = asyncio.Condition()
        self.over = False
        self._reader = asyncio.get_running_loop().create_task(self._read())

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.cut()
        await asyncio.wait([self._reader])
        # What is told of the end is told before gRPC's own task for it has ended.
        await asyncio.sleep(0.01)

    def cut(self) -> None:
        """As a network does it: neither side is asked."""
        self.call.cancel()
        self.reading.set()

    async def end(self) -> grpc.StatusCode:
        """Ends the client's side. Returns the status of the call."""
        await self.call.done_writing()
        await asyncio.wait_for(asyncio.wait([self._reader]), PATIENCE)
        code: grpc.StatusCode = await self.call.code()
        return code

    async def _read(self) -> None:
        try:
            async for response in self.call:
                for event in response.events:
                    self.events.setdefault(event.handle, []).append(event)
                async with self._news:
                    self._news.notify_all()
                await self.reading.wait()
        except (grpc.aio.AioRpcError, asyncio.CancelledError):
            pass  # the server has ended the call, or the test has cut it
        finally:
            self.over = True
            async with self._news:
                self._news.notify_all()

    async def send(self, *commands: pb.Command) -> None:
        await self.call.write(pb.StreamRequest(commands=commands))

    async def wait_for(self, handle: int, kind: str, count: int = 1) -> pb.Event:
        """The `count`-th event of a kind."""

        def found() -> pb.Event | None:
            events = self.of(handle, kind)
            return events[count - 1] if len(events) >= count else None

        async with asyncio.timeout(PATIENCE), self._news:
            while (event := found()) is None:
                if self.over:
                    raise ConnectionError(f"the call is over, and no {kind} has come")
                await self._news.wait()
        return event

    async def more(self, handle: int, seen: int) -> None:
        """Until there are more than `seen` events for a handle."""
        async with asyncio.timeout(PATIENCE), self._news:
            while len(self.events.get(handle, [])) <= seen:
                if self.over:
                    raise ConnectionError("the call is over")
                await self._news.wait()

    async def first(self, handle: int) -> pb.Event:
        """The first event for a handle."""
        async with asyncio.timeout(PATIENCE), self._news:
            while not self.events.get(handle):
                await self._news.wait()
        return self.events[handle][0]

    def of(self, handle: int, kind: str) -> list[pb.Event]:
        return [e for e in self.events.get(handle, []) if e.WhichOneof("event") == kind]

    async def open(self, handle: int, **fields: Any) -> pb.Opened:
        await self.send(pb.Command(handle=handle, open=opening(**fields)))
        return (await self.wait_for(handle, "opened")).opened

    async def close(self, handle: int) -> pb.Closed:
        await self.send(pb.Command(handle=handle, close=pb.Close()))
        return (await self.wait_for(handle, "closed")).closed


def opening(model: str, window: int, **fields: Any) -> pb.Open:
    """Open, for one signal of one channel unless `signals` are given."""
    given = {"sample_rate_hz": 100.0, "signals": [pb.Signal()], **fields}
    return pb.Open(model=model, window=window, **given)


def chunk(handle: int, sequence: int, *signals: Any, timestamp: int | None = None) -> pb.Command:
    data = [np.ascontiguousarray(signal).tobytes() for signal in signals]
    return pb.Command(
        handle=handle, chunk=pb.Chunk(sequence=sequence, data=data, timestamp_ns=timestamp)
    )


def array(tensor: pb.Tensor) -> Any:
    return decode_raw(tensor.data, DATATYPES[tensor.datatype], list(tensor.shape))


def direct(repository: pathlib.Path, name: str) -> ort.InferenceSession:
    return ort.InferenceSession(repository / name / "1" / "model.onnx")


def recurrent_loop(repository: pathlib.Path, signal: Any) -> list[Any]:
    """The answers to windows of WIDTH samples, one run after the other."""
    session = direct(repository, "recurrent")
    state = np.zeros((2, 1, 3), np.float32)
    answers = []
    for at in range(0, len(signal) - WIDTH + 1, WIDTH):
        feeds = {"x": signal[None, at : at + WIDTH], "state": state}
        y, state = session.run(["y", "stateN"], feeds)
        answers.append(y)
    return answers


def noise(seed: int, count: int) -> Any:
    return np.random.default_rng(seed).standard_normal(count).astype(np.float32)


def outputs(call: StreamCall, handle: int) -> list[Any]:
    return [array(event.result.outputs[0]) for event in call.of(handle, "result")]


def reasons(call: StreamCall, handle: int) -> list[str]:
    return [event.error.reason for event in call.of(handle, "error")]
