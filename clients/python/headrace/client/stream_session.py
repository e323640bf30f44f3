"""One session of a sensor stream as its client sees it: a synchronous state machine.

Theory of operation. What the user hands over goes into a log, is sent in order, and is kept until
the server is known to have it: because a result spans it, because credit has moved past it, or
because a resume says so. When the connection breaks, what is kept is sent again from where the
server says it is, so nothing is lost and nothing taken twice. Deliveries are numbered by the
server, so that one which comes again is known.

Nothing here waits, and nothing knows gRPC's calls: `StreamLink` moves the messages, and the
clients' shells do the waiting. A method that a shell asks until there is something returns None
until then, and raises what has ended the session.
"""

from __future__ import annotations

import enum
from collections.abc import Callable

import grpc

from headrace.client.errors import (
    BadResponse,
    Cancelled,
    HeadraceError,
    SessionLost,
    Unavailable,
    error_of,
)
from headrace.client.stream_inbox import Inbox, StreamEvent
from headrace.client.stream_log import Entry, Flush, Log, Samples
from headrace.client.stream_results import (
    Flushed,
    StreamSummary,
    read_closed,
    read_gap,
    read_result,
)
from headrace.client.stream_samples import Chunk, Sampler
from headrace.stream.v1 import stream_pb2 as pb

# Bytes of samples that a session adds to a message before others have their turn.
_SHARE = 128 << 10
_STATUS = {status.value[0]: status for status in grpc.StatusCode}


class Phase(enum.Enum):
    """Where a session stands."""

    NEW = "not opened"
    OPENING = "being opened"
    OPEN = "open"
    DETACHED = "open, without a connection"
    RESUMING = "being resumed"
    LEAVING = "given up, and being closed on the server"
    CLOSED = "closed, which is to be acknowledged"
    ENDED = "ended"


_OVER = (Phase.LEAVING, Phase.CLOSED, Phase.ENDED)


