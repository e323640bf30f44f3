"""Streams under every interleaving of messages, cuts and resumes, without a socket."""

from __future__ import annotations

from typing import Any

import grpc
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clients.stream_pair import BROKEN, Pair, User
from headrace.client import SessionLost, StreamOptions, WindowResult
from headrace.client.errors import BadResponse, Cancelled, HeadraceError, InvalidInput, Unavailable
from headrace.client.stream_options import Framing
from headrace.client.stream_session import Phase
from headrace.server.streams.window import Framing as ServerFraming
from headrace.server.streams.window import Tail
from headrace.stream.v1 import stream_pb2 as pb
from server.streams.driver import answer
from server.streams.reference import offline

FRAMINGS = st.builds(
    ServerFraming,
    window=st.integers(1, 6),
    hop=st.integers(1, 9),
    context=st.integers(0, 4),
    tail=st.sampled_from(Tail),
)
# Some are more likely than others.
STEP = "send send emit emit carry_up carry_up finish carry_down carry_down arrive arrive take cut"
STEPS = st.lists(
    st.tuples(
        st.sampled_from([*STEP.split(), "connect", "connect", "flush", "end"]), st.integers(0, 20)
    ),
    max_size=120,
)


def signal_of(count: int) -> Any:
    return np.random.default_rng(count).integers(-99, 99, count, np.int32)


def user_of(pair: Pair, framing: ServerFraming, length: int, **more: Any) -> User:
    options = StreamOptions(
        dtype=np.int32, context=framing.context, tail=framing.tail.value, max_unread=8, **more
    )
    cut = Framing(framing.window, 10.0, framing.hop)
    return pair.open(cut, options, signal_of(length))


def check(user: User, framing: ServerFraming, *, stateful: bool) -> None:
    """What came is what a loop over the whole signal gives."""
    session = user.session
    assert session.error is None
    flushes = [*user.flushes, user.sent]
    expected = offline(framing, user.signal[: user.sent, np.newaxis], flushes)
    results = [event for event in user.events if isinstance(event, WindowResult)]
    assert len(results) == len(user.events)
    assert [(r.window, r.window + 1, r.first_sample, r.end_sample) for r in results] == [
        (w.span.first_window, w.span.end_window, w.span.first_sample, w.span.end_sample)
        for w in expected
    ]
    state = 0
    for window, result in zip(expected, results, strict=True):
        made = answer(window.array, state)
        state = made if stateful else 0
        assert int(result["y"][0]) == made
    assert session.summary is not None
    assert session.summary.samples == user.sent
    assert session.summary.answered == session.summary.windows == len(expected)


@settings(max_examples=300, deadline=None)
@given(
    st.lists(st.tuples(FRAMINGS, st.integers(0, 60)), min_size=1, max_size=3),
    STEPS,
    st.booleans(),
    st.integers(1, 8),
)
def test_nothing_is_lost_or_repeated(
    streams: list[tuple[ServerFraming, int]],
    steps: list[tuple[str, int]],
    stateful: bool,
    most: int,
) -> None:
    pair = Pair(stateful=stateful, outstanding=most)
    for framing, length in streams:
        user_of(pair, framing, length)
    for step, number in steps:
        user = pair.users[number % len(pair.users)]
        if user.session.phase is Phase.ENDED and user.session.opened is None:
            continue  # cut before it was opened: its shell would ask for a new one
        if step in ("send", "flush", "take", "end"):
            user.send(number) if step == "send" else getattr(user, step)()
        elif step == "finish":
            pair.server.finish(number)
        elif step == "cut" and any(u.session.opened is None for u in pair.users):
            continue
        else:
            getattr(pair, step)()
    pair.run_to_the_end()
    for user, (framing, _) in zip(pair.users, streams, strict=True):
        check(user, framing, stateful=stateful)
    assert len(pair.link) == 0


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 20), st.integers(1, 40), st.sampled_from([0.0, 60.0]))
def test_what_is_kept_is_bounded(window: int, chunk: int, ttl: float) -> None:
    """However long the stream: no more than the server's buffer and a chunk; nothing if no use."""
    pair = Pair()
    user = user_of(pair, ServerFraming(window, window), 2000, ttl=ttl)
    pair.settle()
    assert user.session.opened is not None
    most = user.session.opened.up_to_sample
    while user.sent < len(user.signal):
        before = user.sent
        user.send(chunk)
        assert user.session.log.kept_samples < most + user.session.opened.largest_chunk
        if user.sent == before:
            pair.settle()
    pair.settle()
    assert ttl or not len(user.session.log)


