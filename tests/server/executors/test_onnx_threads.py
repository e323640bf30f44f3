"""Where a batch runs, what its thread runs next, and how it is told to stop."""

from __future__ import annotations

import asyncio
import math
import os
import threading
import time
import weakref
from typing import Any, cast

import numpy as np
import pytest

from headrace.batcher.executor import Completion
from headrace.batcher.request import Batch
from headrace.inference.tensors import Array
from headrace.server.executors.onnx import BRIEF, OnnxExecutor, Seat
from headrace.server.executors.payload import Payload
from headrace.server.executors.running import run_session
from server import graphs
from server.executors.runs import Start, batch_of, key_of, rows, run, values


async def places(
    executor: OnnxExecutor, monkeypatch: pytest.MonkeyPatch, *sizes: tuple[int, float]
) -> list[bool]:
    """Whether batches of so many rows, expected to take so many seconds, ran on this thread."""
    seen: list[bool] = []

    def spy(*arguments: Any) -> list[Array]:
        seen.append(threading.current_thread() is threading.main_thread())
        return run_session(*arguments)

    monkeypatch.setattr("headrace.server.executors.onnx.run_session", spy)
    for size, expected in sizes:
        batch = batch_of(key_of(rows(1, 0)[0]), rows(size, size))
        batch.expected = expected
        assert values(await run(executor, batch)) == [[[[size + 1.0] * 3] * size]]
    return seen


