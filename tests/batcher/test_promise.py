from __future__ import annotations

import asyncio
import contextlib
import gc
from collections.abc import Callable
from typing import Any

import pytest

from headrace.batcher.promise import Promise


class Made:
    """A promise, and what was called in which order."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.promise: Promise[int] = Promise(lambda: self.calls.append("withdrawn"))

    def listen(self, name: str) -> None:
        self.promise.add_done_callback(lambda promise: self.calls.append(name))


ENDS: list[Callable[[Promise[int]], object]] = [
    lambda promise: promise.resolve(1),
    lambda promise: promise.fail(ValueError("no")),
    lambda promise: promise.cancel(),
]


@pytest.mark.parametrize("end", ENDS)
def test_who_listens_is_told_at_once_in_order(end: Callable[[Promise[int]], object]) -> None:
    made = Made()
    made.listen("first")
    made.listen("second")
    assert not made.promise.done()
    assert made.calls == []
    end(made.promise)
    made.listen("late")
    assert made.promise.done()
    assert made.calls[-3:] == ["first", "second", "late"]
    assert made.calls[:-3] == (["withdrawn"] if made.promise.cancelled() else [])


@pytest.mark.parametrize("first", ENDS)
@pytest.mark.parametrize("second", ENDS)
def test_it_ends_once(
    first: Callable[[Promise[int]], object], second: Callable[[Promise[int]], object]
) -> None:
    made = Made()
    made.listen("told")
    first(made.promise)
    before, text = list(made.calls), repr(made.promise)
    assert not second(made.promise)
    assert (made.calls, repr(made.promise)) == (before, text)


def test_how_it_ended() -> None:
    resolved, failed, cancelled, open_ = (Made().promise for _ in range(4))
    resolved.resolve(1)
    failed.fail(error := ValueError("no"))
    assert cancelled.cancel()
    assert (resolved.result(), resolved.exception()) == (1, None)
    assert failed.exception() is error
    with pytest.raises(ValueError, match="no"):
        failed.result()
    for ask in (cancelled.result, cancelled.exception):
        with pytest.raises(asyncio.CancelledError):
            ask()
    for ask in (open_.result, open_.exception):
        with pytest.raises(asyncio.InvalidStateError):
            ask()


def test_who_does_not_listen_any_more_is_not_told() -> None:
    made = Made()
    told: list[Any] = []
    made.promise.add_done_callback(told.append)
    made.listen("other")
    assert made.promise.remove_done_callback(told.append) == 1
    assert made.promise.remove_done_callback(told.append) == 0
    made.promise.resolve(1)
    assert (told, made.calls) == ([], ["other"])


async def test_one_that_raises_does_not_keep_the_others_from_hearing() -> None:
    made, seen = Made(), list[Any]()
    asyncio.get_running_loop().set_exception_handler(lambda _, context: seen.append(context))
    made.promise.add_done_callback(lambda promise: 1 // 0)
    made.listen("second")
    made.promise.resolve(1)
    assert made.calls == ["second"]
    (context,) = seen
    assert isinstance(context["exception"], ZeroDivisionError)


async def test_it_can_be_awaited_by_several_before_and_after() -> None:
    promise = Made().promise
    before = [asyncio.ensure_future(promise) for _ in range(2)]
    await asyncio.sleep(0)
    promise.resolve(1)
    assert await asyncio.gather(*before) == [1, 1]
    assert await promise == 1


async def test_a_failure_is_raised_to_who_awaits_it() -> None:
    promise = Made().promise
    asyncio.get_running_loop().call_soon(promise.fail, ValueError("no"))
    with pytest.raises(ValueError, match="no"):
        await promise


async def test_to_cancel_who_awaits_it_is_to_cancel_it() -> None:
    """As of a future."""
    made = Made()
    waiting = asyncio.ensure_future(made.promise)
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert made.promise.cancelled()
    assert made.calls == ["withdrawn"]


async def test_a_cancelled_one_cancels_who_awaits_it() -> None:
    made = Made()
    waiting = asyncio.ensure_future(made.promise)
    await asyncio.sleep(0)
    made.promise.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting


async def test_nothing_is_left_for_the_collector() -> None:
    """Neither of those that are awaited nor of those that fail."""
    gc.collect()
    gc.disable()
    try:
        for end in ENDS:
            promise = Made().promise
            asyncio.get_running_loop().call_soon(end, promise)
            with contextlib.suppress(ValueError, asyncio.CancelledError):
                await promise
            del promise
            await asyncio.sleep(0)
        assert gc.collect() == 0
    finally:
        gc.enable()
