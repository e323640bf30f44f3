"""Sessions under every interleaving: what the client has in the end is what a loop would give."""

from __future__ import annotations

import contextlib
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.inference.tensors import DATATYPES
from headrace.server.errors import StreamRefused
from headrace.server.streams.events import Closed, Flushed, Gap, GapReason, Result
from headrace.server.streams.options import Overload, SignalFormat
from headrace.server.streams.window import Framing, Tail
from server.streams.driver import Driver, answer, terms, value
from server.streams.reference import offline

FRAMINGS = st.builds(
    Framing,
    window=st.integers(1, 6),
    hop=st.integers(1, 9),
    context=st.integers(0, 4),
    tail=st.sampled_from(Tail),
)
# Some are more likely than others.
STEP = "send send finish finish receive ack lose resume flush refuse wait close"
STEPS = st.lists(st.tuples(st.sampled_from(STEP.split()), st.integers(0, 20)), max_size=60)


def signal_of(count: int) -> Any:
    return np.random.default_rng(count).integers(-99, 99, (count, 1), np.int32)


def play(driver: Driver, steps: list[tuple[str, int]]) -> None:
    """Each step, where it is possible."""
    for step, number in steps:
        if step in ("send", "flush", "close") and (driver.session.closing or not driver.connected):
            continue
        if step in ("finish", "refuse", "fail") and not driver.running:
            continue
        if step == "send":
            driver.send(number)
        elif step in ("finish", "refuse", "fail"):
            getattr(driver, step)(number)
        elif step == "lose":
            if driver.session.options.ttl:
                driver.receive(lost=True)
        elif step == "wait":
            driver.clock.advance(number / 10)
            driver.pump()
        elif step == "flush":
            with contextlib.suppress(StreamRefused):  # too many, if what is delivered is not taken
                driver.flush()
        else:
            getattr(driver, step)()
    driver.run_to_the_end()


@settings(max_examples=300)
@given(FRAMINGS, st.integers(0, 60), STEPS, st.booleans(), st.sampled_from([0.0, 30.0]))
def test_nothing_is_lost_or_repeated(
    framing: Framing, length: int, steps: list[tuple[str, int]], stateful: bool, ttl: float
) -> None:
    """With `refuse`: cut connections, runs that end in any order, a full queue, flushes."""
    signal = signal_of(length)
    limits = {"ttl": ttl, "in_flight": 1 if stateful else 4, "outstanding": 6}
    driver = Driver(terms(framing, **limits), signal, stateful=stateful)
    play(driver, steps)
    expected = offline(framing, signal[: driver.sent], driver.flushes)
    assert [event.span for event in driver.events if isinstance(event, Result)] == [
        window.span for window in expected
    ]
    state = 0
    for window, result in zip(expected, driver.results().values(), strict=True):
        made = answer(window.array, state)
        state = made if stateful else 0
        assert value(result) == made
    assert driver.gaps() == []
    assert [flushed.samples for flushed in driver.flushed()] == driver.flushes[:-1]
    count = len(expected)
    assert driver.closed() == Closed(True, driver.sent, count, count, 0)


@settings(max_examples=300)
@given(
    FRAMINGS,
    st.integers(0, 60),
    STEPS,
    st.sampled_from([Overload.DROP_OLDEST, Overload.LATEST_ONLY]),
    st.sampled_from([0.7, float("inf")]),
    st.sampled_from([0.0, 30.0]),
)
def test_what_is_dropped_is_reported(
    framing: Framing,
    length: int,
    steps: list[tuple[str, int]],
    overload: Overload,
    objective: float,
    ttl: float,
) -> None:
    """Results and gaps together are every window, once, in order; memory stays bounded."""
    signal = signal_of(length)
    one = overload is Overload.LATEST_ONLY
    limits = {"ttl": ttl, "in_flight": 1 if one else 4, "outstanding": 6}
    options = terms(framing, overload=overload, objective=objective, **limits)
    driver = Driver(options, signal)
    play(driver, [(step if step != "refuse" else "fail", number) for step, number in steps])
    expected = offline(framing, signal[: driver.sent], driver.flushes)
    at = dropped = 0
    for event in driver.events:
        if isinstance(event, Result | Gap):
            assert event.span.first_window == at
            at = event.span.end_window
        if isinstance(event, Gap):
            dropped += event.span.end_window - event.span.first_window
            assert event.span.first_sample == expected[event.span.first_window].span.first_sample
            assert event.span.end_sample == expected[event.span.end_window - 1].span.end_sample
        if isinstance(event, Result):
            window = expected[event.span.first_window]
            assert event.span == window.span
            assert value(event) == answer(window.array, 0)
        if isinstance(event, Flushed):
            assert event.windows == at
    assert at == len(expected)
    assert driver.closed() == Closed(True, driver.sent, at, at - dropped, dropped)


