"""How many processors, and how much memory, this process may really use."""

from __future__ import annotations

import math
import os

from headrace.server.executors.cgroup import cpu_quota, memory_limit


def usable_cpus() -> int:
    """Processors allowed by affinity and by the control group's quota, at least 1.

    A container limited to 2 CPUs on a 64-core host has 2, whatever the host reports.
    """
    try:
        allowed = len(os.sched_getaffinity(0))
    except AttributeError:  # not Linux
        allowed = os.cpu_count() or 1
    quota = cpu_quota()
    return max(1, min(allowed, math.ceil(quota)) if quota else allowed)


def cpus_for(threads: int) -> list[int]:
    """The numbers of the processors that `threads` threads have for themselves, one each: where
    they are as many as this process may use. Empty where they are not, or for a single one.

    A thread that waits for others in the midst of a run should not have to share with one of them,
    and where it ran last is where the kernel puts it after a pause, whoever else is there.
    """
    try:
        allowed = sorted(os.sched_getaffinity(0))
    except AttributeError:  # not Linux
        return []
    return allowed if 1 < threads == len(allowed) == usable_cpus() else []


def usable_memory() -> int | None:
    """Bytes that this machine has and the control group allows; None where neither is known."""
    try:
        installed = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):  # not everywhere
        installed = -1
    known = [size for size in (installed, memory_limit()) if size is not None and size > 0]
    return min(known, default=None)
