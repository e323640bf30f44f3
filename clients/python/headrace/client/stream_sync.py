"""Sensor streams without an event loop: the connection that carries a client's sessions, and one
stream."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from types import TracebackType
from typing import Any, Self, TypeVar

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
# Any: the published stubs do not know that a call in progress can be iterated and cancelled.
MakeCall = Callable[[Iterator[pb.StreamRequest]], Any]


class StreamConnection:
    """One call for all sessions of a client, made again when it breaks. `call` makes one.

    A thread reads; gRPC's own iterates over what is to be sent. `lock` guards everything that the
    two and the users' threads share: the link and all its sessions.
    """

    def __init__(self, call: MakeCall, policy: RetryPolicy) -> None:
        self.policy = policy
        self.lock = threading.Lock()
        self._make_call = call
        self._link = StreamLink(policy)
        self._work = threading.Condition(self.lock)
        self._thread: threading.Thread | None = None
        self._call: Any = None
        self._calls = 0
        self._closed = False

    def add(self, session: Session) -> None:
        """Opens `session` with the next message. The caller holds `lock`, here and in `touch`."""
        if self._closed:
            session.leave(client_closed())
            return
        self._link.add(session)
        self._work.notify()
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="headrace-streams", daemon=True)
            self._thread.start()

    def touch(self, session: Session) -> None:
        """`session` may have something to send."""
        self._link.touch(session)
        self._work.notify()

    def close(self) -> None:
        """Ends every session with Cancelled; the server is told, if it listens."""
        with self.lock:
            self._closed = True
            _wake(self._link.close())
            self._work.notify_all()
            thread = self._thread
        if thread is None:
            return
        thread.join(_FAREWELL)
        with self.lock:
            if self._call is not None:
                self._call.cancel()
        thread.join()

    def _run(self) -> None:
        try:
            while True:
                error = self._carry()
                with self.lock:
                    ended, wait = self._link.lose(error, time.monotonic())
                    _wake(ended)
                    self._pause(wait)
                    if self._closed or not len(self._link):
                        return
        finally:
            with self.lock:
                _wake(self._link.close())
                self._thread = None

    def _pause(self, seconds: float) -> None:
        """Lets others have the lock for so long, or until the client is closed."""
        until = time.monotonic() + seconds
        while not self._closed and len(self._link) and (left := until - time.monotonic()) > 0:
            self._work.wait(left)

    def _carry(self) -> HeadraceError:
        """Carries the sessions on one call. Returns how it ended."""
        with self.lock:
            self._link.connect()
            self._calls += 1
            call = self._call = self._make_call(self._requests(self._calls))
        try:
            for response in call:
                with self.lock:
                    _wake(self._link.receive(response))
                    self._work.notify()
        except grpc.RpcError as error:
            told = from_rpc_error(error)
            told.__cause__ = error
            return told
        finally:
            with self.lock:
                self._call = None
                self._calls += 1
                self._work.notify_all()
            call.cancel()
        return Unavailable(grpc.StatusCode.UNAVAILABLE, "the server has ended the call")

    def _requests(self, number: int) -> Iterator[pb.StreamRequest]:
        """What to send on the call of this number, until it is over."""
        while True:
            with self.lock:
                request = None
                while number == self._calls and (request := self._link.request()) is None:
                    if self._closed:
                        return
                    self._work.wait()
            if request is None:
                return
            yield request


def _wake(sessions: Iterable[Session]) -> None:
    for session in sessions:
        session.wake()


class SensorStream(StreamFacts):
    """A signal sent as it comes, answered window by window.

    Made by `Client.stream` and opened by `with`. Iterating yields a `WindowResult` for each window
    in order, and a `Gap` where windows have none; it ends once the stream was ended (`end`,
    `close`) and everything has come. Threads may share a stream: one that sends, one that iterates.

        with client.stream("model", window=512, sample_rate=16_000) as stream:
            for event in stream.run(chunks):      # sends in a thread of its own
                print(event)

        with client.stream("model", window=512, sample_rate=16_000) as stream:
            for chunk in chunks:
                stream.send(chunk)
                for event in stream.take():       # what has come by now
                    print(event)
            stream.end()
            for event in stream:                  # the rest
                print(event)

    A broken connection is made again, and the session resumed, without anybody noticing, for as
    long as `ttl` lets it live; then everything raises `SessionLost`. Leaving the block closes the
    stream and drops results that were not taken; leaving it by an exception does not wait.
    """

    def __init__(self, connection: StreamConnection, plan: Plan) -> None:
        self._connection = connection
        self._plan = plan
        self._changed = threading.Condition(connection.lock)
        self._sending = threading.Lock()
        self._session = plan.session()

    def __enter__(self) -> Self:
        self.open()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if kind is not None:
            self.leave()
        elif not self._session.told:
            with self._connection.lock:
                self._session.discard()
            self.close()

    def open(self) -> None:
        """Open the stream on the server; `with` does it. Attempts are made as the client's retry
        policy says. Raises `ModelNotFound`, `InvalidInput`, `Overloaded`, `Unavailable`."""
        self._begun, made = True, 0
        while True:
            self._session.wake = self._changed.notify_all
            with self._connection.lock:
                self._connection.add(self._session)
            try:
                self._until(self._session.is_open)
            except HeadraceError as error:
                made += 1
                wait = next_wait(self._connection.policy, error, made, None, random.random())
                if wait is None:
                    raise
            except BaseException:
                self.leave()
                raise
            else:
                return
            time.sleep(wait)
            self._session = self._plan.session()

    def send(self, samples: Samples, *, timestamp_ns: int | None = None) -> None:
        """Hand over the next samples, of any number: see `Samples` for what they may be.

        Waits while the server has no room for them, or `max_unread` results wait to be taken; not
        for the connection, as long as there is room. `timestamp_ns`: when the first was taken, in
        nanoseconds of any clock of the caller's; without it that follows from the sample rate.

        Interrupted or, with asyncio, cancelled, it may have handed over a part. Raises TypeError or
        ValueError for samples that do not fit, of which none is taken;
        RuntimeError after the end, or where waiting could never end since nobody takes results;
        and what has ended the stream (`SessionLost`, ...).
        """
        with self._sending:
            with self._connection.lock:
                upload = self._plan.upload(self._session, samples, timestamp_ns)
            self._until(upload.advance)

    def flush(self) -> Flushed:
        """Make a window of the samples that fill none, as `tail` says; returns when every window so
        far is answered. The next sample begins a new window; state and context go on."""
        with self._connection.lock:
            number = self._session.flush()
        return self._until(lambda: self._session.flushed(number))

    def end(self) -> None:
        """Say that no more samples come; does not wait."""
        with self._connection.lock:
            self._session.end()
            self._connection.touch(self._session)
            self._changed.notify_all()

    def close(self) -> StreamSummary:
        """`end`, and wait until the server has answered every window. What was not taken can still
        be iterated."""
        self.end()
        return self._until(self._session.closed)

    def leave(self) -> None:
        """Give the stream up: what is under way is dropped. Does not wait."""
        with self._connection.lock:
            self._session.leave()
            self._connection.touch(self._session)
            self._changed.notify_all()

    def take(self) -> list[StreamEvent]:
        """Results and gaps that have come and were not taken, without waiting for more."""
        with self._connection.lock:
            taken = self._session.take()
            self._connection.touch(self._session)
        return taken

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> StreamEvent:
        for event in self._until(self._session.read):
            return event
        raise StopIteration

    def run(self, chunks: Iterable[Samples]) -> Generator[StreamEvent, None, None]:
        """Send all `chunks` in a thread of its own, yield what comes, and end the stream.

        What `chunks` raises is raised here, after the answers to what was sent. A single array is
        one chunk. The loop may be left early; the stream then takes no more samples.
        """
        chunks = as_chunks(chunks)
        kept = Kept()

        def feed() -> None:
            with kept:
                for chunk in chunks:
                    self.send(chunk)
            self.end()

        feeder = threading.Thread(target=feed, name="headrace-feeder", daemon=True)
        feeder.start()
        try:
            # Not `yield from`: that would close the stream, and wait, when the loop is left.
            for event in self:  # noqa: UP028
                yield event
        finally:
            self.end()
        feeder.join()
        kept.release()

    def _until(self, ready: Callable[[], T | None]) -> T:
        """Waits until `ready` gives something."""
        self._expect_begun()
        with self._connection.lock:
            while True:
                value = ready()
                self._connection.touch(self._session)
                if value is not None:
                    return value
                self._changed.wait()
