"""Sessions as the server holds them: with a real model, and a connection that only listens."""

from __future__ import annotations

import asyncio
import pickle
import time
from collections.abc import AsyncIterator, Callable
from typing import Any, cast

import numpy as np
import pytest
from onnx import helper

from headrace.server.contract import InputTensor
from headrace.server.errors import Draining, ModelUnavailable, PermissionDenied, StreamRefused
from headrace.server.models.registry import Registry
from headrace.server.models.served import ServedModel
from headrace.server.streams.budget import StateBudget
from headrace.server.streams.events import Closed, Event, Gap, GapReason, Result
from headrace.server.streams.manager import LiveSession, SessionManager
from headrace.server.streams.options import Overload
from headrace.server.streams.terms import OpenRequest, SignalRequest, StreamLimits
from server import graphs
from server.conftest import Load
from server.streams.conftest import STATES, OneModel
from server.streams.driver import encode
from support import models

BYTES = 2 * 3 * 4  # of the recurrent model's state
LIMITS = StreamLimits(sessions=3, ttl=3600.0)


class Listener:
    """A connection whose client takes all that comes."""

    def __init__(self) -> None:
        self.manager: SessionManager | None = None
        self.events: list[Event] = []
        self.lost: list[LiveSession] = []
        self._news = asyncio.Event()

    def ready(self, live: LiveSession) -> None:
        asyncio.get_running_loop().call_soon(self._take, live)

    def _take(self, live: LiveSession) -> None:
        self.events += [pickle.loads(data)[1] for data in live.session.take(1 << 20)]
        assert self.manager is not None
        self.manager.sent(live)
        self.manager.told()
        self._news.set()

    def taken(self, live: LiveSession) -> None:
        self.lost.append(live)

    async def until(self, found: Callable[[list[Event]], bool]) -> None:
        async with asyncio.timeout(60):
            while not found(self.events):
                self._news.clear()
                await self._news.wait()

    def results(self) -> list[Result]:
        return [event for event in self.events if isinstance(event, Result)]

    def gaps(self) -> list[Gap]:
        return [event for event in self.events if isinstance(event, Gap)]


class House:
    """A manager over one model."""

    def __init__(self, model: ServedModel) -> None:
        self.registry = OneModel(model)
        self.budget = StateBudget(2 * BYTES)
        self.manager = SessionManager(
            cast(Registry, self.registry), LIMITS, self.budget, encode, time.monotonic
        )
        self.listener = Listener()
        self.listener.manager = self.manager

    def open(self, **fields: Any) -> LiveSession:
        asked = {"model": "m", "signals": [SignalRequest()], "window": 4, "rate": 1.0, **fields}
        return self.manager.open(OpenRequest(**asked), self.listener, 1)

    def send(self, live: LiveSession, *values: float) -> None:
        data = np.array(values, np.float32).tobytes()
        live.session.chunk(live.session.windower.received, [data], None, time.monotonic())
        self.manager.pump(live)

    async def close(self, live: LiveSession) -> Closed:
        live.session.close(time.monotonic())
        self.manager.pump(live)
        await self.listener.until(lambda events: any(isinstance(e, Closed) for e in events))
        return next(event for event in self.listener.events if isinstance(event, Closed))


Build = Callable[..., Any]


@pytest.fixture
async def house(load: Load) -> AsyncIterator[Build]:
    made: list[House] = []

    async def build(model: Any, **options: Any) -> House:
        made.append(House(await load(model, **options)))
        return made[-1]

    yield build
    for one in made:
        for live in list(one.manager._sessions.values()):
            one.manager._end(live)
        assert one.budget.used == 0


async def test_too_many_sessions_and_too_much_state(house: Build) -> None:
    one = await house(models.recurrent(), states=STATES)
    first = one.open()
    one.open()
    with pytest.raises(StreamRefused) as caught:
        one.open()
    assert caught.value.reason == "STATE_MEMORY"
    await one.close(first)
    assert len(one.manager) == 1
    one.open()
    other = await house(graphs.identity(("batch", 4)))
    for _ in range(3):
        other.open()
    with pytest.raises(StreamRefused) as caught:
        other.open()
    assert caught.value.reason == "TOO_MANY_SESSIONS"
    assert other.manager.statistics.sessions == 3


async def test_constants_and_samples_are_held_until_a_session_ends(house: Build) -> None:
    one = await house(models.arithmetic())
    width = 2 * BYTES // 4
    constant = InputTensor("b", "FP32", np.zeros((1, width), np.float32))
    fields = {"signals": [SignalRequest("a")], "window": width, "outputs": ["total"]}
    live = one.open(constants=[constant], **fields)
    assert one.budget.used == 2 * BYTES
    with pytest.raises(StreamRefused) as caught:
        one.open(constants=[constant], **fields)
    assert caught.value.reason == "STATE_MEMORY"
    one.send(live, *range(width))
    assert one.manager.memory.used > 4 * width
    await one.listener.until(lambda events: bool(events))
    one.manager._end(live)
    assert (one.budget.used, one.manager.memory.used) == (0, 0)


async def test_tokens_are_long_and_each_is_another(house: Build) -> None:
    one = await house(graphs.identity(("batch", 4)))
    lives = [one.open(ttl=10.0) for _ in range(3)]
    assert len({live.token for live in lives}) == len({live.id for live in lives}) == 3
    assert all(len(live.token) >= 16 for live in lives)


async def test_a_session_without_a_time_to_live_ends_with_its_connection(house: Build) -> None:
    one = await house(graphs.identity(("batch", 4)))
    live = one.open()
    assert live.token == b""
    one.send(live, *range(8))
    one.manager.detach(live)
    assert len(one.manager) == 0
    with pytest.raises(StreamRefused) as caught:
        one.manager.resume(live.id, b"", 0, one.listener, 1)
    assert caught.value.reason == "UNKNOWN_SESSION"


