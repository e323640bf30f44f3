"""Fresh executors in the places of those that hang.

Theory of operation. The batcher gives an executor up when its run does not come back. A thread
cannot be ended from outside: it is deserted, with the session that it is in and the inputs of its
batch, and a fresh thread with a session of its own takes its place. A device that is stuck may not
even open sessions, so that is done on a thread that nobody waits for, and tried again, ever less
often.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import TypeVar

from headrace.batcher.request import Batch
from headrace.batcher.runner import Runner
from headrace.server.errors import LoadFailed
from headrace.server.executors.onnx import OnnxExecutor
from headrace.server.executors.running import Session

_log = logging.getLogger(__name__)

# Seconds between two attempts; each failure doubles them.
_FIRST_WAIT, _LONGEST_WAIT = 1.0, 60.0
# Threads of one model that may hang at once: each holds the memory of a session.
_MOST_DESERTED = 8

T = TypeVar("T")


@dataclass(eq=False, slots=True)
class Replacer:
    """Replaces the executors of one model.

    label: the model, for people. open: gives a session for the executor of a name, and may block.
    seat: makes an executor of that name with it. patience: seconds that `open` may take before
    callers are told that there is no executor. deserted: what hangs, of all models. changed: told
    when an executor went or came.
    """

    label: str
    runner: Runner
    open: Callable[[str], Session]
    seat: Callable[[str, Session], OnnxExecutor]
    patience: float
    deserted: list[OnnxExecutor]
    changed: Callable[[], None]
    _own: list[OnnxExecutor] = field(default_factory=list)
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)

    def lost(self, executor: OnnxExecutor, batch: Batch) -> None:
        """`executor`, on which `batch` hangs, was given up."""
        _log.error(
            "%s: a batch of %d rows has not come back from %s for %.3g s, the executor is given up",
            self.label,
            batch.rows,
            executor.name,
            time.monotonic() - batch.started,
        )
        for those in (self._own, self.deserted):
            those[:] = [each for each in those if each.alive] + [executor]
        task = asyncio.get_running_loop().create_task(self._replace(executor.name))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        self.changed()

    def close(self) -> None:
        """Nothing is replaced any more."""
        for task in self._tasks:
            task.cancel()

    async def _replace(self, name: str) -> None:
        wait = _FIRST_WAIT
        while (session := await self._opened(name)) is None:
            await asyncio.sleep(wait)
            wait = min(2 * wait, _LONGEST_WAIT)
        self.runner.put(self.seat(name, session))
        _log.warning("%s: a fresh executor has taken the place of %s", self.label, name)
        self.changed()

    async def _opened(self, name: str) -> Session | None:
        """A session for the executor called `name`; None where there is none to be had now."""
        try:
            self._check_deserted()
            opening = aside(partial(self.open, name))
            done, _ = await asyncio.wait([opening], timeout=self.patience)
            if not done:
                self._unable(name, f"opening a session takes longer than {self.patience:g} s")
            return await opening
        except Exception as error:  # noqa: BLE001 (whatever ONNX Runtime raises)
            self._unable(name, str(error))
            return None

    def _check_deserted(self) -> None:
        hanging = sum(executor.alive for executor in self._own)
        if hanging > _MOST_DESERTED:
            raise LoadFailed(
                f"{hanging} runs hang, and each holds a session's memory: the process has to be "
                "started anew"
            )

    def _unable(self, name: str, why: str) -> None:
        _log.error("%s: nothing could be put in the place of %s: %s", self.label, name, why)
        self.runner.unable(f"{self.label} has no executor left: {why}")


def aside(work: Callable[[], T]) -> asyncio.Future[T]:
    """Runs `work` on a thread of its own that nobody waits for, neither here nor when the process
    ends: it may never come back."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[T] = loop.create_future()

    def end(set_: Callable[[], None]) -> None:
        if not future.done():
            set_()

    def run() -> None:
        try:
            ended = partial(future.set_result, work())
        except Exception as error:  # noqa: BLE001 (told by the future)
            ended = partial(future.set_exception, error)
        with suppress(RuntimeError):  # the loop is closed: nobody is left to tell
            loop.call_soon_threadsafe(end, ended)

    threading.Thread(target=run, name="aside", daemon=True).start()
    return future
