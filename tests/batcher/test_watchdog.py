"""Which runs are given up, and what becomes of those who waited for them."""

from __future__ import annotations

import asyncio
import math
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.batcher.callers import Answer
from headrace.batcher.errors import BatcherError, ExecutionFailed, ExecutorHung, NoExecutor
from headrace.batcher.executor import Completion, Done, Executor
from headrace.batcher.observer import Observer
from headrace.batcher.policy import WorkConserving
from headrace.batcher.promise import Promise
from headrace.batcher.request import Batch, Reason, Reject, Request, Why
from headrace.batcher.runner import Runner
from headrace.batcher.state import Limits, State
from headrace.batcher.testing import ManualClock
from headrace.batcher.watchdog import Watchdog, bound

HANG = 10.0


def batch_of(started: float, expected: float = 0.1, executor: str = "e0") -> Batch:
    request = Request("key", None, started)
    return Batch("key", [request], executor, Reason.FULL, started, expected=expected)


def watching(*batches: Batch) -> Watchdog:
    state = State({f"e{n}": "cpu" for n in range(2)}, Limits(hang_seconds=HANG))
    for batch in batches:
        state.running[batch.executor] = batch
    return Watchdog(state)


def looks(watchdog: Watchdog, first: float | None, end: float) -> list[tuple[float, Batch]]:
    """Looks as often as it asks to, up to `end`. Returns when each batch was found to hang."""
    found: list[tuple[float, Batch]] = []
    while first is not None and first <= end:
        hung, again = watchdog.look(first)
        found += [(first, batch) for batch in hung]
        assert again is None or again > first
        first = again
    return found


def test_a_run_is_given_up_at_its_bound_and_no_sooner() -> None:
    batch = batch_of(100.0)
    watchdog = watching(batch)
    assert looks(watchdog, watchdog.begin(100.0), 109.9) == []
    watchdog = watching(batch)
    (when, found) = looks(watchdog, watchdog.begin(100.0), 110.0)[0]
    assert (when, found) == (110.0, batch)


@pytest.mark.parametrize(
    ("expected", "seconds"), [(0.001, HANG), (HANG, 20 * HANG), (math.nan, 10 * HANG)]
)
def test_the_bound_grows_with_what_was_predicted(expected: float, seconds: float) -> None:
    assert bound(batch_of(0.0, expected), HANG) == seconds


def test_each_run_has_its_own_time() -> None:
    early, late = batch_of(100.0), batch_of(104.0, executor="e1")
    watchdog = watching(early, late)
    assert looks(watchdog, watchdog.begin(100.0), 120.0)[:2] == [(110.0, early), (112.5, early)]
    watchdog = watching(late)
    assert looks(watchdog, watchdog.begin(104.0), 114.0) == [(114.0, late)]


def test_what_is_idle_is_not_watched() -> None:
    watchdog = watching()
    assert watchdog.begin(100.0) is None
    assert watchdog.look(200.0) == ([], None)


def test_a_process_that_stood_still_gives_nobody_up() -> None:
    """Stopped for a minute while a run was under way: the run was stopped with it."""
    batch = batch_of(100.0)
    watchdog = watching(batch)
    watchdog.begin(100.0)
    hung, again = watchdog.look(160.0)
    assert hung == []
    assert again is not None
    assert looks(watchdog, again, 1000.0)[0] == (170.0, batch)


def test_without_a_bound_nothing_is_watched() -> None:
    state = State({"e0": "cpu"}, Limits())
    state.running["e0"] = batch_of(0.0)
    assert Watchdog(state).begin(0.0) is None


def test_a_bound_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="hang_seconds: expected more than 0, got 0"):
        Limits(hang_seconds=0)


# ---- the runner


