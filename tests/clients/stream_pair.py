"""A client's link and a server that is made of the real sessions, joined by what a test delivers.

No sockets, no clock, no model: what was sent travels when the test says so, and is lost when it
cuts the connection.
"""

from __future__ import annotations

import itertools
from collections import deque
from typing import Any

import grpc
import numpy as np

from headrace.client.errors import HeadraceError, Unavailable
from headrace.client.retry import RetryPolicy
from headrace.client.stream_link import StreamLink
from headrace.client.stream_options import Framing, StreamOptions
from headrace.client.stream_results import Gap, WindowResult
from headrace.client.stream_session import Phase
from headrace.client.stream_upload import Plan
from headrace.inference.tensors import DATATYPES
from headrace.server.errors import StreamRefused
from headrace.server.models.spec import TensorSpec
from headrace.server.rpc.stream_codec import encode_delivery, encode_error, envelope, read_open
from headrace.server.streams import session as real
from headrace.server.streams.deliveries import Work
from headrace.server.streams.events import Computed
from headrace.server.streams.options import SessionOptions, SignalFormat
from headrace.server.streams.window import Framing as ServerFraming
from headrace.stream.v1 import stream_pb2 as pb
from server.streams.driver import answer

SPEC = TensorSpec("y", "INT64", (-1,), ("",))
BROKEN = Unavailable(grpc.StatusCode.UNAVAILABLE, "the test cut the connection")


class FakeServer:
    """Sessions by their ids, and those held by the call that there is."""

    def __init__(self, *, stateful: bool, outstanding: int) -> None:
        self.sessions: dict[bytes, real.Session] = {}
        self.running: list[tuple[real.Session, Work]] = []
        self._stateful = stateful
        self._outstanding = outstanding
        self._held: dict[int, real.Session] = {}
        self._replies: list[bytes] = []
        self._ids = itertools.count(1)

    def receive(self, request: pb.StreamRequest) -> None:
        for command in request.commands:
            try:
                self._carry_out(command)
            except StreamRefused as error:
                session = self._held.get(command.handle)
                expected = session.windower.received if session is not None else 0
                told = encode_error(error, session is None, expected)
                self._replies.append(envelope(command.handle, told))
        self._pump()

    def _carry_out(self, command: pb.Command) -> None:
        kind, handle = command.WhichOneof("command"), command.handle
        if kind == "open":
            assert handle not in self._held
            id_ = b"%d" % next(self._ids)
            session = self._held[handle] = self.sessions[id_] = self._open(command.open)
            self._reply(
                handle,
                opened=pb.Opened(
                    session_id=id_,
                    resume_token=b"token" if session.options.ttl else b"",
                    version="1",
                    up_to_sample=session.up_to,
                    largest_chunk=session.options.largest_chunk,
                    max_outstanding=session.options.outstanding,
                ),
            )
            return
        if kind == "resume":
            assert command.resume.resume_token == b"token"
            known = self.sessions.get(command.resume.session_id)
            if known is None:
                raise StreamRefused("UNKNOWN_SESSION", "resume", "gone")
            known.resume(command.resume.delivery)
            self._held[handle] = known
            resumed = pb.Resumed(
                next_sequence=known.windower.received,
                up_to_sample=known.up_to,
                flushes=known.flushes,
                closing=known.closing,
            )
            self._reply(handle, resumed=resumed)
            return
        if handle not in self._held:
            raise StreamRefused("UNKNOWN_HANDLE", "handle", str(handle))
        session = self._held[handle]
        if kind == "chunk":
            chunk = command.chunk
            timestamp = chunk.timestamp_ns if chunk.HasField("timestamp_ns") else None
            session.chunk(chunk.sequence, chunk.data, timestamp, 0.0)
        elif kind == "ack":
            session.ack(command.ack.delivery)
        elif kind == "flush":
            session.flush(0.0)
        else:
            session.close(0.0)

    def _open(self, message: pb.Open) -> real.Session:
        asked = read_open(message, "")
        framing = ServerFraming(asked.window, asked.hop or asked.window, asked.context, asked.tail)
        options = SessionOptions(
            framing,
            [SignalFormat("x", DATATYPES["INT32"], 1)],
            asked.rate,
            asked.buffer or 2 * (framing.window + framing.context) + 6,
            overload=asked.overload,
            ttl=asked.ttl,
            in_flight=1 if self._stateful else 4,
            outstanding=self._outstanding,
        )
        states = [np.array(0)] if self._stateful else []
        return real.Session(options, encode_delivery, states)

    def _reply(self, handle: int, **event: Any) -> None:
        self._replies.append(envelope(handle, pb.Event(**event).SerializeToString()))

    def _pump(self) -> None:
        for session in self.sessions.values():
            while (work := session.next_work(0.0)) is not None:
                self.running.append((session, work))

    def finish(self, number: int) -> None:
        """One of the runs ends."""
        if not self.running:
            return
        session, work = self.running.pop(number % len(self.running))
        made = answer(work.window.arrays[0], int(work.states[0]) if self._stateful else 0)
        outputs = [(SPEC, np.array([made], np.int64))]
        session.complete(work.index, Computed(outputs, [np.array(made)] if self._stateful else []))
        self._pump()

    def respond(self) -> pb.StreamResponse:
        """All that there is to say."""
        parts, self._replies = self._replies, []
        for handle, session in list(self._held.items()):
            credit = session.new_credit()
            if credit is not None and not session.closing:
                event = pb.Event(credit=pb.Credit(up_to_sample=credit))
                parts.append(envelope(handle, event.SerializeToString()))
            parts += [envelope(handle, event) for event in session.take(1 << 20)]
        self._pump()
        return pb.StreamResponse.FromString(b"".join(parts))

    def cut(self) -> None:
        self._held.clear()
        self._replies.clear()


