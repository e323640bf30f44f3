"""What one session tells its client, in the order of the signal.

Each window that runs, each gap and each end has a place in that order, a slot. A slot whose window
still runs holds up those behind it; what is settled as far as nothing before it still runs gets a
delivery number and moves on to the outbox.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace

from headrace.inference.tensors import Array
from headrace.server.contract import size_of
from headrace.server.streams.budget import Holding
from headrace.server.streams.events import Closed, Computed, Event, Gap, GapReason, Result
from headrace.server.streams.outbox import Outbox
from headrace.server.streams.window import Span, Window

# Of a result beside its tensors, about.
_EVENT_BYTES = 256
_NO_ROOM = "no memory for its result: others have not been taken (max_stream_bytes)"


@dataclass(frozen=True, slots=True)
class Work:
    """A window to run. arrival: of its last sample, in seconds of the monotonic clock. start_ns and
    end_ns: its span by the client's. states: what the window before left behind. begins: whether no
    window has been answered yet."""

    window: Window
    arrival: float
    start_ns: int
    end_ns: int
    states: Sequence[Array]
    begins: bool

    @property
    def index(self) -> int:
        return self.window.span.first_window

    @property
    def nbytes(self) -> int:
        return sum(array.nbytes for array in self.window.arrays)


@dataclass(slots=True)
class _Slot:
    """`event` is None as long as its window runs. nbytes: of its result, as long as one before it
    runs."""

    event: Event | None = None
    nbytes: int = 0


class Deliveries:
    """`answered` and `dropped` count windows; `running` has those that run, by index; sizes are
    accounted in `holding`."""

    def __init__(self, outbox: Outbox, holding: Holding) -> None:
        self.outbox = outbox
        self.running: dict[int, tuple[Work, _Slot]] = {}
        self.answered = self.dropped = 0
        self._holding = holding
        self._slots: deque[_Slot] = deque()
        self._gap: Gap | None = None
        self._largest = 0  # result so far, bytes

    def __len__(self) -> int:
        """How many the client has not got, or not acknowledged."""
        return len(self._slots) + len(self.outbox)

    @property
    def has_gap(self) -> bool:
        """Whether a gap may still grow."""
        return self._gap is not None

    @property
    def told(self) -> bool:
        """Whether everything has been sent, if not acknowledged."""
        return not self._slots and not self.outbox.has_unsent

    @property
    def expected(self) -> int:
        """Bytes of the results of what runs, if they are as large as the largest so far."""
        return len(self.running) * self._largest

    @property
    def untaken(self) -> int:
        """Bytes of results that the client has not taken, those of what runs among them."""
        return self.outbox.nbytes + self._holding.in_slots + self.expected

    def begin(self, work: Work) -> None:
        """It runs from now on, and has its place."""
        self.settle_gap()
        slot = _Slot()
        self._slots.append(slot)
        self.running[work.index] = (work, slot)
        self._holding.in_runs += work.nbytes

    def complete(self, index: int, computed: Computed) -> bool:
        """Window `index` has its result. Returns False if it was given up meanwhile."""
        ended = self._ended(index)
        if ended is None:
            return False
        work, slot = ended
        nbytes = sum(size_of(array) for _, array in computed.outputs) + _EVENT_BYTES
        expected, self._largest = self._largest, max(self._largest, nbytes)
        if self._holding.has_room(nbytes - expected):
            slot.event = Result(work.window.span, work.start_ns, work.end_ns, computed)
            slot.nbytes = nbytes
            self._holding.in_slots += nbytes
            self.answered += 1
        else:
            slot.event = Gap(work.window.span, GapReason.OVERLOADED, _NO_ROOM)
            self.dropped += 1
        self._settle()
        return True

    def fail(self, index: int, reason: GapReason, message: str) -> None:
        """Window `index` has no result, for good."""
        ended = self._ended(index)
        if ended is None:
            return
        work, slot = ended
        slot.event = Gap(work.window.span, reason, message)
        self.dropped += 1
        self._settle()

    def drop(self, span: Span, count: int, reason: GapReason, message: str) -> None:
        """`count` windows are not run: a gap, which grows as long as nothing else is told."""
        self.dropped += count
        gap = self._gap
        if gap is not None and gap.reason is reason:
            joined = replace(gap.span, end_window=span.end_window, end_sample=span.end_sample)
            self._gap = replace(gap, span=joined)
            return
        self.settle_gap()
        self._gap = Gap(span, reason, message)

    def settle_gap(self) -> None:
        """The gap, if there is one, grows no more."""
        if self._gap is not None:
            gap, self._gap = self._gap, None
            self._put(gap)

    def end(self, event: Event) -> None:
        """The end of the signal so far, or for good: told after everything before it."""
        self.settle_gap()
        self._put(event)

    def _put(self, event: Event) -> None:
        self._slots.append(_Slot(event))
        self._settle()

    def _ended(self, index: int) -> tuple[Work, _Slot] | None:
        ended = self.running.pop(index, None)
        if ended is not None:
            self._holding.in_runs -= ended[0].nbytes
        return ended

    def _settle(self) -> None:
        """Gives numbers to what is done, as far as nothing before it still runs."""
        while self._slots and (event := self._slots[0].event) is not None:
            self._holding.in_slots -= self._slots.popleft().nbytes
            if isinstance(event, Closed):  # windows that still ran when the mark was passed
                event = replace(event, answered=self.answered, dropped=self.dropped)
            self.outbox.put(event)
