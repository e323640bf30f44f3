"""A session with a client and a model, both made up, and no clock but the one that is told."""

from __future__ import annotations

import pickle
from typing import Any

import numpy as np

from headrace.batcher.testing import ManualClock
from headrace.inference.tensors import DATATYPES
from headrace.server.models.spec import TensorSpec
from headrace.server.streams.deliveries import Work
from headrace.server.streams.events import Closed, Computed, Event, Flushed, Gap, GapReason, Result
from headrace.server.streams.options import SessionOptions, SignalFormat
from headrace.server.streams.session import Session
from headrace.server.streams.window import Framing

SPEC = TensorSpec("y", "INT32", (-1,), ("",))


def terms(framing: Framing, **more: Any) -> SessionOptions:
    given = {
        "signals": [SignalFormat("x", DATATYPES["INT32"], 1)],
        "rate": 10.0,
        "buffer": 2 * (framing.window + framing.context) + 6,
        **more,
    }
    return SessionOptions(framing, **given)


def answer(array: Any, state: int) -> int:
    """What the model makes of a window: its place in the signal, and all that came before, tell."""
    weights = np.arange(1, len(array) + 1)
    return int((array[:, 0].astype(np.int64) * weights).sum() + 31 * state) % 1_000_003


def encode(delivery: int, event: Event) -> bytes:
    return pickle.dumps((delivery, event))


class Driver:
    """Both ends. The client counts what comes, and checks that numbers neither jump nor repeat."""

    def __init__(self, options: SessionOptions, signal: Any, *, stateful: bool = False) -> None:
        self.clock = ManualClock()
        self.stateful = stateful
        self.session = Session(options, encode, [np.array(0)] if stateful else [])
        self.signal = signal
        self.running: list[Work] = []
        # the client
        self.connected = True
        self.sent = 0
        self.credit = options.buffer
        self.flushes: list[int] = []
        self.delivery = 0
        self.events: list[Event] = []

    def pump(self) -> None:
        while (work := self.session.next_work(self.clock.now)) is not None:
            if self.stateful:
                assert not self.running
            self.running.append(work)
        credit = self.session.new_credit()
        if credit is not None and self.connected:
            assert credit > self.credit
            self.credit = credit

    def send(self, size: int) -> None:
        size = min(size, len(self.signal) - self.sent, self.credit - self.sent)
        size = min(size, self.session.options.largest_chunk)
        data = self.signal[self.sent : self.sent + size].tobytes()
        self.session.chunk(self.sent, [data], None, self.clock.now)
        self.sent += size
        self.pump()

    def flush(self) -> None:
        self.session.flush(self.clock.now)
        self.flushes.append(self.sent)
        self.pump()

    def close(self) -> None:
        self.session.close(self.clock.now)
        self.flushes.append(self.sent)
        self.pump()

    def finish(self, number: int) -> None:
        """A run ends, not always the oldest."""
        work = self.running.pop(number % len(self.running))
        state = int(work.states[0]) if self.stateful else 0
        value = answer(work.window.arrays[0], state)
        outputs = [(SPEC, np.array([value]))]
        self.session.complete(work.index, Computed(outputs, [np.array(value)]))
        self.pump()

    def fail(self, number: int) -> None:
        work = self.running.pop(number % len(self.running))
        self.session.fail(work.index, GapReason.FAILED, "as the test says")
        self.pump()

    def refuse(self, number: int) -> None:
        """The model's queue is full: the window is to come again."""
        work = self.running.pop(number % len(self.running))
        self.session.retry(work.index, self.clock.now + 0.5)
        self.pump()

    def receive(self, *, lost: bool = False) -> None:
        """What the session has to send arrives; or the connection breaks under it."""
        if not self.connected:
            return
        for data in self.session.take(1 << 20):
            delivery, event = pickle.loads(data)
            if lost:
                continue
            assert delivery == self.delivery + 1
            self.delivery = delivery
            self.events.append(event)
        self.pump()
        if lost:
            self.connected = False

    def ack(self) -> None:
        if self.connected:
            self.session.ack(self.delivery)
            self.pump()

    def resume(self) -> None:
        if not self.connected:
            self.session.resume(self.delivery)
            self.connected, self.credit = True, self.session.up_to
            assert self.session.windower.received == self.sent
            self.pump()

    def run_to_the_end(self) -> None:
        """Sends the rest, closes, and takes all there is."""
        self.resume()
        if not self.session.closing:
            while self.sent < len(self.signal):
                self._settle()
                before = self.sent
                self.send(1 << 20)
                assert self.sent > before, "credit has run dry"
            self.close()
        self._settle()
        assert self.session.finished

    def _settle(self) -> None:
        for _ in range(10_000):
            self.clock.advance(1.0)
            self.pump()
            while self.running:
                self.finish(0)
            seen = len(self.events)
            self.receive()
            self.ack()
            if not self.running and len(self.events) == seen:
                return
        raise AssertionError("it does not come to rest")

    # What the client has.

    def results(self) -> dict[int, Result]:
        return {e.span.first_window: e for e in self.events if isinstance(e, Result)}

    def gaps(self) -> list[Gap]:
        return [event for event in self.events if isinstance(event, Gap)]

    def closed(self) -> Closed:
        assert isinstance(self.events[-1], Closed)
        return self.events[-1]

    def flushed(self) -> list[Flushed]:
        return [event for event in self.events if isinstance(event, Flushed)]


def value(result: Result) -> int:
    return int(result.computed.outputs[0][1][0])