@given(st.integers(1, 4), st.sampled_from(Overload), st.lists(st.integers(0, 9), max_size=40))
def test_a_client_that_takes_nothing_fills_only_so_much(
    in_flight: int, overload: Overload, sizes: list[int]
) -> None:
    options = terms(Framing(3, 2, 1), overload=overload, in_flight=in_flight, outstanding=5)
    driver = Driver(options, signal_of(400))
    for size in sizes:
        driver.send(size)
        while driver.running:
            driver.finish(0)
        buffered = driver.session.windower.received - driver.session.windower.released
        assert buffered <= options.buffer
        assert len(driver.session.deliveries) <= options.outstanding + 1


def refusal(driver: Driver, *arguments: Any) -> StreamRefused:
    before = repr(driver.session)
    with pytest.raises(StreamRefused) as caught:
        driver.session.chunk(*arguments)
    assert repr(driver.session) == before
    return caught.value


def test_a_bad_chunk_changes_nothing_and_is_named() -> None:
    driver = Driver(terms(Framing(4, 4), buffer=20), signal_of(50))
    driver.send(3)
    ok = bytes(4)
    cases = [
        ((4, [ok], None, 0.0), "SEQUENCE_GAP", "chunk.sequence", "expected 3, got 4"),
        ((0, [ok], None, 0.0), "SEQUENCE_REPEATED", "chunk.sequence", "expected 3, got 0"),
        ((3, [ok, ok], None, 0.0), "INVALID_INPUT", "chunk.data", "each of 1 signals, got 2"),
        ((3, [bytes(6)], None, 0.0), "WRONG_CHANNELS", "chunk.data[0]", "multiple of 4 bytes"),
        ((3, [bytes(44)], None, 0.0), "CHUNK_TOO_LARGE", "chunk.data", "at most 10 samples"),
    ]
    for arguments, reason, field, said in cases:
        error = refusal(driver, *arguments)
        assert (error.reason, error.field) == (reason, field)
        assert said in str(error)
    driver.send(1)
    assert len(driver.running) == 1


def test_credit_is_kept() -> None:
    driver = Driver(terms(Framing(4, 4), buffer=20, in_flight=1), signal_of(50))
    for _ in range(4):
        driver.send(6)
    assert driver.sent == driver.credit == 24
    error = refusal(driver, 24, [bytes(4)], None, 0.0)
    assert (error.reason, error.field) == ("CREDIT_EXCEEDED", "chunk.data")
    driver.finish(0)
    driver.send(1)
    assert driver.sent == 25


def test_time_does_not_go_back() -> None:
    session = Driver(terms(Framing(2, 2)), signal_of(1)).session
    session.chunk(0, [bytes(4)], 1000, 0.0)
    session.chunk(1, [bytes(4)], 1000, 0.0)
    with pytest.raises(StreamRefused) as caught:
        session.chunk(2, [bytes(4)], 999, 0.0)
    assert caught.value.reason == "TIME_WENT_BACK"
    session.chunk(2, [bytes(4)], None, 0.0)


def test_windows_are_dated_by_the_chunks_timestamps() -> None:
    driver = Driver(terms(Framing(4, 2), rate=1000.0), signal_of(1))
    chunks = [(0, 3, 5_000_000), (3, 3, 9_500_000), (6, 2, None)]
    for sequence, size, timestamp in chunks:
        driver.session.chunk(sequence, [bytes(4 * size)], timestamp, 0.0)
    driver.pump()
    spans = [(work.start_ns, work.end_ns) for work in driver.running]
    assert spans == [
        (5_000_000, 10_500_000),
        (7_000_000, 12_500_000),
        (10_500_000, 14_500_000),
    ]


@pytest.mark.parametrize("datatype", ["FP16", "FP32", "FP64", "BF16"])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_not_finite(datatype: str, bad: float) -> None:
    signals = [SignalFormat("x", DATATYPES[datatype], 2)]
    values = np.array([[1, 2], [3, bad]], np.float32)
    kind = DATATYPES[datatype]
    bits = values.view("<u4") >> 16 if datatype == "BF16" else values
    data = [bits.astype(kind.numpy).tobytes()]
    session = Driver(terms(Framing(2, 2), signals=signals), signal_of(1)).session
    with pytest.raises(StreamRefused) as caught:
        session.chunk(0, data, None, 0.0)
    assert (caught.value.reason, caught.value.field) == ("NON_FINITE", "chunk.data[0]")
    assert "sample 1 of the chunk, channel 1" in str(caught.value)
    tolerant = Driver(terms(Framing(2, 2), signals=signals, allow_non_finite=True), signal_of(1))
    tolerant.session.chunk(0, data, None, 0.0)
    assert tolerant.session.next_work(0.0) is not None


