"""How many processors this process may really use."""

from __future__ import annotations

import math
import os
import pathlib

_CGROUP_V2 = pathlib.Path("/sys/fs/cgroup/cpu.max")
_CGROUP_V1 = pathlib.Path("/sys/fs/cgroup/cpu")


def usable_cpus() -> int:
    """Processors allowed by affinity and by the control group's quota, at least 1.

    A container limited to 2 CPUs on a 64-core host has 2, whatever the host reports.
    """
    try:
        allowed = len(os.sched_getaffinity(0))
    except AttributeError:  # not Linux
        allowed = os.cpu_count() or 1
    quota = _quota()
    return max(1, min(allowed, math.ceil(quota)) if quota else allowed)


def _quota() -> float | None:
    """CPUs per period of the control group, None where there is no limit."""
    try:
        if _CGROUP_V2.exists():
            limit, period = _CGROUP_V2.read_text().split()
            return None if limit == "max" else int(limit) / int(period)
        limit_us = int((_CGROUP_V1 / "cpu.cfs_quota_us").read_text())
        period_us = int((_CGROUP_V1 / "cpu.cfs_period_us").read_text())
        return limit_us / period_us if limit_us > 0 else None
    except (OSError, ValueError, ZeroDivisionError):
        return None