async def test_who_may_not_use_the_model_cannot_resume_its_session(house: Build) -> None:
    one = await house(graphs.identity(("batch", 4)))
    live = one.open(ttl=3600.0)

    def refuse(model: str) -> None:
        raise PermissionDenied(model)

    other = type(one.listener)()
    with pytest.raises(PermissionDenied, match=live.terms.recipe.model):
        one.manager.resume(live.id, live.token, 0, other, 2, refuse)
    assert live.connection is one.listener
    # Without the token, nobody learns of which model it is.
    with pytest.raises(StreamRefused):
        one.manager.resume(live.id, b"wrong", 0, other, 2, refuse)


async def test_a_detached_session_runs_on_and_expires(house: Build) -> None:
    one = await house(graphs.identity(("batch", 4)))
    live = one.open(ttl=3600.0)
    one.send(live, *range(8))
    one.manager.detach(live)
    await asyncio.wait(live.runs)
    resumed = one.manager.resume(live.id, live.token, 0, one.listener, 2)
    assert resumed is live
    assert live.expiry is None
    await one.listener.until(lambda events: len(events) == 2)
    brief = one.open(ttl=0.001)
    one.manager.detach(brief)
    async with asyncio.timeout(60):
        while len(one.manager) > 1:  # noqa: ASYNC110 (a timer, and nobody is told)
            await asyncio.sleep(0.001)


async def test_a_full_queue_puts_windows_off_and_loses_none(house: Build) -> None:
    one = await house(models.slowed(models.scaled()), max_queued_requests=1)
    live = one.open(window=1)
    one.send(live, *range(100))
    assert live.session.retry_at is not None
    closed = await one.close(live)
    assert (closed.answered, closed.dropped) == (100, 0)
    values = [float(r.computed.outputs[0][1][0, 0]) for r in one.listener.results()]
    assert values == [2.0 * n for n in range(100)]


async def test_a_full_queue_and_only_the_latest(house: Build) -> None:
    one = await house(models.slowed(models.scaled()), max_queued_requests=1)
    lives = [one.open(window=1, overload=Overload.LATEST_ONLY) for _ in range(3)]
    for live in lives:
        one.send(live, 1.0)
    await one.listener.until(lambda events: len(events) == 3)
    reasons = {gap.reason for gap in one.listener.gaps()}
    assert reasons <= {GapReason.OVERLOADED}
    assert one.listener.results()
    assert one.manager.statistics.answered == len(one.listener.results())
    assert one.manager.statistics.dropped["overloaded"] == len(one.listener.gaps())


async def test_a_window_that_the_model_fails_on(house: Build) -> None:
    """`picked` looks its index up in a table of ten; the state of others is not at stake."""
    node = helper.make_node("Gather", ["table", "x"], ["y"])
    inputs = [graphs.tensor("x", ("batch", 1), "INT64")]
    outputs = [graphs.tensor("y", ("batch", 1), "INT64")]
    table = {"table": np.arange(100, 110, dtype=np.int64)}
    one = await house(graphs.build([node], inputs, outputs, table))
    live = one.open(window=1)
    data = np.array([1, 2, 99, 4], np.int64).tobytes()
    live.session.chunk(0, [data], None, time.monotonic())
    one.manager.pump(live)
    closed = await one.close(live)
    assert (closed.answered, closed.dropped) == (3, 1)
    (gap,) = one.listener.gaps()
    assert (gap.reason, gap.span.first_window) == (GapReason.FAILED, 2)
    assert "out of data bounds" in gap.message
    values = [int(r.computed.outputs[0][1][0, 0]) for r in one.listener.results()]
    assert values == [101, 102, 104]


async def test_a_model_that_goes_and_comes_back(house: Build) -> None:
    one = await house(graphs.identity(("batch", 4)))
    live = one.open()
    one.registry.error = ModelUnavailable("model 'm' is UNLOADING")
    one.send(live, *range(8))
    one.registry.error = None
    one.send(live, *range(4))
    closed = await one.close(live)
    assert (closed.answered, closed.dropped) == (1, 2)
    assert {gap.reason for gap in one.listener.gaps()} == {GapReason.UNAVAILABLE}
    assert one.listener.gaps()[0].message == "model 'm' is UNLOADING"


async def test_draining_tells_all_and_takes_no_more(house: Build) -> None:
    one = await house(models.slowed(models.scaled()))
    attached, detached = one.open(window=1, ttl=60.0), one.open(window=1, ttl=60.0)
    one.manager.detach(detached)
    one.send(attached, *range(30))
    await one.manager.drain()
    assert len(one.listener.results()) == 30
    assert isinstance(one.listener.events[-1], Closed)
    assert not one.listener.events[-1].asked
    with pytest.raises(Draining):
        one.open()
    with pytest.raises(Draining):
        one.manager.resume(attached.id, attached.token, 0, one.listener, 1)


async def test_giving_up_tells_what_was_not_done(house: Build) -> None:
    one = await house(models.slowed(models.scaled(), 3000))
    live = one.open(window=3)
    one.send(live, *range(9))
    draining = asyncio.ensure_future(one.manager.drain())
    await asyncio.sleep(0)
    await one.manager.give_up()
    await draining
    assert sum(g.span.end_window - g.span.first_window for g in one.listener.gaps()) == 3
    assert {gap.reason for gap in one.listener.gaps()} == {GapReason.STOPPING}
    assert isinstance(one.listener.events[-1], Closed)
