"""Messages between processes come whole, in order, however the bytes are cut."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.batcher.errors import DeadlineTooShort, Overloaded
from headrace.server import errors
from headrace.server.errors import ModelNotFound, row_of
from headrace.server.fronts.link import Link
from headrace.server.fronts.records import LONGEST_HEAD, MOST_HEADS, Heads, heard, told

MESSAGES = st.lists(
    st.tuples(st.integers(), st.text(max_size=5), st.binary(max_size=300), st.none())
)


class Pipe:
    """A transport that keeps what is written."""

    def __init__(self) -> None:
        self.data = b""

    def writelines(self, parts: Any) -> None:
        self.data += b"".join(parts)


def linked(received: list[Any]) -> tuple[Link, Pipe]:
    link, pipe = Link(received.append, lambda: None, lambda: None), Pipe()
    link.connection_made(pipe)
    return link, pipe


@given(MESSAGES, st.lists(st.integers(1, 40), min_size=1, max_size=20))
def test_messages_come_whole(messages: list[Any], cuts: list[int]) -> None:
    async def run() -> None:
        received: list[Any] = []
        link, pipe = linked(received)
        for message in messages:
            link.send(message)
        data, at, turn = pipe.data, 0, 0
        while at < len(data):
            size = cuts[turn % len(cuts)]
            link.data_received(data[at : at + size])
            at, turn = at + size, turn + 1
        assert received == messages

    asyncio.run(run())


async def test_what_falls_into_one_turn_is_one_message() -> None:
    said: list[int] = []
    told: list[Any] = []
    link = Link(told.append, lambda: None, lambda: tuple(said))
    pipe = Pipe()
    link.connection_made(pipe)
    for number in range(5):
        said.append(number)
        link.send_soon()
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    link.data_received(pipe.data)
    assert told == [(0, 1, 2, 3, 4)]


async def test_a_link_that_is_lost_says_so_once_and_sends_no_more() -> None:
    lost: list[int] = []
    link = Link(lambda _: None, lambda: lost.append(1), lambda: ())
    pipe = Pipe()
    link.connection_made(pipe)
    link.send_soon()
    link.connection_lost(None)
    await asyncio.sleep(0)
    link.send(())
    link.connection_lost(None)
    assert (lost, pipe.data) == ([1], b"")


@given(st.lists(st.integers(0, MOST_HEADS + 40), max_size=2000))
def test_both_ends_know_the_same_heads(which: list[int]) -> None:
    here, there = Heads(), Heads()
    for number in which:
        size = LONGEST_HEAD + 1 if number % 7 == 0 else 8
        head = number.to_bytes(size, "little")
        assert there.received(here.sent(head)) == head


def test_heads_are_forgotten_on_both_sides_at_once() -> None:
    here, there = Heads(), Heads()
    for number in range(3 * MOST_HEADS):
        for _ in range(2):
            head = number.to_bytes(4, "little")
            assert there.received(here.sent(head)) == head


def test_an_error_arrives_as_it_was() -> None:
    number, *told_ = told(7, ModelNotFound("unknown model 'm'"))
    error = heard(*told_)
    assert number == 7
    assert isinstance(error, ModelNotFound)
    assert str(error) == "unknown model 'm'"


def test_every_row_of_the_table_arrives_as_itself() -> None:
    for kind, row in errors.TABLE.items():
        sent = kind("m", 0.5) if issubclass(kind, Overloaded) else kind("m")
        arrived = heard(*told(1, sent)[1:])
        assert row_of(arrived) == row
        assert errors.retry_after(arrived) == errors.retry_after(sent)
    assert row_of(heard("INTERNAL", "m", None)) is errors.INTERNAL


@pytest.mark.parametrize(
    "sent", [Overloaded("m", 0.25), DeadlineTooShort("m", 0.25), errors.DeadlineExceeded("m", 0.25)]
)
def test_when_to_come_back_is_handed_over(sent: Exception) -> None:
    _, *said = told(1, sent)
    arrived = heard(*said)
    assert type(arrived) is type(sent)
    assert errors.retry_after(arrived) == 0.25
