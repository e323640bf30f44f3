"""Executors' threads that go on by themselves, beside the event loop: every request ends once."""

from __future__ import annotations

import asyncio
import math
import queue
import random
import sys
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from functools import partial

import pytest

from headrace.batcher.errors import BatcherError, Draining, ExecutionFailed, Expired
from headrace.batcher.executor import Completion, Done
from headrace.batcher.learned import Learned
from headrace.batcher.policy import WorkConserving
from headrace.batcher.request import Batch, Request
from headrace.batcher.runner import Runner
from headrace.batcher.state import Limits
from headrace.batcher.testing import FakeExecutor, ManualClock
from support.runner_bench import Bench, Log, settle


class Threaded(FakeExecutor):
    """Runs on a thread, as soon as it may; a batch's results are its payloads."""

    def __init__(self, name: str = "fake") -> None:
        super().__init__(name)
        self._jobs: queue.SimpleQueue[tuple[Batch, Done] | None] = queue.SimpleQueue()
        self.gate = threading.Event()
        self.gate.set()
        self.gone_on = 0
        self.rests = threading.Event()
        self._thread = threading.Thread(target=self._work)
        self._thread.start()

    def start(self, batch: Batch, done: Done) -> None:
        self._jobs.put((batch, done))

    async def close(self) -> None:
        self._jobs.put(None)
        await asyncio.to_thread(self._thread.join)

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            batch, done = job
            while True:
                self.gate.wait()
                self.batches.append(batch)
                following = done(
                    batch, Completion([r.payload for r in batch.requests]), goes_on=True
                )
                if following is None:
                    self.rests.set()
                    break
                assert following.executor == self.name
                self.gone_on += 1
                batch = following


@asynccontextmanager
async def threaded(*names: str) -> AsyncIterator[list[Threaded]]:
    executors = [Threaded(name) for name in names]
    try:
        yield executors
    finally:
        for executor in executors:
            executor.gate.set()
            await executor.close()


async def test_an_executors_thread_goes_on_with_what_waits() -> None:
    async with threaded("a") as (executor,):
        executor.gate.clear()
        log = Log()
        runner = Runner([executor], WorkConserving(), Limits(max_batch_rows=1), ManualClock(), log)
        promises = [runner.submit(Request("key", n, 0.0)) for n in range(3)]
        await settle()
        executor.gate.set()
        assert [(await promise).result for promise in promises] == [0, 1, 2]
        await runner.drain()
    assert executor.gone_on > 0  # as often as the loop had heard of the run before
    told = [what for what, _ in log.calls if what != "accepted"]
    assert told == ["dispatched", "completed", "answered"] * 3


async def test_an_executor_is_one_run_ahead_of_what_the_loop_has_heard() -> None:
    async with threaded("a") as (executor,):
        executor.gate.clear()
        runner = Runner([executor], WorkConserving(), Limits(max_batch_rows=1), ManualClock())
        promises = [runner.submit(Request("key", n, 0.0)) for n in range(4)]
        await settle()
        executor.gate.set()
        executor.rests.wait()  # the loop is kept from hearing of it
        assert len(executor.batches) == 2
        assert not any(promise.done() for promise in promises)
        assert [(await promise).result for promise in promises] == [0, 1, 2, 3]
        await runner.drain()


async def test_draining_waits_until_those_that_have_run_are_told() -> None:
    async with threaded("a") as (executor,):
        executor.gate.clear()
        clock = ManualClock(0.0)
        runner = Runner([executor], WorkConserving(), Limits(max_batch_rows=1), clock)
        first = runner.submit(Request("key", 1, 0.0))
        await settle()
        expires = runner.submit(Request("key", 2, 0.0, deadline=0.5))
        await settle()
        clock.advance(1.0)
        executor.gate.set()
        while runner.state.device.running:
            time.sleep(0.001)  # noqa: ASYNC251 (the loop is kept from hearing of it)
        await runner.drain()
        assert first.done()
        with pytest.raises(Expired):
            expires.result()


async def test_what_is_aborted_is_not_gone_on_with() -> None:
    async with threaded("a") as (executor,):
        executor.gate.clear()
        runner = Runner([executor], WorkConserving(), Limits(max_batch_rows=1), ManualClock())
        promises = [runner.submit(Request("key", n, 0.0)) for n in range(3)]
        await settle()
        # Between the flag and the end of what waits, as by the loop's thread.
        with runner._lock:
            runner._draining = runner._callers.aborted = True
        executor.gate.set()
        while runner.state.device.running:
            time.sleep(0.001)  # noqa: ASYNC251 (the loop is kept from hearing of it)
        runner.abort()
        await runner.drain()
        assert executor.gone_on == 0
        assert promises[0].result().result == 0
        for promise in promises[1:]:
            with pytest.raises(Draining):
                promise.result()


async def test_an_executor_that_was_given_up_is_told_of_nothing_more() -> None:
    bench = Bench(max_batch_rows=1)
    first = bench.submit("first")
    bench.submit("second")
    await settle()
    (batch,) = bench.executor.batches
    bench.runner._give_up(batch, bench.clock())
    with pytest.raises(ExecutionFailed):
        await first
    done = partial(bench.runner._done, batch, Completion(["first"]), goes_on=True)
    assert await asyncio.to_thread(done) is None


def test_a_loop_that_is_gone_ends_what_threads_do() -> None:
    async def begun() -> tuple[Runner, Batch]:
        bench = Bench(max_batch_rows=1)
        bench.submit("first")
        bench.submit("second")
        await settle()
        return bench.runner, bench.executor.batches[0]

    runner, batch = asyncio.run(begun())
    for goes_on in (True, False):
        done = partial(runner._done, batch, Completion(["first"]), goes_on=goes_on)
        with ThreadPoolExecutor(1) as pool:
            assert pool.submit(done).result() is None


@pytest.mark.parametrize("learned", [False, True])
async def test_beside_threads_every_request_ends_once(learned: bool) -> None:
    """Two executors, callers who come, leave and come again, threads that switch at any time."""
    policy = Learned() if learned else WorkConserving()
    dice = random.Random(7)
    switches = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        async with threaded("a", "b") as executors:
            runner = Runner(executors, policy, Limits(max_batch_rows=4), time.monotonic)
            ends: Counter[str] = Counter()

            async def caller(name: int) -> None:
                for n in range(150):
                    payload = (name, n)
                    now = time.monotonic()
                    key, deadline = dice.choice("xy"), dice.choice([math.inf, now + 0.05])
                    try:
                        promise = runner.submit(Request(key, payload, now, deadline=deadline))
                        if dice.random() < 0.2:
                            await asyncio.sleep(0)
                            ends["left"] += promise.cancel()
                        answer = await promise
                    except asyncio.CancelledError:
                        continue
                    except BatcherError as error:
                        ends[type(error).__name__] += 1
                    else:
                        assert answer.result == payload
                        ends["answered"] += 1

            await asyncio.gather(*(caller(name) for name in range(12)))
            await runner.drain()
            gone_on = sum(executor.gone_on for executor in executors)
    finally:
        sys.setswitchinterval(switches)
    assert ends["answered"] > 500
    assert ends.total() == 12 * 150
    assert gone_on > 0
    assert runner.state.queued_requests == runner.state.device.running == 0
    assert not runner.state.queues
    assert not runner.state.shares
