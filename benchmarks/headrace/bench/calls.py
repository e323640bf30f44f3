"""Requests under way, and the notes of those that have ended: what a request costs the client."""

from __future__ import annotations

import asyncio
import math
from array import array
from collections.abc import Callable
from dataclasses import dataclass

from headrace.bench.recorder import FIRST_ERROR, GOOD, LATE, UNFINISHED
from headrace.bench.transports import OK, Prepared, Transport

Then = Callable[[str], None]
_EXPIRED = "DEADLINE_EXCEEDED"


@dataclass(frozen=True, slots=True)
class Kind:
    """One of a job's requests, made ready: several inputs to take in turn. `deadline` in seconds
    from the due time."""

    samples: tuple[Prepared, ...]
    deadline: float | None = None


class Calls:
    """Sends by `transport`, and notes a row (see `recorder`) for each call that has ended."""

    def __init__(self, loop: asyncio.AbstractEventLoop, transport: Transport) -> None:
        self.in_flight: set[Call] = set()
        self.statuses: list[str] = []
        self.now = loop.time
        self._transport = transport
        self._rows = array("d")
        self._codes: dict[str, int] = {}

    def send(self, due: float | None, kind: Kind, sample: int, then: Then | None = None) -> None:
        """Sends now what was due at `due` (None: now); `then` is called with the status once it has
        ended. What is past its deadline already fails without being sent."""
        call = self.begin(due, kind.deadline, then)
        left = None if kind.deadline is None else call.expires - call.sent
        if left is not None and left <= 0:
            call(_EXPIRED)
        else:
            self._transport.send(kind.samples[sample % len(kind.samples)], left, call)

    def begin(self, due: float | None, deadline: float | None, then: Then | None = None) -> Call:
        """A call that is sent now by other means; to be called with its status."""
        now = self.now()
        due = now if due is None else due
        expires = math.inf if deadline is None else due + deadline
        call = Call(self, due, now, expires, then)
        self.in_flight.add(call)
        return call

    def note(self, call: Call, status: str) -> None:
        """`call` has ended with `status`. A second ending is ignored: it was given up meanwhile."""
        if call not in self.in_flight:
            return
        self.in_flight.remove(call)
        now = self.now()
        in_time = GOOD if now <= call.expires else LATE
        code = in_time if status == OK else self._code(status)
        self._rows.extend((call.due, call.sent, now, code))

    def give_up(self) -> None:
        """Notes what is still under way as unfinished, or as expired where its deadline is past."""
        now = self.now()
        for call in self.in_flight:
            code = UNFINISHED if now <= call.expires else self._code(_EXPIRED)
            self._rows.extend((call.due, call.sent, now, code))
        self.in_flight.clear()

    def take(self) -> bytes:
        """The rows since the last time, as float64."""
        rows = self._rows.tobytes()
        del self._rows[:]
        return rows

    def _code(self, status: str) -> int:
        code = self._codes.get(status)
        if code is None:
            code = self._codes[status] = FIRST_ERROR + len(self.statuses)
            self.statuses.append(status)
        return code


class Call:
    """One request under way; called with its status by the transport."""

    __slots__ = ("_calls", "_then", "due", "expires", "sent")

    def __init__(
        self, calls: Calls, due: float, sent: float, expires: float, then: Then | None
    ) -> None:
        self._calls = calls
        self._then = then
        self.due, self.sent, self.expires = due, sent, expires

    def __call__(self, status: str) -> None:
        self._calls.note(self, status)
        if self._then is not None:
            self._then(status)
