"""Coverage-guided fuzzing of sessions: `python fuzz_session.py -runs=100000 [CORPUS]`.

The bytes say what two sessions agree on, which share their memory, and then what comes, step by
step: a client's messages, right or wrong, and the ends of runs, in any order. No socket, no clock,
no event loop. Whatever they say: nothing is raised but StreamRefused, credit is never negative and
never taken back, memory is bounded and counted, and in the end each client has every window of what
the server took, once, in order, and as a loop over the whole signal would have cut it; or a gap, if
the bytes gave reason for one. `test_session_fuzz.py` runs it for a while.
"""

from __future__ import annotations

import contextlib
import pickle
import sys
from typing import Any

import atheris

with atheris.instrument_imports(include=["headrace.server.streams"]):
    from headrace.server.streams.budget import StreamMemory
    from headrace.server.streams.options import Overload, SessionOptions, SignalFormat
    from headrace.server.streams.session import Session
    from headrace.server.streams.window import Framing, Tail

import numpy as np

from headrace.inference.tensors import DATATYPES
from headrace.server.errors import StreamRefused
from headrace.server.models.spec import TensorSpec
from headrace.server.streams.deliveries import Work
from headrace.server.streams.events import Closed, Computed, Event, Flushed, Gap, GapReason, Result
from server.streams.reference import offline

SPEC = TensorSpec("y", "FP32", (-1,), ("",))
STEPS = 60
OUTSTANDING = 6
# Bytes that a session may hold beyond what it asked for: how deliveries are written down, flushes.
SLACK = 16 << 10
TIMESTAMPS = [None, None, 0, 1, 10**9, 2**62, -1]


def encode(delivery: int, event: Event) -> bytes:
    return pickle.dumps((delivery, event))


