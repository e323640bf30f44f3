"""The end that a request will come to."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Generator
from functools import partial
from typing import Any, Generic, TypeVar

T = TypeVar("T")


class Promise(Generic[T]):
    """As asyncio.Future, but whoever listens is told at once, not in a later turn of the loop.

    A future has the loop make a handle for each who listens, and run it in its next turn. Answers
    leave earlier without, for up to a tenth less processor time (docs/performance.md, "Told at
    once"). To await one costs a future.

    Ends once, by `resolve`, `fail` or `cancel`; what comes later changes nothing. `withdrawn` is
    called when it is cancelled, before those who listen.
    """

    __slots__ = ("_cancelled", "_error", "_listeners", "_result", "_withdrawn")

    def __init__(self, withdrawn: Callable[[], None]) -> None:
        self._withdrawn: Callable[[], None] | None = withdrawn  # None once it has ended
        self._listeners: list[Callable[[Promise[T]], object]] = []
        self._result: T | None = None
        self._error: BaseException | None = None
        self._cancelled = False

    def __repr__(self) -> str:
        end = self._error if self._error is not None else self._result
        return f"<Promise: {'cancelled' if self._cancelled else end if self.done() else 'waits'}>"

    def done(self) -> bool:
        return self._withdrawn is None

    def cancelled(self) -> bool:
        return self._cancelled

    def resolve(self, result: T) -> None:
        if self._withdrawn is not None:
            self._result = result
            self._end()

    def fail(self, error: BaseException) -> None:
        if self._withdrawn is not None:
            self._error = error
            self._end()

    def cancel(self) -> bool:
        """Returns whether it had not ended yet."""
        withdrawn = self._withdrawn
        if withdrawn is None:
            return False
        self._cancelled = True
        self._withdrawn = None
        withdrawn()
        self._end()
        return True

    def result(self) -> T:
        """Raises what it failed with, CancelledError, and InvalidStateError before its end."""
        error = self.exception()
        if error is None:
            return self._result  # type: ignore[return-value]
        try:
            raise error
        finally:  # or the error's traceback would keep the error in memory, and all else here
            del self, error

    def exception(self) -> BaseException | None:
        """What it failed with, None if it did not. Raises as `result` otherwise does."""
        if self._withdrawn is not None:
            raise asyncio.InvalidStateError("it has not ended yet")
        if self._cancelled:
            raise asyncio.CancelledError
        return self._error

    def add_done_callback(self, listener: Callable[[Promise[T]], object]) -> None:
        """`listener` is called with this once it has ended: now, if it has. It must not raise."""
        if self._withdrawn is None:
            self._tell(listener)
        else:
            self._listeners.append(listener)

    def remove_done_callback(self, listener: Callable[[Promise[T]], object]) -> int:
        """Returns how often it was there."""
        kept = [each for each in self._listeners if each != listener]
        removed = len(self._listeners) - len(kept)
        self._listeners = kept
        return removed

    def __await__(self) -> Generator[Any, Any, T]:
        return _wait([self]).__await__()

    def _end(self) -> None:
        self._withdrawn = None
        listeners, self._listeners = self._listeners, []
        for listener in listeners:
            self._tell(listener)

    def _tell(self, listener: Callable[[Promise[T]], object]) -> None:
        try:
            listener(self)
        except Exception as error:  # noqa: BLE001 (what tells has more to do than this)
            context = {"message": f"{listener} raised", "exception": error}
            asyncio.get_running_loop().call_exception_handler(context)


def _wake(waiter: asyncio.Future[None], promise: Promise[Any]) -> None:
    if not waiter.done():
        waiter.set_result(None)


async def _wait(held: list[Promise[T]]) -> T:
    """The end of the one that is held, and no longer than that: an error's traceback holds this."""
    if not held[0].done():
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        held[0].add_done_callback(partial(_wake, waiter))
        try:
            await waiter
        except asyncio.CancelledError:
            held.pop().cancel()
            raise
    return held.pop().result()
