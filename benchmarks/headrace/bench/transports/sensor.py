"""Sensor streams (headrace.stream.v1): sessions that send samples and count the windows' answers.

The sessions are those of the Python client, driven by callbacks instead of tasks: its state machine
says what to send, its connection carries many of them on one call.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import grpc
import numpy as np

from headrace.bench.transports import OK, Done, Prepared
from headrace.bench.transports.channel import connected
from headrace.client.errors import HeadraceError
from headrace.client.retry import RetryPolicy
from headrace.client.stream_aio import AsyncStreamConnection
from headrace.client.stream_inbox import StreamEvent
from headrace.client.stream_options import Framing, StreamOptions
from headrace.client.stream_results import Gap, GapReason
from headrace.client.stream_upload import Plan, Upload
from headrace.inference.tensors import Array
from headrace.stream.v1.stream_pb2_grpc import SensorStreamStub

_SESSIONS_OF_A_CALL = 1000
_STATUS: dict[GapReason, str] = {
    "overloaded": "RESOURCE_EXHAUSTED",
    "late": "DEADLINE_EXCEEDED",
    "failed": "INTERNAL",
    "unavailable": "UNAVAILABLE",
    "stopping": "UNAVAILABLE",
    "unspecified": "UNKNOWN",
}


@dataclass(frozen=True)
class Stream:
    """How sessions of one request are opened, and what they send: `signal` [samples, channels],
    again and again. `deadline` in seconds from when a window's last sample was due."""

    model: str
    framing: Framing
    options: StreamOptions
    signal: Array
    deadline: float | None = None


class SensorTransport:
    """Sessions, up to a thousand on each call; all calls on one connection."""

    name = "grpcio, sensor streams"

    def __init__(self, address: str) -> None:
        self._address = address
        self._channel: grpc.aio.Channel | None = None
        self._connections: list[AsyncStreamConnection] = []
        self._sessions = 0

    async def open(self) -> None:
        self._channel = await connected(self._address)

    def send(self, request: Prepared, timeout: float | None, done: Done) -> None:
        """There is no single request: it ends as UNIMPLEMENTED. See `session`."""
        asyncio.get_running_loop().call_soon(done, "UNIMPLEMENTED")

    def session(self, stream: Stream) -> SensorSession:
        """A new session, which is being opened."""
        if self._sessions % _SESSIONS_OF_A_CALL == 0:
            assert self._channel is not None, "open() comes first"
            stub = SensorStreamStub(self._channel)
            once = RetryPolicy(max_attempts=1)
            self._connections.append(AsyncStreamConnection(lambda: stub.Stream(), once))
        self._sessions += 1
        return SensorSession(self._connections[-1], stream)

    async def close(self) -> None:
        await asyncio.gather(*(connection.close() for connection in self._connections))
        if self._channel is not None:
            await self._channel.close()


class SensorSession:
    """One session. Windows are answered in order, so those that wait are a queue."""

    def __init__(self, connection: AsyncStreamConnection, stream: Stream) -> None:
        self._connection = connection
        self._plan = Plan(stream.model, stream.framing, stream.options)
        self._session = self._plan.session()
        self._session.wake = self._look
        self._stream = stream
        self._position = 0
        self._uploads: deque[Upload] = deque()
        self._windows: deque[Done] = deque()
        self._open: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        connection.add(self._session)

    async def opened(self) -> None:
        """Returns when the server has opened the session; raises ConnectionError when it won't."""
        await self._open

    def send(self, count: int, windows: Sequence[Done]) -> None:
        """Sends the next `count` samples, in which `windows` end; each is called with how it was
        answered. What there is no credit for waits here."""
        signal = self._stream.signal
        samples = np.take(signal, range(self._position, self._position + count), 0, mode="wrap")
        self._position = (self._position + count) % len(signal)
        self._windows.extend(windows)
        try:
            self._uploads.append(self._plan.upload(self._session, samples, None))
        except HeadraceError:
            self._look_later()
            return
        self._advance()

    def _advance(self) -> None:
        try:
            while self._uploads and self._uploads[0].advance():
                self._uploads.popleft()
        except HeadraceError as error:
            self._fail(error)
        self._connection.touch(self._session)

    def _look_later(self) -> None:
        asyncio.get_running_loop().call_soon(self._look)

    def _look(self) -> None:
        """Takes what has come."""
        try:
            if not self._open.done() and self._session.is_open():
                self._open.set_result(None)
            for event in self._session.take():
                self._answer(event)
        except HeadraceError as error:
            self._fail(error)
        else:
            self._advance()

    def _answer(self, event: StreamEvent) -> None:
        if isinstance(event, Gap):
            for _ in range(event.windows):
                self._windows.popleft()(_STATUS[event.reason])
        else:
            self._windows.popleft()(OK)

    def _fail(self, error: HeadraceError) -> None:
        self._uploads.clear()
        if not self._open.done():
            told = f"model {self._stream.model!r}: {error}"
            self._open.set_exception(ConnectionError(told))
        while self._windows:
            self._windows.popleft()(error.code.name)