class Client:
    """A session, and what its client knows of it."""

    def __init__(self, told: Any, memory: StreamMemory) -> None:
        number = told.ConsumeIntInRange
        framing = Framing(number(1, 6), number(1, 8), number(0, 4), told.PickValueInList([*Tail]))
        channels = number(1, 2)
        options = SessionOptions(
            framing,
            [SignalFormat("x", DATATYPES["FP32"], channels)],
            rate=told.PickValueInList([1.0, 1e-3, 44_100.0]),
            buffer=2 * (framing.window + framing.context) + number(0, 6),
            objective=told.PickValueInList([float("inf"), 3.0]),
            overload=told.PickValueInList([*Overload]),
            ttl=told.PickValueInList([0.0, 10.0]),
            in_flight=number(1, 4),
            outstanding=OUTSTANDING,
            outstanding_bytes=told.PickValueInList([8 << 20, 1000]),
        )
        self.session = Session(options, encode, (), memory)
        self.framing, self.channels = framing, channels
        self.taken = b""  # the samples that were not refused
        self.flushes: list[int] = []
        self.running: list[Work] = []
        self.events: list[Event] = []
        self.delivery = 0
        self.credit = options.buffer

    @property
    def sent(self) -> int:
        count: int = len(self.taken) // (4 * self.channels)
        return count

    def act(self, told: Any, now: float) -> None:
        """One step. A refusal must leave everything as it was."""
        session = self.session
        step = told.ConsumeIntInRange(0, 11)
        if step <= 3:
            self.chunk(told, now)
        elif step == 4:
            session.flush(now)
            self.flushes.append(self.sent)
        elif step == 5 and told.ConsumeIntInRange(0, 3) == 0:
            session.close(now)
            self.flushes.append(self.sent)
        elif step == 6:
            session.ack(max(0, self.delivery + told.ConsumeIntInRange(-1, 1)))
        elif step == 7:
            self.take(told.ConsumeIntInRange(1, 2000), lost=False)
        elif step == 8 and session.options.ttl:
            self.take(told.ConsumeIntInRange(1, 2000), lost=True)
            self.resume(told.PickValueInList([0, 0, -1, 2**40]))
        elif self.running:
            self.end(told, now)

    def chunk(self, told: Any, now: float) -> None:
        count = told.ConsumeIntInRange(0, 12)
        sequence = max(0, self.sent + told.PickValueInList([0, 0, 0, 0, 0, -1, 1, 2**63]))
        size = 4 * self.channels * count + told.PickValueInList([0, 0, 0, 0, 0, 0, 1])
        data = told.ConsumeBytes(size)
        given = [data] * told.PickValueInList([1, 1, 1, 1, 1, 0, 2])
        self.session.chunk(sequence, given, told.PickValueInList(TIMESTAMPS), now)
        assert sequence == self.sent
        assert given == [data]
        assert np.isfinite(np.frombuffer(data, np.float32)).all()
        self.taken += data

    def resume(self, off: int) -> None:
        """On another connection, from what has come; or from before, if the server still has it."""
        named = max(0, self.delivery + off)
        try:
            self.session.resume(named)
        except StreamRefused:
            assert off
            named = self.delivery
            self.session.resume(named)
        del self.events[named:]
        self.delivery, self.credit = named, self.session.up_to

    def end(self, told: Any, now: float) -> None:
        """A run ends, well or not, or found a full queue."""
        work = self.running.pop(told.ConsumeIntInRange(0, len(self.running) - 1))
        how = told.ConsumeIntInRange(0, 5)
        if how == 0:
            self.session.fail(work.index, GapReason.FAILED, "as the bytes say")
        elif how == 1:
            self.session.retry(work.index, now + 0.5)
        else:
            self.complete(work)

    def complete(self, work: Work) -> None:
        (array,) = work.window.arrays
        self.session.complete(work.index, Computed([(SPEC, array.copy())]))

    def take(self, room: int, *, lost: bool) -> None:
        for data in self.session.take(room):
            delivery, event = pickle.loads(data)
            if not lost:
                assert delivery == self.delivery + 1
                self.delivery = delivery
                self.events.append(event)

    def pump(self, now: float) -> None:
        while (work := self.session.next_work(now)) is not None:
            self.running.append(work)
        credit = self.session.new_credit()
        if credit is not None:
            assert credit > self.credit
            self.credit = credit

    def check(self) -> None:
        session, options = self.session, self.session.options
        windower = session.windower
        assert windower.received == self.sent <= session.up_to
        assert windower.received - windower.released <= options.buffer
        assert len(session.deliveries.running) <= options.in_flight
        assert len(session.deliveries) <= 4 * options.outstanding + 2  # a flush may bring a gap too
        assert session.holding.nbytes >= windower.nbytes + session.deliveries.outbox.nbytes

    def to_the_end(self, now: float) -> None:
        """The client reads and closes, and what runs ends well."""
        session = self.session
        if session.options.ttl:
            self.resume(0)
        if not session.closing:
            session.close(now)
            self.flushes.append(self.sent)
        for turn in range(10_000):
            self.pump(now + turn)
            while self.running:
                self.complete(self.running.pop())
            self.take(1 << 20, lost=False)
            session.ack(self.delivery)
            if session.finished:
                return
        raise AssertionError("it does not come to its end")

    def compare(self) -> None:
        """What came, with a loop over the whole signal."""
        signal = np.frombuffer(self.taken, np.float32).reshape(-1, self.channels)
        expected = offline(self.framing, signal, self.flushes)
        at = answered = 0
        for event in self.events:
            if isinstance(event, Result | Gap):
                assert event.span.first_window == at
                at = event.span.end_window
                assert event.span.end_sample == expected[at - 1].span.end_sample
            if isinstance(event, Result):
                answered += 1
                ((_, array),) = event.computed.outputs
                assert array.tobytes() == expected[at - 1].array.tobytes()
        assert at == len(expected)
        positions = [event.samples for event in self.events if isinstance(event, Flushed)]
        assert positions == self.flushes[:-1]
        assert self.events[-1] == Closed(True, self.sent, at, answered, at - answered)


def play(data: bytes) -> None:
    """Any exception is a finding."""
    told = atheris.FuzzedDataProvider(data)
    memory = StreamMemory(told.PickValueInList([1 << 20, 3000, 100]), 2)
    clients = [Client(told, memory) for _ in range(2)]
    now = 0.0
    for _ in range(STEPS):
        if not told.remaining_bytes():
            break
        client = clients[told.ConsumeIntInRange(0, 1)]
        with contextlib.suppress(StreamRefused):
            client.act(told, now)
        now += told.PickValueInList([0.0, 0.0, 0.5, 2.0])
        client.pump(now)
        client.check()
        assert memory.used == sum(one.session.holding.nbytes for one in clients)
        expected = sum(one.session.deliveries.expected for one in clients)
        assert memory.used - expected <= 2 * memory.limit + SLACK * len(clients)
    for client in clients:
        client.to_the_end(now + 10.0)
        client.compare()
        client.session.holding.let_go()
    assert memory.used == 0


if __name__ == "__main__":
    atheris.Setup(sys.argv, play)
    atheris.Fuzz()