def opened(**more: Any) -> tuple[Pair, User]:
    pair = Pair()
    user = user_of(pair, ServerFraming(4, 4), 100, **more)
    pair.settle()
    return pair, user


def test_a_session_with_no_time_to_live_is_lost_with_its_connection() -> None:
    pair, user = opened(ttl=0.0)
    pair.cut()
    with pytest.raises(SessionLost, match="time to live 0") as raised:
        user.session.room()
    assert raised.value.__cause__ is BROKEN
    assert len(pair.link) == 0


def test_it_is_given_up_once_its_time_to_live_has_passed() -> None:
    pair, user = opened(ttl=30.0)
    pair.cut(now=100.0)
    for now in (110.0, 129.9):
        pair.link.connect()
        pair.link.lose(BROKEN, now)
        assert user.session.phase is Phase.DETACHED
    pair.link.lose(BROKEN, 130.0)
    with pytest.raises(SessionLost, match="no connection for 30 s"):
        user.session.take()


def test_a_resume_starts_the_time_to_live_anew() -> None:
    pair, user = opened(ttl=30.0)
    pair.cut(now=100.0)
    pair.settle()
    assert user.session.resumes == 1
    pair.cut(now=125.0)
    pair.link.lose(BROKEN, 131.0)
    assert user.session.phase is Phase.DETACHED


def test_a_server_that_has_forgotten_the_session_ends_it() -> None:
    pair, user = opened()
    user.send(4)
    pair.cut()
    pair.server.sessions.clear()
    pair.connect()
    pair.emit()
    pair.carry_up()
    pair.carry_down()
    pair.arrive()
    with pytest.raises(SessionLost) as raised:
        user.session.read()
    assert raised.value.reason == "UNKNOWN_SESSION"


def test_samples_may_be_handed_over_without_a_connection() -> None:
    pair, user = opened()
    pair.cut()
    user.send(7)
    assert user.sent == 7
    user.session.end()
    pair.run_to_the_end()
    check(user, ServerFraming(4, 4), stateful=False)


def test_results_that_came_are_read_before_the_error() -> None:
    pair, user = opened()
    user.send(8)
    pair.emit()
    pair.carry_up()
    pair.server.finish(0)
    pair.server.finish(0)
    pair.carry_down()
    pair.arrive()
    user.session.receive(refusal(3, "INVALID_INPUT"))
    for window in (0, 1):
        (event,) = user.session.read() or ()
        assert isinstance(event, WindowResult)
        assert event.window == window
    with pytest.raises(InvalidInput, match=r"chunk\.data: no"):
        user.session.read()


def refusal(code: int, reason: str, *, ended: bool = False) -> pb.Event:
    error = pb.Error(code=code, reason=reason, field="chunk.data", message="no", ended=ended)
    return pb.Event(error=error)


def test_a_refused_chunk_ends_the_stream_and_frees_the_session() -> None:
    pair, user = opened()
    user.session.receive(refusal(3, "SEQUENCE_GAP"))
    assert user.session.is_over
    pair.link.touch(user.session)
    for _ in range(3):
        pair.emit()
        pair.carry_up()
        pair.carry_down()
        pair.arrive()
    pair.emit()
    assert user.session.phase is Phase.ENDED
    pair.carry_up()
    (session,) = pair.server.sessions.values()
    assert session.finished


def test_leaving_while_it_is_being_opened_closes_it_on_the_server() -> None:
    pair = Pair()
    user = user_of(pair, ServerFraming(4, 4), 10)
    pair.connect()
    pair.emit()
    user.session.leave()
    for _ in range(4):
        pair.carry_up()
        pair.carry_down()
        pair.arrive()
        pair.emit()
    pair.carry_up()
    (session,) = pair.server.sessions.values()
    assert session.finished
    assert len(pair.link) == 0
    with pytest.raises(Cancelled):
        user.session.is_open()


def test_a_delivery_that_jumps_is_a_bad_response() -> None:
    _, user = opened()
    user.session.receive(pb.Event(delivery=2, gap=pb.Gap()))
    with pytest.raises(BadResponse, match="delivery 2 came after 0"):
        user.session.read()


def test_outputs_that_contradict_themselves_are_a_bad_response() -> None:
    _, user = opened()
    tensor = pb.Tensor(name="y", datatype="FP32", shape=[2], data=b"123")
    user.session.receive(pb.Event(delivery=1, result=pb.Result(outputs=[tensor])))
    with pytest.raises(BadResponse, match="output 'y'"):
        user.session.read()