async def test_brief_batches_of_steady_models_run_on_the_event_loop(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once as large a batch has run on the executor's own thread."""
    executor = start(graphs.plus(1.0), steady=True)
    sizes = ((2, BRIEF / 2), (2, BRIEF / 2), (1, BRIEF / 2), (3, BRIEF / 2), (3, BRIEF / 2))
    assert await places(executor, monkeypatch, *sizes) == [False, True, True, False, True]


@pytest.mark.parametrize(("steady", "expected"), [(False, 0.0), (True, BRIEF), (True, math.nan)])
async def test_others_run_on_a_thread(
    start: Start, monkeypatch: pytest.MonkeyPatch, steady: bool, expected: float
) -> None:
    executor = start(graphs.plus(1.0), steady=steady)
    sizes = ((2, expected), (2, expected), (1, expected))
    assert await places(executor, monkeypatch, *sizes) == [False] * 3


async def test_kinds_that_ran_long_ago_run_on_a_thread_again(start: Start) -> None:
    """What is remembered of kinds is bounded."""
    executor = start(graphs.identity(("batch", "n")), steady=True)
    for width in (*range(1, 60), 1):
        batch = batch_of(key_of(rows(1, 0, width)[0]), rows(1, 1, width))
        batch.expected = BRIEF / 2
        assert not executor._is_brief(batch)
    assert executor._is_brief(batch)


async def test_a_brief_batch_is_told_of_at_once(start: Start) -> None:
    executor = start(graphs.plus(1.0), steady=True)
    batch = batch_of(key_of(rows(1, 0)[0]), rows(1, 1))
    await run(executor, batch)
    batch.expected = BRIEF / 2
    told: list[Completion] = []
    executor.start(batch, lambda batch, completion, /, **_: told.append(completion))
    assert values(told[0]) == [[[[2.0] * 3]]]


async def test_a_brief_batch_that_fails_says_so(start: Start) -> None:
    executor = start(graphs.plus(1.0), steady=True)
    batch = batch_of(key_of(rows(1, 0)[0]), rows(1, 1))
    await run(executor, batch)
    batch.expected = BRIEF / 2
    batch.requests[0].payload = Payload([np.zeros((1, 7), np.float32)])
    failed = await run(executor, batch)
    assert "invalid dimensions" in str(failed.error)


async def test_an_abandoned_batch_ends_and_the_next_one_runs(start: Start) -> None:
    executor = start(graphs.slow())
    key = key_of(rows(1, 0)[0])
    batch = batch_of(key, rows(1, 1))
    for _ in range(2):
        running = asyncio.ensure_future(run(executor, batch))
        await asyncio.sleep(0)
        executor.abandon(batch)
        completion = await running
        assert "terminate" in str(completion.error)


async def test_abandoning_another_batch_does_not_stop_the_one_that_runs(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    go = threading.Event()

    def held(*arguments: Any) -> list[Array]:
        go.wait()
        return run_session(*arguments)

    monkeypatch.setattr("headrace.server.executors.onnx.run_session", held)
    executor = start(graphs.plus(1.0))
    key = key_of(rows(1, 0)[0])
    running = asyncio.ensure_future(run(executor, batch_of(key, rows(1, 1))))
    await asyncio.sleep(0)
    executor.abandon(batch_of(key, rows(1, 1)))
    go.set()
    assert (await running).error is None


async def test_what_is_abandoned_too_late_does_not_stop_the_next(start: Start) -> None:
    executor = start(graphs.plus(1.0))
    key = key_of(rows(1, 0)[0])
    batch = batch_of(key, rows(1, 1))
    executor.abandon(batch)
    await run(executor, batch)
    executor.abandon(batch)
    assert (await run(executor, batch_of(key, rows(1, 1)))).error is None


async def test_what_it_is_told_to_go_on_with_runs_on_the_same_thread(start: Start) -> None:
    executor, key = start(graphs.plus(1.0)), key_of(rows(1, 0)[0])
    batches = [batch_of(key, rows(1, value)) for value in (1.0, 2.0, 3.0)]
    told: list[tuple[int, list[Any]]] = []
    loop = asyncio.get_running_loop()
    ended = asyncio.Event()

    def done(batch: Batch, completion: Completion, /, *, goes_on: bool = False) -> Batch | None:
        assert goes_on
        assert batch is batches[len(told)]
        told.append((threading.get_ident(), values(completion)))
        if len(told) < len(batches):
            return batches[len(told)]
        loop.call_soon_threadsafe(ended.set)
        return None

    executor.start(batches[0], done)
    await ended.wait()
    assert len({thread for thread, _ in told}) == 1
    assert [found for _, found in told] == [[[[[value] * 3]]] for value in (2.0, 3.0, 4.0)]
    assert values(await run(executor, batch_of(key, rows(1, 9.0)))) == [[[[10.0] * 3]]]


async def test_what_has_run_is_let_go_of(start: Start) -> None:
    executor, key = start(graphs.plus(1.0)), key_of(rows(1, 0)[0])
    loop = asyncio.get_running_loop()
    ended, gone = asyncio.Event(), list[weakref.ref[Array]]()
    left = 4
    alive: list[int] = []

    def batch() -> Batch:
        arrays = rows(1, 1)
        gone.append(weakref.ref(arrays[0]))
        return batch_of(key, arrays)

    def done(given: Batch, completion: Completion, /, *, goes_on: bool = False) -> Batch | None:
        nonlocal left
        alive.append(sum(ref() is not None for ref in gone))
        left -= 1
        if left:
            return batch()
        loop.call_soon_threadsafe(ended.set)
        return None

    executor.start(batch(), done)
    await ended.wait()
    await asyncio.to_thread(executor.close)
    assert alive == [1, 1, 1, 1]
    assert [ref() for ref in gone] == [None] * 4


async def test_a_batch_that_is_abandoned_before_its_thread_begins_it_ends(start: Start) -> None:
    executor, key = start(graphs.plus(1.0)), key_of(rows(1, 0)[0])
    first, second = batch_of(key, rows(1, 1)), batch_of(key, rows(1, 1))
    loop = asyncio.get_running_loop()
    ended: asyncio.Future[Completion] = loop.create_future()

    def done(batch: Batch, completion: Completion, /, *, goes_on: bool = False) -> Batch | None:
        if batch is first:
            executor.abandon(second)
            return second
        loop.call_soon_threadsafe(ended.set_result, completion)
        return None

    executor.start(first, done)
    assert "terminate" in str((await ended).error)


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="Linux alone binds threads")
async def test_its_thread_is_bound_where_its_seat_says() -> None:
    class Session:
        """Tells where it ran."""

        def run(self, outputs: list[str], feeds: Any, options: Any = None) -> list[Array]:
            where = os.sched_getaffinity(threading.get_native_id())
            return [np.array([sorted(where)], np.float32)]

    cpu = max(os.sched_getaffinity(0))
    executor = OnnxExecutor(Seat("e", "cpux2", 1, cpu), cast("Any", Session()))
    given = rows(1, 1.0)
    assert values(await run(executor, batch_of(key_of(given[0]), given))) == [[[[float(cpu)]]]]
    await asyncio.to_thread(executor.close)


@pytest.mark.parametrize(("kind", "told"), [("cpu", True), ("cpux2", False), ("cuda", False)])
async def test_it_tells_what_processor_time_a_run_took_where_that_is_all_there_is(
    kind: str, told: bool
) -> None:
    class Session:
        """Computes a little, and sleeps longer."""

        def run(self, outputs: list[str], feeds: Any, options: Any = None) -> list[Array]:
            until = time.thread_time() + 0.01
            while time.thread_time() < until:
                pass
            time.sleep(0.05)
            return [feeds["x"]]

    executor = OnnxExecutor(Seat("e", kind), cast("Any", Session()))
    given = rows(1, 1.0)
    completion = await run(executor, batch_of(key_of(given[0]), given))
    assert (completion.work is not None) is told
    if completion.work is not None:
        assert 0.01 <= completion.work <= completion.seconds - 0.05
    await asyncio.to_thread(executor.close)
