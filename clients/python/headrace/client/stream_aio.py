"""Sensor streams for asyncio: the connection that carries a client's sessions, and one stream."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncGenerator, AsyncIterable, Callable, Iterable
from types import TracebackType
from typing import Self, TypeVar

import grpc

from headrace.client.errors import HeadraceError, Unavailable, from_rpc_error
from headrace.client.messages import Kept
from headrace.client.retry import RetryPolicy, next_wait
from headrace.client.stream_inbox import StreamEvent
from headrace.client.stream_link import StreamLink, client_closed
from headrace.client.stream_results import Flushed, StreamSummary
from headrace.client.stream_samples import Samples, as_chunks
from headrace.client.stream_session import Session
from headrace.client.stream_upload import Plan, StreamFacts
from headrace.stream.v1 import stream_pb2 as pb

T = TypeVar("T")
# Seconds for the last words to a server when a client is closed.
_FAREWELL = 1.0
Call = grpc.aio.StreamStreamCall[pb.StreamRequest, pb.StreamResponse]


class AsyncStreamConnection:
    """One call for all sessions of a client, made again when it breaks. `call` makes one."""

    def __init__(self, call: Callable[[], Call], policy: RetryPolicy) -> None:
        self.policy = policy
        self._call = call
        self._link = StreamLink(policy)
        self._work = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._closed = False

    def add(self, session: Session) -> None:
        """Opens `session` with the next message."""
        if self._closed:
            session.leave(client_closed())
            return
        self._link.add(session)
        self._work.set()
        if self._task is None or self._task.done():
            self._task = asyncio.get_running_loop().create_task(self._run())

    def touch(self, session: Session) -> None:
        """`session` may have something to send."""
        self._link.touch(session)
        self._work.set()

    async def close(self) -> None:
        """Ends every session with Cancelled; the server is told, if it listens."""
        self._closed = True
        _wake(self._link.close())
        self._work.set()
        if self._task is not None:
            if self._link.connected:
                await asyncio.wait([self._task], timeout=_FAREWELL)
            self._task.cancel()
            await asyncio.wait([self._task])

    async def _run(self) -> None:
        try:
            while len(self._link):
                error = await self._carry(self._call())
                ended, wait = self._link.lose(error, time.monotonic())
                _wake(ended)
                if len(self._link):
                    await asyncio.sleep(wait)
        finally:
            _wake(self._link.close())

    async def _carry(self, call: Call) -> HeadraceError:
        """Carries the sessions on one call. Returns how it ended."""
        self._link.connect()
        writer = asyncio.get_running_loop().create_task(self._write(call))
        try:
            async for response in call:
                _wake(self._link.receive(response))
                self._work.set()
        except grpc.RpcError as error:
            told = from_rpc_error(error)
            told.__cause__ = error
            return told
        finally:
            writer.cancel()
            call.cancel()
            await asyncio.wait([writer])
            if not writer.cancelled():
                writer.result()
        return Unavailable(grpc.StatusCode.UNAVAILABLE, "the server has ended the call")

    async def _write(self, call: Call) -> None:
        try:
            while True:
                self._work.clear()
                while (request := self._link.request()) is not None:
                    await call.write(request)
                if self._closed:
                    await call.done_writing()
                    return
                await self._work.wait()
        except (grpc.RpcError, asyncio.InvalidStateError):
            pass  # A call that has ended refuses to be written to; why it ended, its reader learns.
        except BaseException:
            call.cancel()
            raise


def _wake(sessions: Iterable[Session]) -> None:
    for session in sessions:
        session.wake()


class AsyncSensorStream(StreamFacts):
    """A signal sent as it comes, answered window by window: `SensorStream` for asyncio.

    Made by `AsyncClient.stream` and opened by `async with`. One task sends, another iterates; or
    `run` does both. Everything belongs to the event loop that opened it.
    """

    def __init__(self, connection: AsyncStreamConnection, plan: Plan) -> None:
        self._connection = connection
        self._plan = plan
        self._session = plan.session()
        self._waiters: list[asyncio.Future[None]] = []
        self._sending = asyncio.Lock()

    async def __aenter__(self) -> Self:
        await self.open()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if kind is not None:
            self.leave()
        elif not self._session.told:
            self._session.discard()
            await self.close()

    async def open(self) -> None:
        """Open the stream on the server; `async with` does it. Attempts are made as the client's
        retry policy says. Raises `ModelNotFound`, `InvalidInput`, `Overloaded`, `Unavailable`."""
        self._begun, made = True, 0
        while True:
            self._session.wake = self._wake
            self._connection.add(self._session)
            try:
                await self._until(self._session.is_open)
            except HeadraceError as error:
                made += 1
                wait = next_wait(self._connection.policy, error, made, None, random.random())
                if wait is None:
                    raise
            except asyncio.CancelledError:
                self.leave()
                raise
            else:
                return
            await asyncio.sleep(wait)
            self._session = self._plan.session()

    async def send(self, samples: Samples, *, timestamp_ns: int | None = None) -> None:
        """Hand over the next samples, of any number: see `SensorStream.send`."""
        async with self._sending:
            upload = self._plan.upload(self._session, samples, timestamp_ns)
            await self._until(upload.advance)

    async def flush(self) -> Flushed:
        """Make a window of what fills none: see `SensorStream.flush`."""
        number = self._session.flush()
        return await self._until(lambda: self._session.flushed(number))

    def end(self) -> None:
        """Say that no more samples come; does not wait."""
        self._session.end()
        self._connection.touch(self._session)
        self._wake()

    async def close(self) -> StreamSummary:
        """`end`, and wait until the server has answered every window."""
        self.end()
        return await self._until(self._session.closed)

    def leave(self) -> None:
        """Give the stream up: what is under way is dropped. Does not wait."""
        self._session.leave()
        self._connection.touch(self._session)
        self._wake()

    def take(self) -> list[StreamEvent]:
        """Results and gaps that have come and were not taken, without waiting for more."""
        taken = self._session.take()
        self._connection.touch(self._session)
        return taken

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> StreamEvent:
        for event in await self._until(self._session.read):
            return event
        raise StopAsyncIteration

    async def run(
        self, chunks: Iterable[Samples] | AsyncIterable[Samples]
    ) -> AsyncGenerator[StreamEvent, None]:
        """Send all `chunks` in a task of its own, yield what comes, and end the stream: see
        `SensorStream.run`. To leave the loop early, wrap this in `contextlib.aclosing`."""
        if not isinstance(chunks, AsyncIterable):
            chunks = as_chunks(chunks)
        kept = Kept()

        async def feed() -> None:
            with kept:
                if isinstance(chunks, AsyncIterable):
                    async for chunk in chunks:
                        await self.send(chunk)
                else:
                    for chunk in chunks:
                        await self.send(chunk)
            self.end()

        feeder = asyncio.get_running_loop().create_task(feed())
        try:
            async for event in self:
                yield event
        finally:
            feeder.cancel()
            self.end()
            await asyncio.wait([feeder])
        kept.release()

    async def _until(self, ready: Callable[[], T | None]) -> T:
        """Waits until `ready` gives something."""
        self._expect_begun()
        while True:
            value = ready()
            self._connection.touch(self._session)
            if value is not None:
                return value
            waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waiters.append(waiter)
            await waiter

    def _wake(self) -> None:
        waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)
