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


def usable_memory() -> int | None:
    """Bytes that this machine has and the control group allows; None where neither is known."""
    try:
        installed = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):  # not everywhere
        installed = -1
    known = [size for size in (installed, memory_limit()) if size is not None and size > 0]
    return min(known, default=None)
