"""Calls are read by a thread, and by the event loop while answers are brief: none is ever lost."""

from __future__ import annotations

import asyncio
import queue
import threading
from collections import defaultdict
from collections.abc import Callable
from itertools import pairwise

import pytest

from headrace.server.rpc.native_reader import Events, Reader

LOOP = threading.main_thread()


class Front:
    """Calls in the order in which they were sent. Knows the thread that read each."""

    def __init__(self) -> None:
        self._calls: queue.Queue[int | None] = queue.Queue()
        self.readers: list[threading.Thread] = []

    def send(self, call: int) -> None:
        self._calls.put(call)

    def close(self) -> None:
        self._calls.put(None)

    def recv_batch_details(self, most: int, timeout_ms: int | None = None) -> Events | None:
        try:
            wait = None if timeout_ms is None else timeout_ms / 1e3
            call = self._calls.get(timeout_ms != 0, wait)
        except queue.Empty:
            return []
        if call is None:
            self._calls.put(None)  # for whoever asks next
            return None
        self.readers.append(threading.current_thread())
        return [(call,)]


class House:
    """A reader of calls that are answered when `answer` says. `now` stands still unless it is
    moved: how busy the machine is changes nothing."""

    def __init__(self, answer: Callable[[House, int], None]) -> None:
        self.front = Front()
        self.outstanding: set[int] = set()
        self.answered: list[int] = []
        self._told: dict[int, asyncio.Event] = defaultdict(asyncio.Event)
        self._following: dict[int, int] = {}
        self._answer = answer
        self.now = 0.0
        self.reader = Reader(self.front, self._arrived, self.outstanding, lambda: self.now)

    def _arrived(self, events: Events) -> None:
        for (call,) in events:
            self.outstanding.add(call)
            self._answer(self, call)

    def done(self, call: int) -> None:
        self.outstanding.remove(call)
        self.answered.append(call)
        self._told[call].set()
        if call in self._following:
            self.front.send(self._following[call])
        if not self.outstanding:
            self.reader.all_answered()

    async def ask(self, *calls: int) -> None:
        """Sends one after the other, each when the one before has been answered."""
        for call, following in pairwise(calls):
            self._following[call] = following
        self.front.send(calls[0])
        await self.told(calls[-1])

    async def told(self, call: int) -> None:
        await asyncio.wait_for(self._told[call].wait(), 10)


def at_once(house: House, call: int) -> None:
    house.done(call)


def some_turns_later(house: House, call: int, turns: int = 12) -> None:
    if turns:
        asyncio.get_running_loop().call_soon(some_turns_later, house, call, turns - 1)
    else:
        house.done(call)


def by_a_thread(house: House, call: int) -> None:
    house.now += 0.005
    asyncio.get_running_loop().call_later(0.001, house.done, call)


def here(reader: threading.Thread) -> bool:
    return reader is LOOP


@pytest.mark.parametrize("answer", [at_once, some_turns_later])
async def test_the_loop_reads_while_answers_are_brief(answer: Callable[[House, int], None]) -> None:
    house = House(answer)
    house.reader.start()
    await house.ask(*range(400))
    assert not any(map(here, house.front.readers[:16]))
    assert sum(map(here, house.front.readers)) > 200
    assert house.answered == list(range(400))
    house.front.close()


async def test_what_takes_longer_is_read_by_the_thread() -> None:
    house = House(by_a_thread)
    house.reader.start()
    await house.ask(*range(20))
    assert not any(map(here, house.front.readers))
    house.front.close()


async def test_the_thread_goes_on_when_something_takes_longer() -> None:
    """Calls that come while one is outstanding are read all the same."""
    taken = asyncio.Event()

    def answer(house: House, call: int) -> None:
        if call == 300:
            taken.set()
        else:
            house.done(call)

    house = House(answer)
    house.reader.start()
    await house.ask(*range(300))
    house.front.send(300)
    await asyncio.wait_for(taken.wait(), 10)
    for _ in range(100):  # more turns than those for which the loop goes on
        await asyncio.sleep(0)
    await house.ask(301, 302)
    assert not any(map(here, house.front.readers[-2:]))
    house.done(300)
    await house.ask(303)
    assert house.answered[-4:] == [301, 302, 300, 303]
    house.front.close()


async def test_nothing_is_waited_for_long_in_vain() -> None:
    """With nobody calling the loop is left alone, and the next call is read by the thread."""
    house = House(at_once)
    house.reader.start()
    await house.ask(*range(100))
    assert here(house.front.readers[-1])
    await asyncio.sleep(0.1)
    await house.ask(100)
    assert not here(house.front.readers[-1])
    house.front.close()


async def test_what_goes_wrong_leaves_nobody_deaf() -> None:
    def answer(house: House, call: int) -> None:
        house.done(call)
        if call % 50 == 49:
            raise RuntimeError("a fault of ours")

    told: list[dict[str, object]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: told.append(context))
    house = House(answer)
    house.reader.start()
    await house.ask(*range(201))
    assert len(told) == 4
    house.front.close()


async def test_a_closed_front_ends_the_reading_on_either_side() -> None:
    house = House(at_once)
    house.reader.start()
    await house.ask(*range(100))
    (thread,) = {reader for reader in house.front.readers if not here(reader)}
    house.front.close()
    await asyncio.to_thread(thread.join, 10)
    assert not thread.is_alive()


async def test_a_loop_that_is_gone_ends_the_thread() -> None:
    house, before = House(at_once), set(threading.enumerate())

    async def start() -> None:
        house.reader.start()

    await asyncio.to_thread(asyncio.run, start())
    (thread,) = (t for t in set(threading.enumerate()) - before if t.name == "grpc")
    house.front.send(1)
    await asyncio.to_thread(thread.join, 10)
    assert not thread.is_alive()
