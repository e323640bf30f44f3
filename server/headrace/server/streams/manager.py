"""All sessions of the server: opened, fed to their models, detached, resumed, ended.

Everything here runs on the event loop and awaits nothing, but for `drain`: a window is submitted by
the call that completed it, and its answer is handled by the callback that brings it.
"""

from __future__ import annotations

import asyncio
import hmac
import logging
import secrets
from collections.abc import Callable
from functools import partial
from typing import Protocol

from headrace.batcher import errors as batcher
from headrace.batcher.callers import Answer
from headrace.batcher.promise import Promise
from headrace.server import errors
from headrace.server.errors import StreamRefused
from headrace.server.exchange import InferenceResult, SequencePlace
from headrace.server.inference import Submitted, submit
from headrace.server.models.registry import Registry
from headrace.server.streams.budget import StateBudget, StreamMemory
from headrace.server.streams.deliveries import Work
from headrace.server.streams.events import Closed, Computed, Event, Gap, GapReason, Result
from headrace.server.streams.options import Overload
from headrace.server.streams.session import Session
from headrace.server.streams.terms import OpenRequest, StreamLimits, Terms, agree
from headrace.server.telemetry.statistics import StreamStatistics

_log = logging.getLogger(__name__)

_ID_BYTES, _TOKEN_BYTES = 12, 24
_SHORTEST_WAIT = 0.001  # seconds
_LATE = (batcher.Expired, batcher.DeadlineTooShort, errors.DeadlineExceeded)
_GONE = (
    errors.ModelNotFound,
    errors.ModelUnavailable,
    batcher.Draining,
    batcher.NoExecutor,
)

Encode = Callable[[int, Event], bytes]


class Connection(Protocol):
    """What holds sessions on behalf of a client."""

    def ready(self, live: LiveSession) -> None:
        """`live` may have something to send."""

    def taken(self, live: LiveSession) -> None:
        """`live` was resumed elsewhere."""


class LiveSession:
    """A session, who holds it, and its runs."""

    def __init__(self, terms: Terms, version: str, encode: Encode, memory: StreamMemory) -> None:
        self.id = secrets.token_bytes(_ID_BYTES)
        number = int.from_bytes(self.id)
        self.place, self.first_place = SequencePlace(number), SequencePlace(number, start=True)
        self.token = secrets.token_bytes(_TOKEN_BYTES) if terms.options.ttl else b""
        self.terms = terms
        self.version = version
        self.state_inputs = terms.state_inputs
        self.session = Session(terms.options, encode, terms.states, memory)
        self.connection: Connection | None = None
        self.handle = 0
        self.runs: set[Promise[Answer]] = set()
        self.expiry: asyncio.TimerHandle | None = None
        self.retry: asyncio.TimerHandle | None = None

    def __repr__(self) -> str:
        where = "detached" if self.connection is None else f"handle {self.handle}"
        return f"<LiveSession: {self.terms.recipe.model}, {where}, {self.session!r}>"