class Session:
    """See the module. `opening` is sent as it is. max_unread: results that may wait to be taken
    before no more samples are sent and no more results acknowledged."""

    def __init__(self, opening: pb.Open, sampler: Sampler, max_unread: int) -> None:
        self.phase = Phase.NEW
        self.opened: pb.Opened | None = None
        self.error: HeadraceError | None = None
        self.summary: StreamSummary | None = None
        self.ending = False
        self.resumes = 0
        self.told = False
        """Whether the user has met `error`."""
        self.wake: Callable[[], None] = _nobody
        """Called by the shell that moved messages, when those who wait should look again."""
        self.log = Log(sampler, keep=opening.ttl_ms > 0)
        self.inbox = Inbox(max_unread)
        self._opening = opening
        self._longest = sampler.longest
        self._credit = 0
        self._timestamp: int | None = None
        self._flushes: dict[int, Flushed] = {}
        self._seen_flushes = 0
        self._acked_at_flush = 0
        self._hold = False  # a flush was refused: until the server has room for it again
        self._lost_at: float | None = None

    def __repr__(self) -> str:
        return f"<Session: {self.phase.value}, {self.log.position} samples>"

    # What the user does.

    @property
    def is_over(self) -> bool:
        """Whether the user has nothing left to wait for."""
        return self.phase in _OVER

    def is_open(self) -> bool | None:
        """True once the server has opened the session."""
        self.check()
        return True if self.opened is not None else None

    def room(self) -> int:
        """How many samples may be handed over now in one chunk. Raises what has ended the session,
        and RuntimeError after `end`, or where results wait that nobody ever took."""
        self.check()
        if self.ending or self.summary is not None:
            raise RuntimeError("the stream was ended: it takes no more samples")
        if self.opened is None or self.inbox.is_full():
            return 0
        most = min(self.opened.largest_chunk, self._longest)
        return max(0, min(self._credit - self.log.position, most))

    def put(self, chunk: Chunk) -> None:
        """Takes a chunk of at most `room()` samples."""
        self.log.add(chunk)

    def stamp(self, timestamp_ns: int) -> None:
        """The next sample was taken then. Raises ValueError where time went back."""
        last = self._timestamp
        if last is not None and timestamp_ns < last:
            raise ValueError(f"timestamp_ns: expected {last} or later, got {timestamp_ns}")
        self._timestamp = timestamp_ns

    def flush(self) -> int:
        """Returns the flush's number, for `flushed`."""
        self.check()
        if self.ending:
            raise RuntimeError("the stream was ended: there is nothing to flush")
        return self.log.flush()

    def flushed(self, number: int) -> Flushed | None:
        """The answer to a flush, which is given once."""
        if number in self._flushes:
            return self._flushes.pop(number)
        self.check()
        self.inbox.is_full()
        return None

    def end(self) -> None:
        """Nothing more will be handed over: the server makes the last window and closes."""
        if not self.ending and not self.is_over:
            self.ending = True
            self.log.end()

    def closed(self) -> StreamSummary | None:
        """The summary, once the session has been closed."""
        self.check()
        if self.summary is None:
            self.inbox.is_full()
        return self.summary

    def take(self) -> list[StreamEvent]:
        """What has come and was not taken yet; after that, raises what has ended the session."""
        taken = self.inbox.take()
        if not taken:
            self.check()
        return taken

    def read(self) -> tuple[StreamEvent, ...] | None:
        """The next result or gap, alone in a tuple; after the last one an empty tuple."""
        if (event := self.inbox.next()) is not None:
            return (event,)
        self.check()
        return None if self.summary is None else ()

    def discard(self) -> None:
        """Nobody will take results any more."""
        self.inbox.discard(unread=True)

    def leave(self, error: HeadraceError | None = None) -> None:
        """Gives the session up: it is closed on the server, and what comes is dropped. What has
        come may still be taken; after that `error` is raised, or Cancelled."""
        if self.is_over:
            return
        self.error = error or Cancelled(grpc.StatusCode.CANCELLED, "the stream was left")
        self.told = error is None
        self.ending = True
        self._hold = False
        self.inbox.discard(unread=False)
        self.log.clear()
        if self.phase is Phase.OPEN:
            self.log.end()
        alive = self.phase in (Phase.OPENING, Phase.OPEN, Phase.RESUMING)
        self.phase = Phase.LEAVING if alive else Phase.ENDED

    def check(self) -> None:
        """Raises what has ended the session, if it was an error."""
        if self.error is not None:
            self.told = True
            raise self.error

    # What goes to the server.

    def attach(self) -> list[pb.Command]:
        """How the session begins on a new connection."""
        if self.phase is Phase.NEW:
            self.phase = Phase.OPENING
            return [pb.Command(open=self._opening)]
        if self.phase is Phase.DETACHED and self.opened is not None:
            self.phase = Phase.RESUMING
            resume = pb.Resume(
                session_id=self.opened.session_id,
                resume_token=self.opened.resume_token,
                delivery=self.inbox.delivered,
            )
            return [pb.Command(resume=resume)]
        return []

    def commands(self) -> tuple[list[pb.Command], bool]:
        """What to send now, about `_SHARE` bytes of it, and whether there is more."""
        if self.phase not in (Phase.OPEN, Phase.LEAVING, Phase.CLOSED):
            return [], False
        commands = []
        if (delivery := self._ack()) is not None:
            self._hold = False
            commands.append(pb.Command(ack=pb.Ack(delivery=delivery)))
        if self.phase is Phase.CLOSED:
            self.phase = Phase.ENDED
            return commands, False
        room = 0 if self._hold else _SHARE
        while room > 0 and (entry := self.log.next()) is not None:
            commands.append(_command(entry))
            if isinstance(entry, Samples):
                room -= sum(map(len, entry.chunk.data))
            elif isinstance(entry, Flush):
                self._acked_at_flush = self.inbox.acked
        return commands, room <= 0 and not self._hold

    def _ack(self) -> int | None:
        if self.opened is None or not self._opening.ttl_ms:
            return None
        return self.inbox.ack(self.opened.max_outstanding, last=self.phase is Phase.CLOSED)

    # What comes from the server.

    def receive(self, event: pb.Event) -> None:
        """Takes an event. One that contradicts the protocol ends the session with BadResponse."""
        try:
            self._receive(event, event.WhichOneof("event"))
        except BadResponse as error:
            self.leave(error)

    def _receive(self, event: pb.Event, kind: str | None) -> None:
        if kind == "opened":
            self._on_opened(event.opened)
        elif kind == "resumed":
            self._on_resumed(event.resumed)
        elif kind == "credit":
            self._on_credit(event.credit.up_to_sample)
        elif kind == "error":
            self._on_error(event.error)
        elif self.inbox.count(event.delivery, event.ByteSize()):
            self._hold = False
            self._on_delivery(event, kind)

    def _on_opened(self, opened: pb.Opened) -> None:
        self.opened = opened
        self._credit = opened.up_to_sample
        self._begin()

    def _on_resumed(self, resumed: pb.Resumed) -> None:
        self._lost_at = None
        self.resumes += 1
        if self.phase is Phase.RESUMING:
            self.log.rewind(resumed.next_sequence, resumed.flushes, closing=resumed.closing)
        self._credit = max(self._credit, resumed.up_to_sample)
        self.inbox.acknowledged()  # by Resume
        self._hold = False
        self._begin()

    def _begin(self) -> None:
        if self.phase is Phase.LEAVING:
            self.log.end()
        else:
            self.phase = Phase.OPEN

    def _on_credit(self, up_to: int) -> None:
        self._credit = max(self._credit, up_to)
        if self.opened is not None:
            # Credit is never more than the buffer ahead of what the server has, and at first it
            # has nothing.
            self.log.confirm(up_to - self.opened.up_to_sample, self._seen_flushes)

    def _on_delivery(self, event: pb.Event, kind: str | None) -> None:
        if kind == "result":
            self._deliver(read_result(event.result), event.result.end_sample)
        elif kind == "gap":
            self._deliver(read_gap(event.gap), event.gap.end_sample)
        elif kind == "flushed":
            self._seen_flushes += 1
            flushed = Flushed(event.flushed.windows, event.flushed.samples)
            self._flushes[self._seen_flushes] = flushed
            self.log.confirm(event.flushed.samples, self._seen_flushes)
        elif kind == "closed":
            self._on_closed(event.closed)

    def _deliver(self, event: StreamEvent, end_sample: int) -> None:
        self.log.confirm(end_sample, self._seen_flushes)
        self.inbox.put(event)

    def _on_closed(self, closed: pb.Closed) -> None:
        self.summary = read_closed(closed)
        self.log.clear()
        if closed.reason == pb.Closed.STOPPING and self.phase is not Phase.LEAVING:
            self.error = Unavailable(
                grpc.StatusCode.UNAVAILABLE,
                f"the server stops; it received {closed.samples} samples of {self.log.position}",
                "STOPPING",
            )
        self.phase = Phase.CLOSED if self._opening.ttl_ms else Phase.ENDED

    def _on_error(self, told: pb.Error) -> None:
        details = f"{told.field}: {told.message}" if told.field else told.message
        status = _STATUS.get(told.code, grpc.StatusCode.UNKNOWN)
        error = error_of(status, details, told.reason)
        if self.phase is Phase.LEAVING:
            if told.ended:
                self.phase = Phase.ENDED
        elif told.reason == "TOO_MANY_FLUSHES":
            self.log.take_back()
            # Unless room was made meanwhile, some will be with the next delivery, or its ack.
            self._hold = self.inbox.acked == self._acked_at_flush
        elif not told.ended:
            # Whatever was refused, what follows it would not fit any more.
            self.leave(error)
        elif self.phase is Phase.RESUMING and status is grpc.StatusCode.UNAVAILABLE:
            self.phase = Phase.DETACHED  # this server stops: there may be another connection
        elif self.opened is not None:
            self._fail(SessionLost(status, details, told.reason))
        else:
            self._fail(error)

    # What becomes of the connection.

    def detach(self, error: HeadraceError, now: float, *, final: bool) -> None:
        """The connection has broken with `error`. final: another one would not help."""
        if self.phase is Phase.LEAVING or self.phase is Phase.CLOSED:
            self.phase = Phase.ENDED
        elif self.phase is Phase.ENDED:
            return
        elif self.opened is None:
            self._fail(error)
        else:
            self.phase = Phase.DETACHED
            if self._lost_at is None:
                self._lost_at = now
            ttl = self._opening.ttl_ms / 1e3
            if final or now - self._lost_at >= ttl:
                why = f"no connection for {ttl:g} s, its time to live" if ttl else "time to live 0"
                lost = SessionLost(error.code, f"{error.details} ({why})", error.reason)
                lost.__cause__ = error
                self._fail(lost)

    def _fail(self, error: HeadraceError) -> None:
        self.error = error
        self.log.clear()
        self.phase = Phase.ENDED


def _nobody() -> None:
    """Nobody waits."""


def _command(entry: Entry) -> pb.Command:
    if isinstance(entry, Samples):
        chunk = entry.chunk
        return pb.Command(
            chunk=pb.Chunk(
                sequence=entry.position, data=chunk.data, timestamp_ns=chunk.timestamp_ns
            )
        )
    if isinstance(entry, Flush):
        return pb.Command(flush=pb.Flush())
    return pb.Command(close=pb.Close())
