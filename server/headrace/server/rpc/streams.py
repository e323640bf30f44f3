"""headrace.stream.v1: one call, many sessions.

Theory of operation. A reader carries out the commands of each message as they come; nothing in that
waits, unless too many replies do. A writer takes what the sessions have to tell, a share of each in
turn, as many events in one message as are there: under load messages grow, and cost less for each
event. It takes no more while the transport does not, so a client that does not read fills the
outboxes of its own sessions, and nobody else's.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Any

import grpc

from headrace.server import errors
from headrace.server.errors import StreamRefused
from headrace.server.rpc import stream_codec
from headrace.server.rpc.calls import abort, caller_of, log_unexpected
from headrace.server.rpc.guard import Context, shown_by
from headrace.server.rpc.handlers import admitted, watched
from headrace.server.rpc.limits import InFlight, Limits
from headrace.server.rpc.stream_codec import encode_error, envelope
from headrace.server.security.guard import Guard
from headrace.server.streams.manager import LiveSession, SessionManager
from headrace.server.telemetry.watch import Watch
from headrace.stream.v1 import stream_pb2 as pb

_METHOD = f"{pb.DESCRIPTOR.services_by_name['SensorStream'].full_name}/Stream"
# Bytes of events in one message, about; and of one session's in it.
_MESSAGE, _SHARE = 256 << 10, 64 << 10
# Answers to commands that may wait to be sent; beyond them no more commands are read.
_MOST_REPLIES = 1024


class StreamService:
    """Answers SensorStream.Stream."""

    def __init__(
        self,
        manager: SessionManager,
        watch: Watch,
        guard: Guard | None = None,
        in_flight: InFlight | None = None,
    ) -> None:
        self._manager = manager
        self._watch = watch
        self._guard = guard or Guard()
        self._in_flight = in_flight or InFlight(Limits())
        self._connections: set[_Connection] = set()

    async def stream(self, _: Any, context: Context) -> None:
        async with (
            watched(self._watch, _METHOD, context),
            admitted(self._guard, self._in_flight, context),
        ):
            await self._stream(context)

    async def _stream(self, context: Context) -> None:
        if self._manager.draining:
            await abort(context, errors.Draining("the server is shutting down"))
        connection = _Connection(self._manager, context, self._guard)
        self._connections.add(connection)
        try:
            await connection.serve()
        finally:
            self._connections.discard(connection)
            connection.close()

    async def drain(self) -> None:
        """Closes every session in order; returns once all who listen have been told."""
        await self._manager.drain()
        self._end_connections()

    async def give_up(self) -> None:
        """Closes every session now, with what is undone reported in gaps."""
        try:
            await self._manager.give_up()
        finally:  # some do not read; the others are told all the same
            self._end_connections()

    def _end_connections(self) -> None:
        for connection in self._connections:
            connection.end()


class _Connection:
    """One call."""

    def __init__(self, manager: SessionManager, context: Context, guard: Guard) -> None:
        self._manager = manager
        self._context = context
        self._guard = guard
        self._shown = shown_by(context)
        self._caller = caller_of(context)
        self._sessions: dict[int, LiveSession] = {}
        self._replies: deque[bytes] = deque()
        self._ready: dict[LiveSession, None] = {}
        self._work = asyncio.Event()
        self._room = asyncio.Event()
        self._ended = self._draining = False
        loop = asyncio.get_running_loop()
        self._reader = loop.create_task(self._read())
        self._writer = loop.create_task(self._write())

    async def serve(self) -> None:
        """Returns when the client has ended its side and has been told what it closed."""
        await asyncio.wait([self._reader, self._writer], return_when=asyncio.FIRST_COMPLETED)
        if self._reader.done() and not self._writer.done():
            self._detach_all(closing=False)
            self._ended = True
            self._work.set()
            await asyncio.wait([self._writer])
        if self._draining:
            await abort(self._context, errors.Draining("the server is shutting down"))
        for task in (self._reader, self._writer):
            if task.done() and not task.cancelled():
                task.result()

    def end(self) -> None:
        """The server stops, and every session has been told."""
        self._draining = True
        self._reader.cancel()

    def close(self) -> None:
        """The call is over, in whatever way."""
        self._reader.cancel()
        self._writer.cancel()
        self._detach_all(closing=True)

    def _detach_all(self, *, closing: bool) -> None:
        for handle, live in list(self._sessions.items()):
            if closing or not live.session.closing:
                del self._sessions[handle]
                self._ready.pop(live, None)
                self._manager.detach(live)

    # What sessions say.

    def ready(self, live: LiveSession) -> None:
        self._ready[live] = None
        self._work.set()

    def taken(self, live: LiveSession) -> None:
        self._sessions.pop(live.handle, None)
        self._ready.pop(live, None)
        error = StreamRefused("SESSION_TAKEN", "", "the session was resumed on another connection")
        self._reply(live.handle, encode_error(error, True, 0))

    # Reading.

    async def _read(self) -> None:
        while (message := await self._context.read()) is not grpc.aio.EOF:
            if isinstance(message, Exception):
                self._refuse(0, message, None, ended=False)
                await self._room_for_replies()
                continue
            for command in message.commands:
                self._carry_out(command)
                if len(self._replies) > _MOST_REPLIES:  # one message can bring millions
                    await self._room_for_replies()

    async def _room_for_replies(self) -> None:
        while len(self._replies) > _MOST_REPLIES:
            self._room.clear()
            await self._room.wait()

    def _carry_out(self, command: pb.Command) -> None:
        handle, kind = command.handle, command.WhichOneof("command")
        live = self._sessions.get(handle)
        try:
            if kind in ("open", "resume"):
                self._start(handle, live, command)
            elif live is None:
                raise StreamRefused(
                    "UNKNOWN_HANDLE", "handle", f"expected that of an open session, got {handle}"
                )
            else:
                self._continue(live, kind, command)
        except Exception as error:  # noqa: BLE001 (the table knows what each error means)
            self._refuse(handle, error, live, ended=live is None)

    def _start(self, handle: int, holder: LiveSession | None, command: pb.Command) -> None:
        if holder is not None and not holder.session.told:
            raise StreamRefused("HANDLE_IN_USE", "handle", f"expected a free handle, got {handle}")
        limit = self._manager.limits.connection_sessions
        if len(self._sessions) >= limit:
            raise StreamRefused(
                "TOO_MANY_SESSIONS", "handle", f"expected at most {limit} sessions on a connection"
            )
        if command.HasField("open"):
            caller = self._admitted(command.open.model) or self._caller
            asked = stream_codec.read_open(command.open, caller)
            live = self._manager.open(asked, self, handle)
            event = self._opened(live)
        else:
            resume = command.resume
            live = self._manager.resume(
                resume.session_id,
                resume.resume_token,
                resume.delivery,
                self,
                handle,
                self._admitted,
            )
            event = self._resumed(live)
        if holder is not None and holder is not live:
            self._manager.detach(holder)  # told all, and its end not acknowledged
        self._sessions[handle] = live
        self._reply(handle, event.SerializeToString())

    def _admitted(self, model: str) -> str:
        """Who streams to `model`, if the guard knows. Raises Unauthenticated, PermissionDenied."""
        return self._guard.check("stream", model, lambda: self._shown)

    def _opened(self, live: LiveSession) -> pb.Event:
        session = live.session
        return pb.Event(
            opened=pb.Opened(
                session_id=live.id,
                resume_token=live.token,
                version=live.version,
                up_to_sample=session.up_to,
                largest_chunk=session.options.largest_chunk,
                max_outstanding=session.options.outstanding,
                state_inputs=live.state_inputs,
            )
        )

    def _resumed(self, live: LiveSession) -> pb.Event:
        session = live.session
        return pb.Event(
            resumed=pb.Resumed(
                next_sequence=session.windower.received,
                up_to_sample=session.up_to,
                flushes=session.flushes,
                closing=session.closing,
            )
        )

    def _continue(self, live: LiveSession, kind: str | None, command: pb.Command) -> None:
        session, now = live.session, self._manager.clock()
        if kind == "ack":
            session.ack(command.ack.delivery)
            self._after_sending(live)
            return
        if kind == "chunk":
            self._admitted(live.terms.recipe.model)  # what was allowed may have been withdrawn
            chunk = command.chunk
            timestamp = chunk.timestamp_ns if chunk.HasField("timestamp_ns") else None
            session.chunk(chunk.sequence, chunk.data, timestamp, now)
        elif kind == "flush":
            session.flush(now)
        elif kind == "close":
            session.close(now)
        else:
            raise StreamRefused("INVALID_INPUT", "command", "expected a command, got none")
        self._manager.pump(live)

    def _refuse(
        self, handle: int, error: Exception, live: LiveSession | None, *, ended: bool
    ) -> None:
        log_unexpected(error)
        self._manager.statistics.refused[errors.row_of(error).reason] += 1
        expected = live.session.windower.received if live is not None else 0
        self._reply(handle, encode_error(error, ended, expected))

    def _reply(self, handle: int, event: bytes) -> None:
        self._replies.append(envelope(handle, event))
        self._work.set()

    # Writing.

    async def _write(self) -> None:
        while True:
            self._work.clear()
            while message := self._message():
                try:
                    await self._context.write(message)
                except grpc.aio.BaseError:
                    return  # the connection is gone
                self._manager.told()
            if self._ended and all(live.session.told for live in self._sessions.values()):
                return
            await self._work.wait()

    def _message(self) -> bytes:
        """As much as there is to tell, and one message may hold."""
        parts: list[bytes] = []
        room = _MESSAGE
        while self._replies and room > 0:
            parts.append(self._replies.popleft())
            room -= len(parts[-1])
        if len(self._replies) <= _MOST_REPLIES:
            self._room.set()
        while self._ready and room > 0:
            live = next(iter(self._ready))
            del self._ready[live]
            room -= self._take(live, parts)
        return b"".join(parts)

    def _take(self, live: LiveSession, parts: list[bytes]) -> int:
        """One session's share of a message. Returns its bytes."""
        before, session, handle = len(parts), live.session, live.handle
        credit = session.new_credit()
        if credit is not None:
            event = pb.Event(credit=pb.Credit(up_to_sample=credit))
            parts.append(envelope(handle, event.SerializeToString()))
        deliveries = session.take(_SHARE)
        parts += [envelope(handle, event) for event in deliveries]
        if deliveries:
            self._after_sending(live)
        if session.has_unsent and live.connection is self:
            self._ready[live] = None
        return sum(map(len, parts[before:]))

    def _after_sending(self, live: LiveSession) -> None:
        self._manager.sent(live)
        if live.connection is None:
            self._sessions.pop(live.handle, None)
