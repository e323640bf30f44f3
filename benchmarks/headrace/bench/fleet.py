"""The load processes, as their parent sees them."""

from __future__ import annotations

import contextlib
import math
import multiprocessing
import time
from collections.abc import Iterator, Sequence
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from types import TracebackType
from typing import Self

from headrace.bench import worker
from headrace.bench.errors import BenchError
from headrace.bench.worker import Assignment, Command, Failed, Ready, Report

_PATIENCE = 5.0
_TO_START = 60.0


class Fleet:
    """Starts one process for each assignment, and ends them all with the block."""

    def __init__(self, assignments: Sequence[Assignment]) -> None:
        context = multiprocessing.get_context("spawn")  # gRPC does not survive a fork
        self._processes: list[SpawnProcess] = []
        self._connections: list[Connection] = []
        for assignment in assignments:
            here, there = context.Pipe()
            process = context.Process(target=worker.main, args=(there, assignment), daemon=True)
            process.start()
            there.close()
            self._processes.append(process)
            self._connections.append(here)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """A process ends when its connection does."""
        for connection in self._connections:
            connection.close()
        until = time.monotonic() + _PATIENCE
        for process in self._processes:
            process.join(max(0.0, until - time.monotonic()))
            if process.is_alive():
                process.kill()
                process.join()
            process.close()

    def __len__(self) -> int:
        return len(self._processes)

    def ready(self) -> str:
        """Waits until all are; returns the name of their transport. Raises BenchError."""
        reports = self.reports(time.monotonic() + _TO_START, Ready)
        names = [report.name for _, report in reports if isinstance(report, Ready)]
        if len(names) < len(self):
            raise BenchError(f"the load processes were not ready within {_TO_START:g} s")
        return names[0]

    def tell(self, command: Command) -> None:
        """The same to all."""
        for connection in self._connections:
            with contextlib.suppress(OSError):  # why it has gone, its last report says
                connection.send(command)

    def reports(
        self, until: float, last: type[Report] | None = None
    ) -> Iterator[tuple[int, Report]]:
        """What the processes report, with their numbers, up to the time `until` or until each has
        sent one of `last`. Raises BenchError where one fails."""
        waited = dict(zip(self._connections, range(len(self)), strict=True))
        while waited:
            left = until - time.monotonic()
            if left <= 0:
                return
            for ready in wait(list(waited), None if math.isinf(left) else left):
                assert isinstance(ready, Connection)
                number = waited[ready]
                report = self._receive(number)
                if last is not None and isinstance(report, last):
                    del waited[ready]
                yield number, report

    def _receive(self, number: int) -> Report:
        try:
            report: Report = self._connections[number].recv()
        except (EOFError, OSError):
            process = self._processes[number]
            process.join(_PATIENCE)
            raise BenchError(
                f"load process {number} has ended unexpectedly, exit code {process.exitcode}"
            ) from None
        if isinstance(report, Failed):
            raise BenchError(report.message)
        return report