class User:
    """One stream of the client: its signal, what was sent of it, and what came back."""

    def __init__(self, pair: Pair, framing: Framing, options: StreamOptions, signal: Any) -> None:
        self._pair = pair
        self._plan = Plan("model", framing, options)
        self.session = self._plan.session()
        self.signal = signal
        self.flushes: list[int] = []
        self.events: list[WindowResult | Gap] = []
        pair.link.add(self.session)

    @property
    def sent(self) -> int:
        return self.session.log.position

    def send(self, size: int) -> None:
        """As many of the next samples as there is room for."""
        session = self.session
        if session.ending or session.is_over or len(session.inbox) >= session.inbox._max_unread:
            return
        samples = self.signal[self.sent : self.sent + size]
        upload = self._plan.upload(session, samples, None)
        upload.advance()
        self._pair.link.touch(session)

    def flush(self) -> None:
        if not self.session.ending and not self.session.is_over:
            self.session.flush()
            self.flushes.append(self.sent)
            self._pair.link.touch(self.session)

    def take(self) -> None:
        self.events += self.session.take()
        self._pair.link.touch(self.session)

    def end(self) -> None:
        if not self.session.ending:
            self.session.end()
            self._pair.link.touch(self.session)


class Pair:
    """A link, a server, and what is on its way between them."""

    def __init__(self, *, stateful: bool = False, outstanding: int = 6) -> None:
        self.link = StreamLink(RetryPolicy())
        self.server = FakeServer(stateful=stateful, outstanding=outstanding)
        self.users: list[User] = []
        self.up: deque[pb.StreamRequest] = deque()
        self.down: deque[pb.StreamResponse] = deque()
        self.connected = False

    def open(self, framing: Framing, options: StreamOptions, signal: Any) -> User:
        user = User(self, framing, options, signal)
        self.users.append(user)
        return user

    def connect(self) -> None:
        if not self.connected:
            self.connected = True
            self.link.connect()

    def emit(self) -> None:
        """The client puts a message on its way."""
        request = self.link.request()
        if request is not None:
            assert self.connected
            self.up.append(request)

    def carry_up(self) -> None:
        if self.up:
            self.server.receive(self.up.popleft())

    def carry_down(self) -> None:
        if self.connected:
            self.down.append(self.server.respond())

    def arrive(self) -> None:
        if self.down:
            # By bytes, as a network would have it.
            response = pb.StreamResponse.FromString(self.down.popleft().SerializeToString())
            self.link.receive(response)

    def cut(self, error: HeadraceError = BROKEN, now: float = 0.0) -> None:
        """What is on its way is lost."""
        if self.connected:
            self.connected = False
            self.up.clear()
            self.down.clear()
            self.server.cut()
            self.link.lose(error, now)

    def settle(self) -> None:
        """Everything that is on its way arrives, until nothing moves any more."""
        for _ in range(1000):
            before = [(user.sent, len(user.events), user.session.phase) for user in self.users]
            self.connect()
            for _ in range(3):
                self.emit()
            while self.up:
                self.carry_up()
            while self.server.running:
                self.server.finish(0)
            self.carry_down()
            while self.down:
                self.arrive()
            for user in self.users:
                user.take()
            if before == [(u.sent, len(u.events), u.session.phase) for u in self.users]:
                return
        raise AssertionError("it does not come to rest")

    def run_to_the_end(self) -> None:
        """Sends what is left of every signal, ends every stream, and takes all there is."""
        for _ in range(1000):
            self.settle()
            open_ = [user for user in self.users if user.session.phase is not Phase.ENDED]
            if not open_:
                return
            for user in open_:
                if user.sent < len(user.signal) and not user.session.ending:
                    user.send(1 << 20)
                else:
                    user.end()
        raise AssertionError("it does not come to an end")
