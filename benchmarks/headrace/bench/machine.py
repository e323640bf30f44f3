"""What a load test ran on and with: enough for a reader to judge whether two reports compare."""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import psutil

PACKAGES = ("headrace", "onnxruntime", "onnxruntime-gpu", "numpy", "grpcio", "protobuf", "aiohttp",
            "uvloop")  # fmt: skip

_CGROUP = Path("/sys/fs/cgroup")


def machine() -> dict[str, Any]:
    """The machine: processor, memory, limits of the control group, kernel and GPUs. What cannot be
    found out is left out."""
    frequency = _frequency()
    found = {
        "cpu": _cpu_model(),
        "cores": psutil.cpu_count(logical=False),
        "logical_cpus": psutil.cpu_count(),
        "usable_cpus": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None,
        "cpu_mhz_at_most": frequency,
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "system": f"{platform.system()} {platform.release()}",
        "architecture": platform.machine(),
        "gpus": _gpus() or None,
        **cgroup_limits(_CGROUP),
    }
    return {key: value for key, value in found.items() if value is not None}


def versions() -> dict[str, str]:
    """Python, the packages that matter here and are installed, and the commit, in a checkout."""
    found = {"python": f"{platform.python_implementation()} {platform.python_version()}"}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    commit = git_commit(Path(__file__).parent)
    return found | ({"commit": commit} if commit else {})


def cgroup_limits(folder: Path) -> dict[str, float]:
    """CPUs and memory that the control group (version 2) allows, where it limits them."""
    limits = {}
    quota, _, period = _read(folder / "cpu.max").partition(" ")
    if quota.isdigit() and period.strip().isdigit():
        limits["cgroup_cpus"] = round(int(quota) / int(period), 2)
    memory = _read(folder / "memory.max")
    if memory.isdigit():
        limits["cgroup_memory_gib"] = round(int(memory) / 2**30, 1)
    return limits


def git_commit(folder: Path) -> str | None:
    """The commit of the checkout that holds `folder`'s files, with "+" where they were changed
    since; None where no checkout does, as for a package installed inside somebody's own."""
    if not _run(("git", "-C", str(folder), "ls-files")):
        return None
    commit = _run(("git", "-C", str(folder), "rev-parse", "--short=12", "HEAD"))
    if commit is None:
        return None
    changed = _run(("git", "-C", str(folder), "status", "--porcelain", "--untracked-files=no"))
    return commit + ("+" if changed else "")


def _cpu_model() -> str:
    for line in _read(Path("/proc/cpuinfo")).splitlines():
        name, _, value = line.partition(":")
        if name.strip() in ("model name", "Model"):
            return value.strip()
    return platform.processor() or platform.machine()


def _frequency() -> float | None:
    try:
        frequency = psutil.cpu_freq()
    except (OSError, NotImplementedError):
        return None
    return round(frequency.max or frequency.current) if frequency else None


def _gpus() -> list[str]:
    """Names and memory of the GPUs, and the driver, as NVML tells them."""
    try:
        import pynvml

        pynvml.nvmlInit()
    except (ImportError, OSError):
        return []
    except pynvml.NVMLError:
        return []
    try:
        driver = pynvml.nvmlSystemGetDriverVersion()
        handles = [pynvml.nvmlDeviceGetHandleByIndex(n) for n in range(pynvml.nvmlDeviceGetCount())]
        return [
            f"{pynvml.nvmlDeviceGetName(handle)}, "
            f"{pynvml.nvmlDeviceGetMemoryInfo(handle).total / 2**30:.0f} GiB, driver {driver}"
            for handle in handles
        ]
    except pynvml.NVMLError:
        return []
    finally:
        pynvml.nvmlShutdown()


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""


def _run(command: Sequence[str]) -> str | None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
