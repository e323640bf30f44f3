"""One session: a synchronous state machine between its client and the model.

Theory of operation. Chunks go into the windower. Whoever owns the session asks `next_work` for
windows to run, and tells how each ended by `complete`, `fail` or `retry`. What is to be told to
the client goes through two queues: slots, in the order of the signal, wait for their runs to end;
settled ones get a delivery number and move on to the outbox. Both together are bounded: with so
many deliveries outstanding no more windows are run, and samples wait, until the session's overload
choice bites.

Nothing here knows asyncio, gRPC or the clock: `now` is an argument, seconds of a monotonic clock.
"""

from __future__ import annotations

import math
import sys
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace

from headrace.inference.tensors import Array
from headrace.server.contract import size_of
from headrace.server.errors import StreamRefused
from headrace.server.streams.budget import Holding, StreamMemory
from headrace.server.streams.chunks import check_finite, read_chunk
from headrace.server.streams.events import Closed, Computed, Event, Flushed, Gap, GapReason, Result
from headrace.server.streams.options import Overload, SessionOptions
from headrace.server.streams.outbox import Encode, Outbox
from headrace.server.streams.timeline import ENTRY_BYTES, Timeline
from headrace.server.streams.window import Span, Tail, Window, Windower

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
    """A place in the order of deliveries; `event` is None as long as its window runs. nbytes: of
    its result, as long as one before it runs."""

    event: Event | None
    work: Work | None = None
    nbytes: int = 0


