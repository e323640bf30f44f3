"""The engine `local`: one worker, in this process."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence

from headrace.server.batch.engine import opened
from headrace.server.batch.job import Job, Part, PartDone
from headrace.server.batch.sources import Contents
from headrace.server.batch.worker import Worker

# Parts under way: while one is computed, the next is read and the last is written.
_AT_ONCE = 3

Told = Callable[[PartDone], None]


def run_local(job: Job, contents: Contents, parts: Sequence[Part], tell: Told) -> None:
    """Computes `parts`; each that is in its place is told. Raises the errors of `Worker`."""
    asyncio.run(_run(job, contents, parts, tell))


async def _run(job: Job, contents: Contents, parts: Sequence[Part], tell: Told) -> None:
    async with opened(job) as engine:
        worker = Worker(job, engine, contents)
        waiting = iter(parts)
        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(_AT_ONCE):
                    group.create_task(_take(worker, waiting, tell))
        except ExceptionGroup as failures:  # the others were cancelled because of the first
            raise failures.exceptions[0] from None


async def _take(worker: Worker, waiting: Iterator[Part], tell: Told) -> None:
    """One part after the other, until none is left."""
    for part in waiting:
        tell(await worker.run(part))
