"""What all sessions hold together, whatever their clients do, and that those who read go on."""

from __future__ import annotations

import contextlib
import pickle
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.server.errors import StreamRefused
from headrace.server.streams.budget import StreamMemory
from headrace.server.streams.deliveries import Work
from headrace.server.streams.events import Computed, Gap, GapReason
from headrace.server.streams.options import Overload
from headrace.server.streams.session import Session
from headrace.server.streams.window import Framing
from server.streams.driver import SPEC, encode, terms

# What is not asked for in advance: how a delivery is written down, and what a flush notes.
SLACK = 2048
FOUR = Framing(4, 4)
STEP = "chunk chunk run run fail take ack flush"
STEPS = st.lists(
    st.tuples(st.integers(0, 3), st.sampled_from(STEP.split()),
              st.integers(1, 40)),
    max_size=80,
)  # fmt: skip


class Client:
    """One session, whose model gives `width` numbers for a window."""

    def __init__(
        self,
        memory: StreamMemory,
        width: int,
        overload: Overload,
        ttl: float,
        framing: Framing = FOUR,
    ) -> None:
        options = terms(framing, buffer=4000, overload=overload, ttl=ttl)
        self.session = Session(options, encode, (), memory)
        self.width = width
        self.sent = self.taken = 0
        self.running: list[Work] = []

    def act(self, step: str, number: int) -> None:
        session = self.session
        if step == "chunk":
            data = np.zeros((number, 1), np.int32).tobytes()
            session.chunk(self.sent, [data], None, 0.0)
            self.sent += number
        elif step == "take":
            self.taken += len(session.take(number * 64))
        elif step == "ack":
            session.ack(self.taken)
        elif step == "flush":
            session.flush(0.0)
        elif self.running:
            work = self.running.pop(number % len(self.running))
            if step == "run":
                session.complete(work.index, Computed([(SPEC, np.zeros(self.width, np.int32))]))
            else:
                session.fail(work.index, GapReason.FAILED, "as the test says")
        while (work_ := session.next_work(0.0)) is not None:
            self.running.append(work_)

    @property
    def holds(self) -> int:
        """Counted one by one."""
        session = self.session
        blocks = {id(block): block.nbytes for block in session.windower._blocks}
        for work in self.running:
            for array in work.window.arrays:
                base = array if array.base is None else array.base
                blocks[id(base)] = base.nbytes
        outbox, slots = session.deliveries.outbox, session.deliveries._slots
        written = sum(len(data) for _, data in [*outbox._unsent, *outbox._unacked])
        return sum(blocks.values()) + written + sum(slot.nbytes for slot in slots)


def check(memory: StreamMemory, clients: Sequence[Client]) -> None:
    assert memory.used == sum(client.session.holding.nbytes for client in clients)
    for client in clients:
        assert client.session.holding.nbytes >= client.holds
    expected = sum(client.session.deliveries.expected for client in clients)
    assert memory.used - expected <= 2 * memory.limit + SLACK * len(clients)


@settings(max_examples=200)
@given(
    STEPS,
    st.sampled_from([600, 3_000, 20_000]),
    st.sampled_from([1, 100, 2000]),
    st.sampled_from(Overload),
    st.sampled_from([0.0, 30.0]),
)
def test_it_is_counted_and_bounded(
    steps: list[tuple[int, str, int]], limit: int, width: int, overload: Overload, ttl: float
) -> None:
    memory = StreamMemory(limit, 4)
    clients = [Client(memory, width, overload, ttl) for _ in range(4)]
    for who, step, number in steps:
        with contextlib.suppress(StreamRefused):
            clients[who].act(step, number)
        check(memory, clients)
    for client in clients:
        client.session.holding.let_go()
        client.act("run", 0)  # a run may end after its session
    assert memory.used == 0


def test_who_does_not_read_is_stopped_and_who_reads_goes_on() -> None:
    """And nobody loses a result."""
    memory = StreamMemory(400_000, 10)
    deaf = [Client(memory, 500, Overload.REFUSE, 0.0) for _ in range(5)]
    for client in deaf:
        client.act("chunk", 2_000)
    while any(client.running for client in deaf):
        for client in deaf:
            client.act("run", 0)
    assert memory.crowded
    reader = Client(memory, 500, Overload.REFUSE, 0.0)
    for _ in range(100):
        for step in ("chunk", "run", "take"):
            reader.act(step, 4)
    assert reader.taken == 100
    check(memory, [*deaf, reader])
    assert all(client.session.deliveries.dropped == 0 for client in [*deaf, reader])
    for client in deaf:
        client.session.holding.let_go()
    assert not memory.crowded


def test_a_chunk_without_room_is_refused_and_the_session_goes_on() -> None:
    memory = StreamMemory(1_000, 4)
    client, other = (Client(memory, 1, Overload.REFUSE, 0.0) for _ in range(2))
    client.act("chunk", 2)
    before = memory.used
    other.act("chunk", 40)
    with pytest.raises(StreamRefused, match=r"expected room for \d+ bytes.*max_stream_bytes") as e:
        client.act("chunk", 40)
    assert e.value.reason == "STREAM_MEMORY"
    other.session.holding.let_go()
    assert memory.used == before
    client.act("chunk", 2)
    assert client.running


def test_a_result_without_room_is_a_gap() -> None:
    """Rather than more memory: its window had run before anybody knew how large it would be."""
    memory = StreamMemory(1_000, 1)
    client = Client(memory, 1_000, Overload.REFUSE, 0.0)
    client.act("chunk", 4)
    client.act("run", 0)
    (slot,) = client.session.take(1 << 20)
    assert memory.used <= 2 * memory.limit
    _, event = pickle.loads(slot)
    assert isinstance(event, Gap)
    assert event.reason is GapReason.OVERLOADED
    assert "max_stream_bytes" in event.message


def test_a_full_block_is_counted_as_long_as_a_window_of_it_runs() -> None:
    memory = StreamMemory(1 << 20, 1)
    client = Client(memory, 1, Overload.REFUSE, 0.0, Framing(500, 500))
    client.act("chunk", 2_000)
    first, *client.running = client.running
    client.act("chunk", 1_900)  # to a block of its own
    while client.running:
        client.act("run", 0)
    client.running = [first]
    check(memory, [client])
    before = memory.used
    client.act("run", 0)
    assert memory.used < before - 4 * 2_000
    check(memory, [client])