def test_a_server_that_stops_is_no_silent_end() -> None:
    _, user = opened()
    user.send(7)
    closed = pb.Closed(reason=pb.Closed.STOPPING, samples=4, windows=1, answered=1)
    user.session.receive(pb.Event(delivery=1, closed=closed))
    with pytest.raises(Unavailable, match="it received 4 samples of 7"):
        user.session.read()
    assert user.session.summary is not None


def test_a_resume_on_a_server_that_stops_waits_for_another() -> None:
    pair, user = opened()
    pair.cut()
    pair.connect()
    pair.emit()
    user.session.receive(refusal(14, "DRAINING", ended=True))
    assert user.session.phase is Phase.DETACHED


@pytest.mark.parametrize("code", [grpc.StatusCode.UNIMPLEMENTED, grpc.StatusCode.UNAUTHENTICATED])
def test_some_ends_of_the_call_are_final(code: grpc.StatusCode) -> None:
    pair, user = opened()
    pair.cut(HeadraceError(code, "never"))
    with pytest.raises(SessionLost, match="never"):
        user.session.read()


def test_waiting_for_results_that_nobody_takes_is_an_error() -> None:
    pair = Pair(outstanding=100)
    user = user_of(pair, ServerFraming(1, 1), 100)
    session = user.session

    def sent_and_never_taken() -> None:
        for _ in range(100):
            user._plan.upload(session, user.signal[:1], None).advance()
            pair.link.touch(session)
            exchange(pair)

    with pytest.raises(RuntimeError, match="none was taken"):
        sent_and_never_taken()
    session.take()  # from now on somebody does
    while len(session.inbox) < 8:
        user.send(1)
        exchange(pair)
    assert session.room() == 0


def exchange(pair: Pair) -> None:
    pair.connect()
    pair.emit()
    pair.carry_up()
    while pair.server.running:
        pair.server.finish(0)
    pair.carry_down()
    pair.arrive()


def test_acknowledgements_wait_for_a_slow_reader() -> None:
    """So the server stops after so many, and what is held here is bounded."""
    pair, user = opened()
    user.take()
    for _ in range(100):
        user.send(4)
        exchange(pair)
    assert len(user.session.inbox) <= 8 + 6
    assert user.sent < len(user.signal)
    pair.run_to_the_end()
    check(user, ServerFraming(4, 4), stateful=False)


def test_time_may_not_go_back() -> None:
    _, user = opened()
    user._plan.upload(user.session, user.signal[:2], 500)
    with pytest.raises(ValueError, match="expected 500 or later, got 499"):
        user._plan.upload(user.session, user.signal[:2], 499)


def test_few_but_large_results_are_acknowledged() -> None:
    """A server bounds what it keeps by bytes too, and may stop long before `max_outstanding`."""
    pair = Pair(outstanding=1000)
    user = user_of(pair, ServerFraming(4, 4), 100)
    pair.settle()
    tensor = pb.Tensor(name="y", datatype="UINT8", shape=[1 << 20], data=bytes(1 << 20))
    for delivery in (1, 2):
        user.session.receive(pb.Event(delivery=delivery, result=pb.Result(outputs=[tensor])))
        commands, _ = user.session.commands()
        assert [command.ack.delivery for command in commands] == [delivery]


def test_closing_a_client_closes_its_sessions_on_the_server() -> None:
    pair = Pair()
    users = [user_of(pair, ServerFraming(4, 4), 10) for _ in range(3)]
    pair.settle()
    users[0].send(8)
    waiting = user_of(pair, ServerFraming(4, 4), 10)
    assert len(pair.link.close()) == 4
    pair.emit()
    pair.carry_up()
    assert all(session.closing for session in pair.server.sessions.values())
    for user in (*users, waiting):
        with pytest.raises(Cancelled, match="the client was closed"):
            user.session.room()


def test_one_session_with_much_to_send_does_not_keep_the_others_waiting() -> None:
    pair = Pair()
    framing = Framing(1 << 20, 10.0)
    options = StreamOptions(dtype=np.int32, buffer=1 << 22)
    for count in (1 << 21, 1):
        pair.open(framing, options, np.zeros(count, np.int32))
    pair.settle()
    for user in pair.users:
        user.send(1 << 21)
    handles = []
    while (request := pair.link.request()) is not None:
        handles.append({command.handle for command in request.commands})
        assert request.ByteSize() < 1 << 20
    assert len(handles) > 8
    assert 2 in handles[0]
