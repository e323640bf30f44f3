"""All sessions of a client on one call: which message to send next, and whom each event is for.

Synchronous, like `stream_session`: the clients' shells own the call, the clock and the waiting.
"""

from __future__ import annotations

import itertools
import random as _random
from collections.abc import Callable

import grpc

from headrace.client.errors import Cancelled, HeadraceError
from headrace.client.retry import RetryPolicy, backoff
from headrace.client.stream_session import Phase, Session
from headrace.stream.v1 import stream_pb2 as pb

# Bytes of one message, about: a session adds its share whole.
_MESSAGE = 256 << 10
# A call that ended so will not end better when it is made again.
_FINAL = {
    grpc.StatusCode.UNIMPLEMENTED,
    grpc.StatusCode.UNAUTHENTICATED,
    grpc.StatusCode.PERMISSION_DENIED,
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.NOT_FOUND,
}


class StreamLink:
    """See the module. A session keeps its handle from call to call; none is used twice."""

    def __init__(
        self, policy: RetryPolicy, *, random: Callable[[], float] = _random.random
    ) -> None:
        self._policy = policy
        self._random = random
        self._numbers = itertools.count(1)
        self._sessions: dict[int, Session] = {}
        self._handles: dict[Session, int] = {}
        self._touched: dict[Session, None] = {}
        self._connected = False
        self._failures = 0

    def __len__(self) -> int:
        return len(self._sessions)

    @property
    def sessions(self) -> list[Session]:
        return list(self._handles)

    def add(self, session: Session) -> None:
        handle = next(self._numbers)
        self._sessions[handle] = session
        self._handles[session] = handle
        self.touch(session)

    @property
    def connected(self) -> bool:
        """Whether there is a call."""
        return self._connected

    def touch(self, session: Session) -> None:
        """`session` may have something to send."""
        if session in self._handles:
            self._touched[session] = None

    def connect(self) -> None:
        """A new call has begun: every session opens or resumes on it."""
        self._connected = True
        self._touched = dict.fromkeys(self._handles)

    def request(self) -> pb.StreamRequest | None:
        """The next message to send; None while there is nothing to say."""
        if not self._connected:
            return None
        request = pb.StreamRequest()
        room = _MESSAGE
        while self._touched and room > 0:
            session = next(iter(self._touched))
            del self._touched[session]
            commands, more = self._commands(session)
            for command in commands:
                command.handle = self._handles[session]
                room -= command.ByteSize()
            request.commands.extend(commands)
            if session.phase is Phase.ENDED:
                self._remove(session)
            elif more:
                self._touched[session] = None  # behind all others
        return request if request.commands else None

    def _commands(self, session: Session) -> tuple[list[pb.Command], bool]:
        if session.phase in (Phase.NEW, Phase.DETACHED):
            return session.attach(), False
        return session.commands()

    def receive(self, response: pb.StreamResponse) -> list[Session]:
        """Hands every event to its session. Returns those that had some."""
        self._failures = 0
        changed: dict[Session, None] = {}
        for event in response.events:
            session = self._sessions.get(event.handle)
            if session is None:
                continue  # the last words to a session that was given up
            session.receive(event)
            changed[session] = None
            if session.phase is Phase.ENDED:
                self._remove(session)
            elif session.phase is not Phase.DETACHED:  # waits for another call, if it is that
                self._touched[session] = None
        return list(changed)

    def lose(self, error: HeadraceError, now: float) -> tuple[list[Session], float]:
        """The call has ended with `error`. Returns the sessions that ended with it, and how many
        seconds to wait before another call is made for the rest."""
        self._connected = False
        self._touched.clear()
        self._failures += 1
        ended = []
        for session in self.sessions:
            session.detach(error, now, final=error.code in _FINAL)
            if session.phase is Phase.ENDED:
                self._remove(session)
                ended.append(session)
        return ended, backoff(self._policy, self._failures, self._random())

    def close(self) -> list[Session]:
        """Gives every session up with Cancelled, and returns them; what closes them on the server
        is still to be sent."""
        given_up = self.sessions
        for session in given_up:
            session.leave(client_closed())
            self.touch(session)
            if session.phase is Phase.ENDED:
                self._remove(session)
        return given_up

    def _remove(self, session: Session) -> None:
        self._touched.pop(session, None)
        self._sessions.pop(self._handles.pop(session, 0), None)


def client_closed() -> Cancelled:
    """What ends the streams of a client that is closed."""
    return Cancelled(grpc.StatusCode.CANCELLED, "the client was closed")
