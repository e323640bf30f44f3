"""What a server on this machine takes: CPU time, memory, threads, and energy where NVML tells."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable

import psutil
import pynvml

from headrace.bench.errors import BenchError
from headrace.bench.results import ServerUse

_MEGABYTE = 1e6


class ServerWatch:
    """A process and all below it, from `start` to `stop`, looked at now and then by `sample`.

    Memory: the resident set of a process that is alone; of several the sum of their proportional
    set sizes, in which a page that n of them share counts 1/n in each (where the system tells it;
    else unique set sizes).
    """

    def __init__(self, pid: int) -> None:
        """Raises BenchError where there is no such process."""
        try:
            self._root = psutil.Process(pid)
        except psutil.NoSuchProcess:
            raise BenchError(f"pid {pid}: there is no such process") from None
        self._first: dict[psutil.Process, float] = {}
        self._last: dict[psutil.Process, float] = {}
        self._peak = 0.0
        self._threads = 0
        self._joules: float | None = None
        self._spent: float | None = None

    def start(self) -> None:
        """From here on CPU time and energy count."""
        self._joules = joules()
        self._first = self._cpu()
        self._last = dict(self._first)
        self.sample()

    def sample(self) -> None:
        """Looks at memory and threads, and at the CPU time of processes that may end."""
        self._last.update(self._cpu())
        processes = self._processes()
        self._peak = max(self._peak, _memory(processes))
        self._threads = max(self._threads, sum(_threads(process) for process in processes))

    def stop(self) -> None:
        """Here what counts ends."""
        self.sample()
        energy = joules()
        if energy is not None and self._joules is not None:
            self._spent = energy - self._joules

    def use(self, requests: int) -> ServerUse:
        """What was used between start and stop, in which this many `requests` ended."""
        # A process that was not there at the start counts from zero.
        cpu = sum(used - self._first.get(p, 0.0) for p, used in self._last.items())
        return ServerUse(
            cpu_seconds=cpu,
            cpu_us_per_request=cpu / requests * 1e6 if requests else 0.0,
            peak_memory_mb=self._peak / _MEGABYTE,
            threads=self._threads,
            energy_joules=self._spent,
        )

    def memory(self) -> float:
        """Bytes in memory now."""
        return _memory(self._processes())

    def _processes(self) -> list[psutil.Process]:
        with contextlib.suppress(psutil.Error):
            return [self._root, *self._root.children(recursive=True)]
        return []

    def _cpu(self) -> dict[psutil.Process, float]:
        used = {}
        for process in self._processes():
            with contextlib.suppress(psutil.Error):
                times = process.cpu_times()
                used[process] = float(times.user + times.system)
        return used


def _memory(processes: Iterable[psutil.Process]) -> float:
    several = list(processes)
    total = 0.0
    for process in several:
        with contextlib.suppress(psutil.Error):
            if len(several) == 1:
                total += process.memory_info().rss
            else:
                full = process.memory_full_info()
                total += getattr(full, "pss", full.uss)
    return total


def _threads(process: psutil.Process) -> int:
    with contextlib.suppress(psutil.Error):
        return int(process.num_threads())
    return 0


def joules() -> float | None:
    """Energy that the GPUs of this machine have taken since their driver was loaded, all together;
    None where there is none that tells."""
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return None
    try:
        handles = [
            pynvml.nvmlDeviceGetHandleByIndex(index) for index in range(pynvml.nvmlDeviceGetCount())
        ]
        millijoules = [pynvml.nvmlDeviceGetTotalEnergyConsumption(handle) for handle in handles]
        return sum(millijoules) / 1e3 if millijoules else None
    except pynvml.NVMLError:
        return None
    finally:
        pynvml.nvmlShutdown()