def test_late_windows_are_not_run() -> None:
    driver = Driver(terms(Framing(2, 2), objective=1.0, in_flight=1, buffer=40), signal_of(100))
    driver.send(2)
    driver.send(6)
    driver.clock.advance(0.9)
    driver.send(2)
    driver.clock.advance(0.2)
    driver.finish(0)
    driver.receive()
    assert [work.index for work in driver.running] == [4]
    (gap,) = driver.gaps()
    assert gap.reason is GapReason.LATE
    assert (gap.span.first_window, gap.span.end_window) == (1, 4)


def test_a_flushed_window_is_not_late_by_the_wait_for_the_flush() -> None:
    framing = Framing(4, 4, tail=Tail.SHORT)
    driver = Driver(terms(framing, objective=1.0), signal_of(100))
    driver.send(3)
    driver.clock.advance(60)
    driver.flush()
    assert len(driver.running) == 1


def test_flushes_behind_a_window_that_waits_for_room_keep_their_times() -> None:
    """The first flush has no window of its own, the second one has: neither is lost sight of."""
    driver = Driver(terms(Framing(4, 4, tail=Tail.SHORT), objective=60.0), signal_of(40))
    driver.send(4)
    driver.refuse(0)
    driver.flush()
    driver.send(1)
    driver.flush()
    driver.send(1)
    driver.run_to_the_end()
    assert driver.gaps() == []
    spans = [(r.span.first_sample, r.span.end_sample) for r in driver.results().values()]
    assert spans[:3] == [(0, 4), (4, 5), (5, 9)]


def test_large_results_bound_what_is_outstanding_by_their_bytes() -> None:
    driver = Driver(terms(Framing(1, 1), outstanding_bytes=1000, buffer=200), signal_of(200))
    driver.send(100)
    while driver.running:
        driver.finish(0)
    outbox = driver.session.deliveries.outbox
    assert 1000 <= outbox.nbytes < 1000 + 32 * outbox.nbytes / len(outbox)
    driver.run_to_the_end()
    assert len(driver.results()) == 200
    assert outbox.nbytes == 0


def test_a_stop_finishes_what_is_complete() -> None:
    driver = Driver(terms(Framing(4, 4, tail=Tail.PAD), in_flight=1, buffer=40), signal_of(100))
    driver.send(10)
    driver.session.stop()
    with pytest.raises(StreamRefused) as caught:
        driver.session.chunk(10, [bytes(4)], None, 0.0)
    assert caught.value.reason == "SESSION_CLOSING"
    while driver.running:
        driver.finish(0)
    driver.receive()
    assert len(driver.results()) == 2
    assert driver.closed() == Closed(False, 10, 2, 2, 0)
    assert driver.session.told


def test_giving_up_reports_what_waits_and_what_runs() -> None:
    driver = Driver(terms(Framing(4, 4), in_flight=1, buffer=40), signal_of(100))
    driver.send(14)
    driver.session.give_up()
    driver.finish(0)  # too late: its window is in the gap
    driver.receive()
    assert [gap.span.end_window for gap in driver.gaps()] == [1, 3]
    assert {gap.reason for gap in driver.gaps()} == {GapReason.STOPPING}
    assert driver.closed() == Closed(False, 14, 3, 0, 3)


def test_an_acknowledgement_of_the_future_is_refused() -> None:
    driver = Driver(terms(Framing(4, 4), ttl=10.0), signal_of(100))
    for call in (driver.session.ack, driver.session.resume):
        with pytest.raises(StreamRefused) as caught:
            call(1)
        assert caught.value.reason == "INVALID_INPUT"


@pytest.mark.parametrize("overload", Overload)
def test_flushes_that_nobody_takes_are_refused(overload: Overload) -> None:
    """Each is a delivery, whether windows wait before it or not."""
    driver = Driver(terms(Framing(4, 4), overload=overload, outstanding=6), signal_of(400))
    for _ in range(40):
        driver.send(5)
        with contextlib.suppress(StreamRefused):
            driver.flush()
        while driver.running:
            driver.finish(0)
    assert len(driver.session.deliveries) <= 3 * 6
    with pytest.raises(StreamRefused) as caught:
        driver.session.flush(0.0)
    assert caught.value.reason == "TOO_MANY_FLUSHES"
    driver.run_to_the_end()
    assert len(driver.flushed()) == len(driver.flushes) - 1