class Stubborn:
    """An executor whose runs end when told, in any order, also after it was given up."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.kind = "fake"
        self.team = 0
        self.runs: list[tuple[Batch, Done]] = []
        self.deserted: list[Batch] = []

    def start(self, batch: Batch, done: Done) -> None:
        assert not self.deserted, "a batch was given to an executor that was given up"
        self.runs.append((batch, done))

    def abandon(self, batch: Batch) -> None: ...

    def desert(self, batch: Batch) -> None:
        self.deserted.append(batch)

    def end(self, completion: Completion | None = None) -> None:
        batch, done = self.runs.pop(0)
        done(batch, completion or Completion([request.payload for request in batch.requests]))


class Ends(Observer):
    """Counts how each request ended."""

    def __init__(self) -> None:
        self.accepted_: set[Request] = set()
        self.ended: Counter[Request] = Counter()
        self.hangs = self.refused = 0

    def accepted(self, request: Request) -> None:
        self.accepted_.add(request)

    def rejected(self, refusal: Reject) -> None:
        if refusal.request in self.accepted_:
            self.ended[refusal.request] += 1
        else:
            self.refused += 1

    def dropped(self, request: Request, why: Why, now: float) -> None:
        self.ended[request] += 1

    def answered(self, request: Request, batch: Batch, completion: Completion, now: float) -> None:
        self.ended[request] += 1

    def failed(self, request: Request, now: float) -> None:
        self.ended[request] += 1

    def hung(self, batch: Batch, now: float) -> None:
        self.hangs += 1


class House:
    """A runner with some executors, under a clock of the test's own."""

    def __init__(self, executors: int = 1, hang_seconds: float = HANG, **limits: int) -> None:
        self.clock = ManualClock()
        self.now = {f"e{n}": Stubborn(f"e{n}") for n in range(executors)}
        self.given_up: list[Stubborn] = []
        self.log = Ends()
        self.runner = Runner(
            list(self.now.values()),
            WorkConserving(),
            Limits(hang_seconds=hang_seconds, **limits),
            self.clock,
            self.log,
        )
        self.runner.lost = self.lost

    def lost(self, executor: Executor, batch: Batch) -> None:
        assert isinstance(executor, Stubborn)
        assert executor.deserted == [batch]
        self.given_up.append(executor)

    def submit(self, payload: object, deadline: float = math.inf) -> Promise[Answer]:
        now = self.clock()
        return self.runner.submit(Request("key", payload, now, deadline=now + deadline))

    def put(self, name: str) -> None:
        self.now[name] = Stubborn(name)
        self.runner.put(self.now[name])

    def hang(self) -> None:
        """Time goes by until the watchdog has given up whatever runs."""
        for _ in range(60):
            self.clock.advance(HANG / 4)
            self.runner._look_now()


async def settle() -> None:
    for _ in range(4):
        await asyncio.sleep(0)


async def test_those_of_a_hung_run_are_told_and_the_next_ones_served() -> None:
    house = House(max_batch_rows=2)
    hung = [house.submit(n) for n in range(2)]
    await settle()
    waiting = house.submit("waits")
    house.hang()
    for future in hung:
        with pytest.raises(ExecutorHung, match=r"has not come back for .* executor e0 is replaced"):
            await future
    assert hung[0].exception() is not hung[1].exception()
    (old,) = house.given_up
    assert house.log.hangs == 1
    assert not house.runner.state.able
    assert not waiting.done()
    house.put("e0")
    await settle()
    house.now["e0"].end()
    assert (await waiting).result == "waits"
    old.end()  # what hung comes back after all
    await settle()
    assert set(house.log.ended.values()) == {1}
    assert house.runner.state.idle == ["e0"]


async def test_a_late_result_does_not_end_the_run_that_came_after() -> None:
    house = House()
    first = house.submit("first")
    await settle()
    house.hang()
    house.put("e0")
    second = house.submit("second")
    await settle()
    house.given_up[0].end(Completion(["wrong"]))
    await settle()
    assert not second.done()
    house.now["e0"].end()
    assert (await second).result == "second"
    assert isinstance(first.exception(), ExecutorHung)


async def test_others_work_on_meanwhile() -> None:
    house = House(executors=2, max_batch_rows=1)
    futures = [house.submit(n) for n in range(4)]
    await settle()
    for _ in range(3):
        house.now["e1"].end()
        await settle()
    house.hang()
    assert [future.done() and not future.exception() for future in futures].count(True) == 3
    assert house.runner.state.able
    assert house.runner.state.executors == ["e1"]