class Session:
    """See the module. `encode` makes of a delivery's number and event what is sent; `memory` is
    shared by all sessions, without it there is no bound but the session's own."""

    def __init__(
        self,
        options: SessionOptions,
        encode: Encode,
        states: Sequence[Array] = (),
        memory: StreamMemory | None = None,
    ) -> None:
        self.options = options
        self.states = states
        self.flushes = 0
        self.closing = False
        self.closed = False
        self.windower = Windower(
            options.framing,
            [signal.datatype.numpy for signal in options.signals],
            [signal.channels for signal in options.signals],
        )
        self._slots: deque[_Slot] = deque()
        self._running: dict[int, _Slot] = {}
        self._retries: deque[tuple[float, Work]] = deque()
        self._gap: Gap | None = None
        self._asked = True
        self._outbox = Outbox(encode, keep=options.ttl > 0)
        self._timeline = Timeline(options.rate)
        self._announced = options.buffer
        self._answered = self._dropped = 0
        self._largest = 0  # result so far, bytes
        self._last_timestamp: int | None = None
        self.holding = Holding(memory or StreamMemory(sys.maxsize, 1))

    def __repr__(self) -> str:
        w = self.windower
        return f"<Session: {w.received} samples, {w.windows} windows, {len(self._running)} running>"

    # What the client sends.

    def chunk(
        self, sequence: int, data: Sequence[bytes], timestamp: int | None, now: float
    ) -> None:
        """Takes the next samples. Raises StreamRefused, and then has taken nothing."""
        self._check_open()
        received = self.windower.received
        if sequence != received:
            reason = "SEQUENCE_GAP" if sequence > received else "SEQUENCE_REPEATED"
            raise StreamRefused(reason, "chunk.sequence", f"expected {received}, got {sequence}")
        arrays = read_chunk(self.options.signals, data)
        count = len(arrays[0])
        self._check_room(received, count)
        self.holding.check(self.windower.growth(count) + 2 * ENTRY_BYTES)
        last = self._last_timestamp
        if timestamp is not None and last is not None and timestamp < last:
            raise StreamRefused(
                "TIME_WENT_BACK", "chunk.timestamp_ns", f"expected {last} or later, got {timestamp}"
            )
        if not self.options.allow_non_finite:
            check_finite(self.options.signals, arrays)
        if timestamp is not None:
            self._last_timestamp = timestamp
            self._timeline.anchor(received, timestamp, self.windower.released)
        if count:
            if not self.windower.waiting and not self.windower.marks:
                self._timeline.forget_all_arrivals()
            self._append(arrays)
            self._timeline.arrived(self.windower.received, now)
        self._give_way()
        self._account()

    def flush(self, now: float) -> None:
        """Makes the last window of what was received. Raises StreamRefused."""
        self._check_open()
        most = self.options.outstanding
        # Each will be a delivery, and some are even where the client is to take others first.
        if self.windower.marks >= most or self._outstanding() >= 2 * most:
            raise StreamRefused(
                "TOO_MANY_FLUSHES",
                "flush",
                f"expected at most {most} flushes that wait for their windows, or to be taken",
            )
        self.flushes += 1
        self._flush(now)

    def close(self, now: float) -> None:
        """Flushes; the session ends once everything is delivered. Raises StreamRefused."""
        self._check_open()
        self.closing = True
        self._flush(now)

    def ack(self, delivery: int) -> None:
        """What was delivered up to `delivery` has come. Raises StreamRefused."""
        self._outbox.ack(delivery)
        self._account()

    def resume(self, delivery: int) -> None:
        """Sends again what came after `delivery`. Raises StreamRefused."""
        self._outbox.resume(delivery)
        self._announced = self.up_to
        self._account()

    # What the owner does.

    def next_work(self, now: float) -> Work | None:
        """The next window to run; None when there is none, or none may be run now.

        Everything that needs no run (a flush, a gap, the end) is settled on the way.
        """
        work = self._next_work(now)
        self._account()
        return work

    def _next_work(self, now: float) -> Work | None:
        if self._retries:
            due, work = self._retries[0]
            if due > now:
                return None
            self._retries.popleft()
            return work
        windower = self.windower
        while not self.closed:
            if windower.at_mark:
                self._pass_mark()
            elif not windower.waiting or self._full():
                break
            elif late := self._late(now):
                self._drop(late, GapReason.LATE, "the latency objective passed before it could run")
            elif len(self._running) >= self.options.in_flight:
                break
            else:
                return self._cut()
        if not self._full():
            self._settle_gap()
        return None

    def complete(self, index: int, computed: Computed) -> None:
        """The run of window `index` has ended well. One that was given up meanwhile is ignored."""
        work = self._ran(index)
        if work is None:
            return
        slot = self._running.pop(index)
        if self.states:
            self.states = computed.states
        nbytes = sum(size_of(array) for _, array in computed.outputs) + _EVENT_BYTES
        expected, self._largest = self._largest, max(self._largest, nbytes)
        if self.holding.has_room(nbytes - expected):
            slot.event = Result(work.window.span, work.start_ns, work.end_ns, computed)
            slot.nbytes = nbytes
            self.holding.in_slots += nbytes
            self._answered += 1
        else:
            slot.event = Gap(work.window.span, GapReason.OVERLOADED, _NO_ROOM)
            self._dropped += 1
        self._settle()
        self._account()

    def fail(self, index: int, reason: GapReason, message: str) -> None:
        """The run of window `index` has ended without a result, for good."""
        work = self._ran(index)
        if work is None:
            return
        self._running.pop(index).event = Gap(work.window.span, reason, message)
        self._dropped += 1
        self._settle()
        self._account()

    def retry(self, index: int, due: float) -> None:
        """Window `index` found no room: `next_work` gives it again at `due`."""
        slot = self._running.get(index)
        if slot is not None and slot.work is not None:
            self._retries.append((due, slot.work))

    def stop(self) -> None:
        """Takes no more; what is complete is run, the rest of the signal is not used."""
        if not self.closing:
            self.closing, self._asked = True, False
            self.windower.flush(Tail.DROP)

    def give_up(self) -> None:
        """Ends at once: what waits or runs is reported in gaps."""
        self.stop()
        self._retries.clear()
        for index in list(self._running):
            self.fail(index, GapReason.STOPPING, "the server stops")
        while not self.closed:
            if self.windower.at_mark:
                self._pass_mark()
            else:
                self._drop(self.windower.waiting, GapReason.STOPPING, "the server stops")

    def take(self, room: int) -> list[bytes]:
        """Deliveries to send now, in order, of about `room` bytes: at least one if any waits."""
        taken = self._outbox.take(room)
        self._account()
        return taken

    @property
    def wants_credit(self) -> bool:
        """Whether the client may be short of credit, and there is more."""
        short = self._announced - self.windower.received < self.options.largest_chunk
        return short and not self.closing and self.up_to > self._announced

    def new_credit(self) -> int | None:
        """The position to announce to the client; None while the last one is good enough."""
        if not self.wants_credit:
            return None
        self._announced = self.up_to
        return self._announced

    @property
    def waits(self) -> bool:
        """Whether `next_work` may have something to do, once there is room for it."""
        return bool(self._gap or self.windower.marks or self.windower.waiting)

    @property
    def up_to(self) -> int:
        """Samples before this position may be sent."""
        windower = self.windower
        refuses = self.options.overload is Overload.REFUSE
        return (windower.released if refuses else windower.received) + self.options.buffer

    @property
    def has_unsent(self) -> bool:
        return self._outbox.has_unsent

    @property
    def finished(self) -> bool:
        """Whether the client has everything."""
        return self.closed and not self._outstanding()

    @property
    def told(self) -> bool:
        """Whether everything has been sent, if not acknowledged."""
        return self.closed and not self._slots and not self._outbox.has_unsent

    @property
    def retry_at(self) -> float | None:
        """When `next_work` may have something again, that had none now."""
        return self._retries[0][0] if self._retries else None

    # Checks of what came.

    def _check_open(self) -> None:
        if self.closing:
            why = "it was closed" if self._asked else "the server stops"
            raise StreamRefused("SESSION_CLOSING", "", f"the session takes no more: {why}")

    def _check_room(self, received: int, count: int) -> None:
        options = self.options
        if count > options.largest_chunk:
            raise StreamRefused(
                "CHUNK_TOO_LARGE",
                "chunk.data",
                f"expected at most {options.largest_chunk} samples at once, got {count}",
            )
        if received + count > self.up_to:
            raise StreamRefused(
                "CREDIT_EXCEEDED",
                "chunk.data",
                f"expected samples up to {self.up_to}, got samples up to {received + count}",
            )

    # What is held in memory.

    def _append(self, arrays: Sequence[Array]) -> None:
        windower = self.windower
        before, generation = windower.nbytes, windower.generation
        windower.append(arrays)
        if windower.generation != generation:
            self.holding.replaced(before, self._running)

    def _ran(self, index: int) -> Work | None:
        """What window `index` was run with; None if it was given up."""
        slot = self._running.get(index)
        if slot is None or slot.work is None:
            return None
        work, slot.work = slot.work, None
        self.holding.in_runs -= work.nbytes
        return work

    def _account(self) -> None:
        held = self.windower.nbytes + self._timeline.nbytes + self._outbox.nbytes
        self.holding.account(held + self.expected, self._running)

    @property
    def expected(self) -> int:
        """Bytes of the results of what runs, if they are as large as the largest so far."""
        return len(self._running) * self._largest

    # Windows, and the order of deliveries.

    def _flush(self, now: float) -> None:
        self.windower.flush()
        # The last window is complete only now.
        self._timeline.arrived(self.windower.received, now)

    def _outstanding(self) -> int:
        return len(self._slots) + len(self._outbox)

    def _full(self) -> bool:
        """Whether the client is to take something before more is run."""
        options, holding = self.options, self.holding
        untaken = self._outbox.nbytes + holding.in_slots + self.expected
        most = holding.most_untaken(options.outstanding_bytes)
        return self._outstanding() >= options.outstanding or untaken >= most

    def _give_way(self) -> None:
        """Drops what the overload choice says, after samples have come."""
        windower, options = self.windower, self.options
        if options.overload is Overload.LATEST_ONLY and windower.waiting > 1:
            self._drop(windower.waiting - 1, GapReason.OVERLOADED, "a newer window came")
        if options.overload is Overload.REFUSE:
            return
        while (excess := windower.received - windower.released - options.buffer) > 0:
            if windower.at_mark:
                self._pass_mark()
                continue
            count = min(math.ceil(excess / options.framing.hop), windower.waiting)
            if not count:
                return
            self._drop(count, GapReason.OVERLOADED, "more samples waited than may be buffered")

    def _drop(self, count: int, reason: GapReason, message: str) -> None:
        span = self.windower.skip(count)
        self._dropped += count
        self._timeline.forget_arrivals(span.end_sample)
        gap = self._gap
        if gap is not None and gap.reason is reason:
            joined = replace(gap.span, end_window=span.end_window, end_sample=span.end_sample)
            self._gap = replace(gap, span=joined)
            return
        self._settle_gap()
        self._gap = Gap(span, reason, message)

    def _settle_gap(self) -> None:
        if self._gap is not None:
            self._slots.append(_Slot(self._gap))
            self._gap = None
            self._settle()

    def _cut(self) -> Work:
        self._settle_gap()
        window = self.windower.cut()
        span = window.span
        arrival = self._arrival(span)
        start = self._timeline.taken(span.first_sample)
        end = self._timeline.taken(span.end_sample - 1, 1)
        work = Work(window, arrival, start, end, self.states, self._answered == 0)
        self._timeline.forget_arrivals(span.end_sample)
        self.holding.in_runs += work.nbytes
        slot = _Slot(None, work)
        self._slots.append(slot)
        self._running[work.index] = slot
        return work

    def _pass_mark(self) -> None:
        self._settle_gap()
        samples = self.windower.pass_mark()
        if self.closing and not self.windower.marks:
            event: Event = Closed(
                self._asked, samples, self.windower.windows, self._answered, self._dropped
            )
            self.closed = True
        else:
            event = Flushed(self.windower.windows, samples)
        self._slots.append(_Slot(event))
        self._settle()

    def _settle(self) -> None:
        """Gives numbers to what is done, as far as nothing before it still runs."""
        while self._slots and (event := self._slots[0].event) is not None:
            self.holding.in_slots -= self._slots.popleft().nbytes
            if isinstance(event, Closed):  # windows that still ran when the mark was passed
                event = replace(event, answered=self._answered, dropped=self._dropped)
            self._outbox.put(event)

    # Times.

    def _arrival(self, span: Span) -> float:
        """When the last sample of `span` came, or the flush that ended it."""
        partial = span.end_sample - span.first_sample < self.options.framing.window
        return self._timeline.arrival(span.end_sample, flushed=partial)

    def _late(self, now: float) -> int:
        """How many of the waiting windows can be of no use any more."""
        latest = now - self.options.objective
        if latest == -math.inf or self._arrival(self.windower.peek()) > latest:
            return 0
        return max(1, self.windower.ended_by(self._timeline.arrived_until(latest)))
