"""Arrivals settle before they are decided, where requests usually find others (decision 0015)."""

from __future__ import annotations

import asyncio

import pytest

from headrace.batcher.callers import Answer
from headrace.batcher.errors import Draining
from headrace.batcher.promise import Promise
from support.runner_bench import Bench, settle


def crowded() -> Bench:
    """A bench on which requests usually find others."""
    bench = Bench(max_batch_rows=64)
    bench.runner.state.crowd = 8.0
    return bench


async def dispatched_after(bench: Bench) -> int:
    """Turns until the executor has a batch."""
    for turn in range(50):
        if bench.executor.busy:
            return turn
        await asyncio.sleep(0)
    raise AssertionError("nothing was dispatched")


async def test_a_lone_request_is_decided_in_the_next_turn() -> None:
    bench = Bench()
    future = bench.submit("alone")
    assert await dispatched_after(bench) == 1
    bench.executor.finish()
    await future


async def test_what_a_crowd_sends_some_turns_apart_is_one_batch() -> None:
    bench = crowded()
    futures: list[Promise[Answer]] = []
    for number in range(3):
        futures.append(bench.submit(number))
        for _ in range(3):
            await asyncio.sleep(0)
    await dispatched_after(bench)
    bench.executor.finish()
    assert [(await future).batch.rows for future in futures] == [3, 3, 3]


async def test_arrivals_without_end_are_not_waited_for() -> None:
    bench = crowded()
    futures: list[Promise[Answer]] = []
    while not bench.executor.busy:
        assert len(futures) <= 13
        futures.append(bench.submit(len(futures)))
        await asyncio.sleep(0)
    assert len(futures) > 4
    bench.executor.finish()
    await settle()
    if bench.executor.busy:
        bench.executor.finish()
    await asyncio.gather(*futures)


async def test_settling_ends_with_its_millisecond_however_few_turns_that_is() -> None:
    bench = crowded()
    future = bench.submit("urgent", deadline=0.003)
    await asyncio.sleep(0)
    bench.clock.advance(0.001)  # somebody else's turn takes that long
    assert await dispatched_after(bench) <= 1
    bench.executor.finish()
    await future


async def test_a_batch_that_nothing_can_be_added_to_does_not_settle() -> None:
    bench = Bench(max_batch_rows=1)
    bench.runner.state.crowd = 8.0
    future = bench.submit("alone by configuration")
    assert await dispatched_after(bench) == 1
    bench.executor.finish()
    await future


async def test_who_leaves_while_arrivals_settle_is_not_run() -> None:
    bench = crowded()
    leaving, staying = bench.submit("leaving"), bench.submit("staying")
    leaving.cancel()
    await dispatched_after(bench)
    assert [r.payload for r in bench.executor.batches[-1].requests] == ["staying"]
    bench.executor.finish()
    await staying


async def test_what_settles_is_answered_before_the_end_of_a_drain() -> None:
    bench = crowded()
    future = bench.submit("last")
    drain = asyncio.create_task(bench.runner.drain())
    await dispatched_after(bench)
    assert not drain.done()
    bench.executor.finish()
    await asyncio.gather(future, drain)


async def test_what_settles_ends_with_an_abort() -> None:
    bench = crowded()
    future = bench.submit("last")
    bench.runner.abort()
    with pytest.raises(Draining):
        await future
    await settle()
    assert not bench.executor.batches


async def test_an_executor_that_comes_free_is_given_what_waits_at_once() -> None:
    bench = crowded()
    first = bench.submit("first")
    await dispatched_after(bench)
    waiting = bench.submit("waiting")
    bench.executor.finish()  # while what has arrived settles
    assert await dispatched_after(bench) <= 2
    bench.executor.finish()
    await asyncio.gather(first, waiting)


async def test_under_pressure_it_is_given_what_has_settled() -> None:
    """Those who were just answered ask again, and join what waits."""
    bench = crowded()
    bench.runner.state.device.pressed = True
    first = bench.submit("first")
    await dispatched_after(bench)
    waiting = bench.submit("waiting")
    await settle()
    bench.executor.finish()
    for _ in range(2):  # without pressure what waits would run by now
        await asyncio.sleep(0)
    assert first.done()
    assert not bench.executor.busy
    again = bench.submit("again")
    await dispatched_after(bench)
    assert bench.executor.batches[-1].rows == 2
    bench.executor.finish()
    await asyncio.gather(waiting, again)
