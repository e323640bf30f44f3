"""What the control group that this process is in allows it."""

from __future__ import annotations

import pathlib

_ROOT = pathlib.Path("/sys/fs/cgroup")
_SELF = pathlib.Path("/proc/self/cgroup")


def cpu_quota() -> float | None:
    """CPUs per period, None where there is no limit."""
    if (_ROOT / "cpu").is_dir():  # version 1
        limits = [" ".join(_read(_ROOT / "cpu" / f"cpu.cfs_{n}_us") for n in ("quota", "period"))]
    else:
        limits = _version_2("cpu.max")
    return min((quota for text in limits if (quota := _quota(text)) is not None), default=None)


def memory_limit() -> int | None:
    """Bytes, None where there is no limit."""
    limits = [*_version_2("memory.max"), _read(_ROOT / "memory" / "memory.limit_in_bytes")]
    return min((int(text) for text in limits if text.isdecimal()), default=None)


def _version_2(name: str) -> list[str]:
    """What file `name` says in this process's group and in each above it: all of them hold. In a
    container its own group is the topmost that can be seen."""
    lines = _read(_SELF).splitlines()
    own = next((line[3:].strip("/") for line in lines if line.startswith("0::")), "")
    group = _ROOT / own
    above = [_ROOT / parent for parent in group.relative_to(_ROOT).parents] if own else []
    return [_read(folder / name) for folder in (group, *above)]


def _quota(text: str) -> float | None:
    try:
        limit, period = map(int, text.split())
        return limit / period if limit > 0 else None
    except (ValueError, ZeroDivisionError):  # "max", which is none
        return None


def _read(path: pathlib.Path) -> str:
    try:
        return path.read_text().strip()
    except (OSError, ValueError):
        return ""
