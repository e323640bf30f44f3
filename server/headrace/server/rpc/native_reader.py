"""Who reads the calls that pygrpc-native has received: a thread, or the event loop itself.

Theory of operation. A thread waits for calls and gives all that have come to the event loop, which
it wakes for that. Where everything is answered within microseconds, since its batches run on the
event loop's thread, waking two threads for each group is most of what a call costs. So while
answers are brief the loop reads by itself: between its turns it waits for calls, a millisecond at
most, and the thread waits to be told to go on. What others bring to the loop meanwhile (timers,
other connections, executors' threads) may wait for that millisecond. So the loop reads only while
nothing is outstanding, or for some turns more, in which brief batches run; what is not answered
by then is waited for by the thread. Measured: docs/decisions/0019-calls-read-on-the-loop.md.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Sequence, Sized
from typing import Any, Final, Protocol

from headrace.server.precedence import go_first

Events = Sequence[tuple[Any, ...]]

# Calls taken at once. Reading is cheap: more would only delay the first of them.
_GROUP: Final = 64
# Answers are brief when so many times in a row everything was answered in so many seconds; when it
# turns out not to be so, that must be made good by so many more.
_OFTEN: Final = 16
_BRIEF: Final = 0.001
_SPOILT: Final = 64
# The loop waits for so many milliseconds, and so often in vain; and goes on through so many turns
# in which not everything is answered. The runner lets arrivals settle for twelve.
_WAIT_MS: Final = 1
_IN_VAIN: Final = 3
_TURNS: Final = 32


class Front(Protocol):
    """What is asked of pygrpc_native.NativeGrpcFront."""

    def recv_batch_details(self, most: int, timeout_ms: int | None = None) -> Events | None:
        """What has come, or comes within the time; None once the front is closed."""


class Reader:
    """Gives what comes to `arrived`, on the event loop's thread.

    outstanding: the calls that were given and are not answered yet.
    """

    def __init__(
        self,
        front: Front,
        arrived: Callable[[Events], None],
        outstanding: Sized,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._front = front
        self._arrived = arrived
        self._outstanding = outstanding
        self._clock = clock
        self._loop: asyncio.AbstractEventLoop | None = None
        self._since = 0.0
        self._brief = 0
        self._yours = threading.Semaphore(0)

    def start(self) -> None:
        """Reads until the front is closed. Called in the event loop."""
        self._loop = asyncio.get_running_loop()
        threading.Thread(target=self._read_there, name="grpc", daemon=True).start()

    def all_answered(self) -> None:
        """To be told whenever nothing is outstanding any more."""
        brief = self._clock() - self._since < _BRIEF
        self._brief = min(self._brief + 1, _OFTEN) if brief else min(self._brief, 0)

    def _read_there(self) -> None:
        assert self._loop is not None
        go_first()
        while (events := self._front.recv_batch_details(_GROUP)) is not None:
            here = self._brief >= _OFTEN
            try:
                self._loop.call_soon_threadsafe(self._take_over if here else self._take, events)
            except RuntimeError:  # the loop is closed: nobody is left to answer
                return
            if here:
                self._yours.acquire()

    def _take(self, events: Events) -> None:
        if not self._outstanding:
            self._since = self._clock()
        self._arrived(events)

    def _take_over(self, events: Events) -> None:
        try:
            self._take(events)
        finally:  # else nobody would ever read again
            self._read_here(0, 0)

    def _read_here(self, in_vain: int, turns: int) -> None:
        """Reads in place of the thread. in_vain: how often in a row nothing has come. turns: for
        how many not everything has been answered."""
        assert self._loop is not None
        going_on = False
        try:
            waits = not self._outstanding
            turns = 0 if waits else turns + 1
            if turns > _TURNS:
                self._brief = -_SPOILT
            elif in_vain < _IN_VAIN:
                events = self._front.recv_batch_details(_GROUP, _WAIT_MS if waits else 0)
                going_on = events is not None
                in_vain = in_vain + 1 if waits and not events else 0
                if events:
                    self._take(events)
        finally:
            if going_on:
                self._loop.call_soon(self._read_here, in_vain, turns)
            else:
                self._yours.release()
