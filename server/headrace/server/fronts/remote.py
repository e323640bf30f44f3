"""ModelInfer in a front process: takes messages apart, hands them over, and joins answers.

Theory of operation. A call becomes a record and a future; the records of one turn of the event loop
go to the model process as one message, and answers come back likewise. What a call may ask, whether
it may, and every figure that is counted of it is the model process's affair: so there is one truth
for all fronts. Large tensors go through an arena that this process writes, large responses through
one that it reads.
"""

from __future__ import annotations

import asyncio
import mmap
import time
from collections.abc import Callable
from functools import partial
from itertools import count
from typing import Any, NamedTuple

from google.protobuf.message import DecodeError

from headrace.server.errors import Draining, ModelProcessAway
from headrace.server.fronts.arena import Writer
from headrace.server.fronts.link import END, HELLO, Link
from headrace.server.fronts.names import AWAY, INLINE
from headrace.server.fronts.records import Heads, heard
from headrace.server.rpc.calls import abort, caller_of
from headrace.server.rpc.guard import Context, shown_by
from headrace.server.rpc.wire import split
from headrace.server.security.access import Shown
from headrace.server.telemetry.sampling import Metadata

_TRACE_KEYS = ("traceparent", "tracestate", "baggage")
_ENDED = "the model process ended before it had answered"


class Asked(NamedTuple):
    """A call that was handed over. Its future ends with the response, or an error of the table."""

    number: int
    future: asyncio.Future[bytes]


class Remote:
    """The connection to one model process, from when it is made until it is lost.

    lost: is called once, when the process or its patience has ended. ended: when it has answered
    all that it will.
    """

    def __init__(self, requests: Writer, responses: mmap.mmap, lost: Callable[[], None]) -> None:
        self.link = Link(self._received, self._lost, self._gather)
        self.ended = asyncio.Event()
        self._requests = requests
        self._responses = responses
        self._when_lost = lost
        self._loop = asyncio.get_running_loop()
        self._heads = Heads()
        self._numbers = count()
        self._waiting: dict[int, asyncio.Future[bytes]] = {}
        self._calls: list[tuple[Any, ...]] = []
        self._left: list[int] = []
        self._given: list[int] = []
        self._identities = self._traces = False
        self.alive = True

    def begin(
        self,
        data: bytes,
        metadata: Callable[[], Metadata | None],
        remaining: float | None,
        caller: str,
        shown: Callable[[], Shown],
    ) -> Asked:
        """Hands over a call. Raises ModelProcessAway, Draining."""
        arrival = time.monotonic()
        if not self.alive:
            raise ModelProcessAway(AWAY)
        if self.ended.is_set():
            raise Draining("the server is shutting down")
        head: int | bytes | None
        try:
            parts = split(data)
            head, id_, raw = self._heads.sent(parts.head), parts.id, self._placed(parts.raw)
        except DecodeError as error:
            head, id_, raw = None, str(error), []
        extra = None
        if self._identities or self._traces:
            extra = self._extra(metadata, shown)
        asked = Asked(next(self._numbers), self._loop.create_future())
        self._waiting[asked.number] = asked.future
        self._calls.append((asked.number, head, id_, raw, arrival, remaining, caller, extra))
        self.link.send_soon()
        return asked

    def left(self, asked: Asked) -> None:
        """The caller has gone: nobody waits for what was handed over."""
        if self._waiting.get(asked.number) is asked.future:  # not of a process that was before
            del self._waiting[asked.number]
            self._left.append(asked.number)
            self.link.send_soon()

    def _placed(self, raw: Any) -> Any:
        """Where the raw tensors are to be read."""
        sizes = [len(view) for view in raw]
        if sum(sizes) <= INLINE:
            return raw
        offset = self._requests.put(raw, sizes, apart=True)
        return raw if offset is None else (offset, sizes)

    def _extra(self, metadata: Callable[[], Metadata | None], shown: Callable[[], Shown]) -> Any:
        traced = [
            (key, value)
            for key, value in (metadata() or () if self._traces else ())
            if key in _TRACE_KEYS
        ]
        token, names = shown() if self._identities else (None, ())
        return traced, token, list(names)

    def _gather(self) -> tuple[Any, ...]:
        message = self._calls, self._left, self._given
        self._calls, self._left, self._given = [], [], []
        return message

    def _received(self, message: tuple[Any, ...]) -> None:
        kind = message[0]
        if kind == HELLO:
            _, self._identities, self._traces = message
            return
        if kind == END:
            self.ended.set()
            return
        _, answers, given = message
        for offset in given:
            self._requests.slots.give(offset)
        for number, *answer in answers:
            self._answered(self._waiting.pop(number, None), answer)
        if self._given:
            self.link.send_soon()

    def _answered(self, future: asyncio.Future[bytes] | None, answer: list[Any]) -> None:
        """`future`: None when the caller has left meanwhile."""
        response: Any = None
        if len(answer) == 2:
            offset, size = answer
            self._given.append(offset)
            response = self._responses[offset : offset + size] if future is not None else None
        elif len(answer) == 1:
            (response,) = answer
        if future is None or future.done():
            return
        if response is None:
            future.set_exception(heard(*answer))
        else:
            future.set_result(response)

    def _lost(self) -> None:
        self.alive = False
        waiting, self._waiting = self._waiting, {}
        for future in waiting.values():
            if not future.done():
                future.set_exception(ModelProcessAway(_ENDED))
        self._when_lost()


class RemoteInference:
    """Has the methods that a transport asks of the service which answers ModelInfer, whichever
    model process is there. remote: None while there is none. latest: when the last call came, by
    the monotonic clock."""

    def __init__(self) -> None:
        self.remote: Remote | None = None
        self.latest = time.monotonic()

    def begin_call(
        self,
        data: bytes,
        metadata: Callable[[], Metadata | None],
        remaining: float | None,
        caller: str,
        shown: Callable[[], Shown],
    ) -> Asked:
        self.latest = time.monotonic()
        if self.remote is None:
            raise ModelProcessAway(AWAY)
        return self.remote.begin(data, metadata, remaining, caller, shown)

    def finish(self, asked: Asked) -> bytes:
        return asked.future.result()

    def sent(self, asked: Asked) -> None:
        """What a request holds is counted where the models are."""

    def left(self, asked: Asked) -> None:
        asked.future.cancel()
        if self.remote is not None:
            self.remote.left(asked)

    async def model_infer(self, data: bytes, context: Context) -> bytes:
        try:
            remaining, caller = context.time_remaining(), caller_of(context)
            shown = partial(shown_by, context)
            asked = self.begin_call(data, context.invocation_metadata, remaining, caller, shown)
            try:
                return await asked.future
            except asyncio.CancelledError:
                self.left(asked)
                raise
        except Exception as error:  # noqa: BLE001 (the table knows what each error means)
            await abort(context, error)
