"""One session: a synchronous state machine between its client and the model.

Theory of operation. Chunks go into the windower. Whoever owns the session asks `next_work` for
windows to run, and tells how each ended by `complete`, `fail` or `retry`. What is to be told to
the client waits in `Deliveries`, in the order of the signal. Those are bounded: with so many
outstanding no more windows are run, and samples wait, until the session's overload choice bites.

Nothing here knows asyncio, gRPC or the clock: `now` is an argument, seconds of a monotonic clock.
"""

from __future__ import annotations

import math
import sys
from collections import deque
from collections.abc import Sequence

from headrace.inference.tensors import Array
from headrace.server.errors import StreamRefused
from headrace.server.streams.budget import Holding, StreamMemory
from headrace.server.streams.chunks import check_finite, read_chunk
from headrace.server.streams.deliveries import Deliveries, Work
from headrace.server.streams.events import Closed, Computed, Flushed, GapReason
from headrace.server.streams.options import Overload, SessionOptions
from headrace.server.streams.outbox import Encode, Outbox
from headrace.server.streams.timeline import ENTRY_BYTES, Timeline
from headrace.server.streams.window import Span, Tail, Windower


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
        self.holding = Holding(memory or StreamMemory(sys.maxsize, 1))
        self.deliveries = Deliveries(Outbox(encode, keep=options.ttl > 0), self.holding)
        self._retries: deque[tuple[float, Work]] = deque()
        self._asked = True
        self._timeline = Timeline(options.rate)
        self._announced = options.buffer
        self._last_timestamp: int | None = None

    def __repr__(self) -> str:
        w = self.windower
        running = len(self.deliveries.running)
        return f"<Session: {w.received} samples, {w.windows} windows, {running} running>"

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
        if self.windower.marks >= most or len(self.deliveries) >= 2 * most:
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
        self.deliveries.outbox.ack(delivery)
        self._account()

    def resume(self, delivery: int) -> None:
        """Sends again what came after `delivery`. Raises StreamRefused."""
        self.deliveries.outbox.resume(delivery)
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
            elif len(self.deliveries.running) >= self.options.in_flight:
                break
            else:
                return self._cut()
        if not self._full():
            self.deliveries.settle_gap()
        return None

    def complete(self, index: int, computed: Computed) -> None:
        """The run of window `index` has ended well. One that was given up meanwhile is ignored."""
        if self.deliveries.complete(index, computed):
            if self.states:
                self.states = computed.states
            self._account()

    def fail(self, index: int, reason: GapReason, message: str) -> None:
        """The run of window `index` has ended without a result, for good."""
        self.deliveries.fail(index, reason, message)
        self._account()

    def retry(self, index: int, due: float) -> None:
        """Window `index` found no room: `next_work` gives it again at `due`."""
        running = self.deliveries.running.get(index)
        if running is not None:
            self._retries.append((due, running[0]))

    def stop(self) -> None:
        """Takes no more; what is complete is run, the rest of the signal is not used."""
        if not self.closing:
            self.closing, self._asked = True, False
            self.windower.flush(Tail.DROP)

    def give_up(self) -> None:
        """Ends at once: what waits or runs is reported in gaps."""
        self.stop()
        self._retries.clear()
        for index in list(self.deliveries.running):
            self.fail(index, GapReason.STOPPING, "the server stops")
        while not self.closed:
            if self.windower.at_mark:
                self._pass_mark()
            else:
                self._drop(self.windower.waiting, GapReason.STOPPING, "the server stops")

    def take(self, room: int) -> list[bytes]:
        """Deliveries to send now, in order, of about `room` bytes: at least one if any waits."""
        taken = self.deliveries.outbox.take(room)
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
        return bool(self.deliveries.has_gap or self.windower.marks or self.windower.waiting)

    @property
    def up_to(self) -> int:
        """Samples before this position may be sent."""
        windower = self.windower
        refuses = self.options.overload is Overload.REFUSE
        return (windower.released if refuses else windower.received) + self.options.buffer

    @property
    def has_unsent(self) -> bool:
        return self.deliveries.outbox.has_unsent

    @property
    def finished(self) -> bool:
        """Whether the client has everything."""
        return self.closed and not len(self.deliveries)

    @property
    def told(self) -> bool:
        """Whether everything has been sent, if not acknowledged."""
        return self.closed and self.deliveries.told

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
            self.holding.replaced(before, self.deliveries.running)

    def _account(self) -> None:
        deliveries = self.deliveries
        held = self.windower.nbytes + self._timeline.nbytes + deliveries.outbox.nbytes
        self.holding.account(held + deliveries.expected, deliveries.running)

    # Windows.

    def _flush(self, now: float) -> None:
        self.windower.flush()
        # The last window is complete only now.
        self._timeline.arrived(self.windower.received, now)

    def _full(self) -> bool:
        """Whether the client is to take something before more is run."""
        options, deliveries = self.options, self.deliveries
        most = self.holding.most_untaken(options.outstanding_bytes)
        return len(deliveries) >= options.outstanding or deliveries.untaken >= most

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
        self._timeline.forget_arrivals(span.end_sample)
        self.deliveries.drop(span, count, reason, message)

    def _cut(self) -> Work:
        window = self.windower.cut()
        span = window.span
        arrival = self._arrival(span)
        start = self._timeline.taken(span.first_sample)
        end = self._timeline.taken(span.end_sample - 1, 1)
        first = self.deliveries.answered == 0
        work = Work(window, arrival, start, end, self.states, first)
        self._timeline.forget_arrivals(span.end_sample)
        self.deliveries.begin(work)
        return work

    def _pass_mark(self) -> None:
        samples = self.windower.pass_mark()
        windows, told = self.windower.windows, self.deliveries
        if self.closing and not self.windower.marks:
            self.closed = True
            told.end(Closed(self._asked, samples, windows, told.answered, told.dropped))
        else:
            told.end(Flushed(windows, samples))

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