class SessionManager:
    """`encode` makes what is sent of a delivery's number and event; `clock` is monotonic."""

    def __init__(
        self,
        registry: Registry,
        limits: StreamLimits,
        budget: StateBudget,
        encode: Encode,
        clock: Callable[[], float],
    ) -> None:
        self.limits = limits
        self.memory = StreamMemory(limits.nbytes, limits.sessions)
        self.statistics = StreamStatistics()
        self._registry = registry
        self._budget = budget
        self._encode = encode
        self.clock = clock
        self._sessions: dict[bytes, LiveSession] = {}
        self.draining = False
        self._progress = asyncio.Event()

    def __len__(self) -> int:
        return len(self._sessions)

    # Coming and going.

    def open(self, asked: OpenRequest, connection: Connection, handle: int) -> LiveSession:
        """Raises StreamRefused, InvalidInput, ModelNotFound, ModelUnavailable, Draining."""
        self._check_draining()
        if len(self._sessions) >= self.limits.sessions:
            raise StreamRefused(
                "TOO_MANY_SESSIONS",
                "open",
                f"expected at most {self.limits.sessions} sessions on this server",
            )
        model = self._registry.get(asked.model, asked.version)
        terms = agree(model, asked, self.limits)
        self._budget.reserve(terms.kept_bytes)
        live = LiveSession(terms, model.spec.version, self._counted, self.memory)
        live.connection, live.handle = connection, handle
        self._sessions[live.id] = live
        self.statistics.sessions = len(self._sessions)
        return live

    def resume(
        self,
        id_: bytes,
        token: bytes,
        delivery: int,
        connection: Connection,
        handle: int,
        admit: Callable[[str], object] = lambda _: None,
    ) -> LiveSession:
        """Hands the session to `connection`, whoever held it. Raises StreamRefused, Draining, and
        what `admit` raises of the session's model."""
        self._check_draining()
        live = self._sessions.get(id_)
        # One answer to all that is wrong: which of it, is nobody's business.
        known = live is not None and hmac.compare_digest(live.token, token)
        if live is None or not known or not live.token:
            raise StreamRefused(
                "UNKNOWN_SESSION",
                "resume",
                "expected the id and token of a living session; its time to live may be over",
            )
        admit(live.terms.recipe.model)
        live.session.resume(delivery)
        if live.connection is not None and (live.connection, live.handle) != (connection, handle):
            live.connection.taken(live)
        if live.expiry is not None:
            live.expiry.cancel()
            live.expiry = None
        live.connection, live.handle = connection, handle
        self.pump(live)
        return live

    def detach(self, live: LiveSession) -> None:
        """The connection is gone: the session waits for another, for as long as it may live."""
        live.connection = None
        ttl = live.terms.options.ttl
        if self.draining or not ttl:
            self._end(live)
        else:
            live.expiry = asyncio.get_running_loop().call_later(ttl, self._end, live)

    def sent(self, live: LiveSession) -> None:
        """Deliveries were taken or acknowledged: there is room for more, or nothing left to do."""
        if live.session.finished:
            self._end(live)
        elif live.session.waits:
            self.pump(live)

    def _end(self, live: LiveSession) -> None:
        if self._sessions.pop(live.id, None) is None:
            return
        for timer in (live.expiry, live.retry):
            if timer is not None:
                timer.cancel()
        for run in list(live.runs):
            run.cancel()
        self._budget.release(live.terms.kept_bytes)
        live.session.holding.let_go()
        self.statistics.sessions = len(self._sessions)
        live.connection = None
        self._progress.set()

    def _check_draining(self) -> None:
        if self.draining:
            raise errors.Draining("the server is shutting down")

    # Running windows.

    def pump(self, live: LiveSession) -> None:
        """Submits what may run now."""
        session, now = live.session, self.clock()
        while (work := session.next_work(now)) is not None:
            self._start(live, work, now)
        due = session.retry_at
        if due is not None and live.retry is None:
            delay = max(0.0, due - now)
            live.retry = asyncio.get_running_loop().call_later(delay, self._try_again, live)
        if live.connection is not None and (session.has_unsent or session.wants_credit):
            live.connection.ready(live)

    def _try_again(self, live: LiveSession) -> None:
        live.retry = None
        self.pump(live)

    def _start(self, live: LiveSession, work: Work, now: float) -> None:
        place = live.first_place if work.begins else live.place
        request = live.terms.recipe.request(work.window.arrays, work.arrival, work.states, place)
        try:
            submitted = submit(self._registry, request)
        except Exception as error:  # noqa: BLE001 (each is told in the window's gap)
            self._failed(live, work, error, now)
            return
        live.runs.add(submitted.future)
        submitted.future.add_done_callback(partial(self._ended, live, work, submitted))

    def _ended(
        self,
        live: LiveSession,
        work: Work,
        submitted: Submitted,
        future: Promise[Answer],
    ) -> None:
        live.runs.discard(future)
        if future.cancelled():
            return
        error = future.exception()
        if error is not None:
            self._failed(live, work, error, self.clock())
        else:
            live.session.complete(work.index, _computed(submitted.result(future.result())))
        if live.id in self._sessions:
            self.pump(live)

    def _failed(self, live: LiveSession, work: Work, error: BaseException, now: float) -> None:
        options, session = live.terms.options, live.session
        reason = GapReason.FAILED
        if isinstance(error, batcher.Overloaded):
            if options.objective == float("inf") and options.overload is not Overload.LATEST_ONLY:
                # The batcher counts from the request's arrival, which may be long ago.
                due = max(now + _SHORTEST_WAIT, work.arrival + error.retry_after)
                session.retry(work.index, due)
                return
            late = options.objective != float("inf")
            reason = GapReason.LATE if late else GapReason.OVERLOADED
        elif isinstance(error, _LATE):
            reason = GapReason.LATE
        elif isinstance(error, _GONE):
            reason = GapReason.STOPPING if self.draining else GapReason.UNAVAILABLE
        elif not isinstance(error, batcher.ExecutionFailed | errors.ServerError):
            _log.error("unexpected error", exc_info=error)
        message = errors.message_of(error) if isinstance(error, Exception) else repr(error)
        session.fail(work.index, reason, message)

    def _counted(self, delivery: int, event: Event) -> bytes:
        if isinstance(event, Result):
            self.statistics.answered += 1
        elif isinstance(event, Gap):
            count = event.span.end_window - event.span.first_window
            self.statistics.dropped[event.reason.value] += count
        elif isinstance(event, Closed):
            self._progress.set()
        return self._encode(delivery, event)

    # The end.

    async def drain(self) -> None:
        """Takes no more; returns once every client that listens has been told all there is."""
        self.draining = True
        detached = [live for live in self._sessions.values() if live.connection is None]
        if detached:
            _log.warning("%d detached sessions end with the server", len(detached))
        for live in detached:
            self._end(live)
        for live in list(self._sessions.values()):
            live.session.stop()
            self.pump(live)
        await self._all_told()

    async def give_up(self) -> None:
        """What still waits or runs is reported in gaps, and every session is closed."""
        for live in list(self._sessions.values()):
            live.session.give_up()
            for run in list(live.runs):
                run.cancel()
            self.pump(live)
        await self._all_told()

    async def _all_told(self) -> None:
        while any(not live.session.told for live in self._sessions.values()):
            self._progress.clear()
            await self._progress.wait()

    def told(self) -> None:
        """A connection has sent something: `drain` may be over."""
        if self.draining:
            self._progress.set()


def _computed(result: InferenceResult) -> Computed:
    answer = result.answer
    return Computed(
        result.outputs,
        result.states,
        answer.queue_seconds,
        answer.completion.seconds,
        len(answer.batch.requests),
    )