async def test_with_no_executor_left_nobody_waits_for_one() -> None:
    house = House()
    house.submit("hangs").add_done_callback(lambda future: future.exception())
    await settle()
    house.hang()
    waiting = house.submit("waits")
    house.runner.unable("the device is gone")
    with pytest.raises(NoExecutor, match="the device is gone"):
        await waiting
    with pytest.raises(NoExecutor, match="the device is gone"):
        house.submit("comes")
    assert house.log.refused == 1
    house.put("e0")
    served = house.submit("served")
    await settle()
    house.now["e0"].end()
    assert (await served).result == "served"


async def test_with_another_left_it_is_nothing_to_those_who_wait() -> None:
    house = House(executors=2)
    first = house.submit("hangs")
    await settle()
    house.hang()
    house.runner.unable("the device is gone")
    second = house.submit("served")
    await settle()
    house.now["e1"].end()
    assert (await second).result == "served"
    assert first.exception() is not None


async def test_a_drain_does_not_wait_for_what_was_given_up() -> None:
    house = House()
    first = house.submit("hangs")
    await settle()
    draining = asyncio.ensure_future(house.runner.drain())
    await settle()
    assert not draining.done()
    house.hang()
    await draining
    assert isinstance(first.exception(), ExecutorHung)


async def test_the_timer_finds_it() -> None:
    """With a bound that is short by the clock on the wall, nobody needs to ask."""
    house = House(hang_seconds=0.02)
    future = house.submit("hangs")
    await settle()
    # Nothing is known of what a run takes: it has ten times as long.
    while not future.done():
        house.clock.advance(0.0005)  # slowly: it only counts what it sees pass
        await asyncio.sleep(0.001)
    assert isinstance(future.exception(), ExecutorHung)


STEPS = st.lists(
    st.tuples(
        st.sampled_from(
            ["submit", "submit", "submit", "end", "fail", "late", "hang", "put", "unable", "cancel"]
        ),
        st.integers(0, 10**6),
    ),
    max_size=40,
)


@settings(max_examples=300, deadline=None)
@given(STEPS, st.integers(1, 3))
def test_whatever_hangs_every_request_ends_once(
    steps: list[tuple[str, int]], executors: int
) -> None:
    asyncio.run(play(steps, executors))


async def play(steps: list[tuple[str, int]], executors: int) -> None:
    house = House(executors, max_batch_rows=3, max_queued_requests=6)
    futures: list[tuple[int, Promise[Answer]]] = []
    refused = 0
    for number, (step, pick) in enumerate(steps):
        if step == "submit":
            deadline = math.inf if pick % 3 else 3 * HANG
            try:
                futures.append((number, house.submit(number, deadline)))
            except BatcherError:  # told at once: an end of its own
                refused += 1
        else:
            act(house, futures, step, pick)
        await settle()
    house.clock.advance(4 * HANG)  # what has a deadline and waits is too late now
    for name in sorted(house.runner.state.absent):
        house.put(name)
    house.runner._decide_soon()
    await settle()
    while any(executor.runs for executor in house.now.values()):
        act(house, futures, "end", 0)
        await settle()
    for executor in house.given_up:
        while executor.runs:
            executor.end()
    await settle()
    for number, future in futures:
        assert future.done()
        if not future.cancelled() and future.exception() is None:
            assert future.result().result == number
        elif not future.cancelled():
            assert isinstance(future.exception(), BatcherError)
    assert all(house.log.ended[request] == 1 for request in house.log.accepted_)
    assert not house.runner._callers._promises
    assert house.log.refused == refused


def act(house: House, futures: list[tuple[int, Promise[Answer]]], step: str, pick: int) -> None:
    busy = [executor for executor in house.now.values() if executor.runs]
    if step in ("end", "fail") and busy:
        error = ExecutionFailed("as the test says") if step == "fail" else None
        busy[pick % len(busy)].end(Completion(error=error) if error else None)
    elif step == "late" and house.given_up:
        executor = house.given_up[pick % len(house.given_up)]
        if executor.runs:
            executor.end()
    elif step == "hang":
        house.hang()
        for executor in house.given_up:
            if house.now.get(executor.name) is executor:
                del house.now[executor.name]
    elif step == "put" and house.runner.state.absent:
        absent = sorted(house.runner.state.absent)
        house.put(absent[pick % len(absent)])
    elif step == "unable":
        house.runner.unable("as the test says")
    elif step == "cancel" and futures:
        futures[pick % len(futures)][1].cancel()
