"""The processors and the memory that a container really has."""

from __future__ import annotations

import os
import pathlib

import pytest

from headrace.server.executors import cgroup, resources


@pytest.fixture(autouse=True)
def host(monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path) -> pathlib.Path:
    """Eight processors, and no control group's files yet."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    pages = {"SC_PAGE_SIZE": 4096, "SC_PHYS_PAGES": 1 << 20}
    monkeypatch.setattr(os, "sysconf", pages.__getitem__, raising=False)
    monkeypatch.setattr(cgroup, "_ROOT", tmp_path / "cgroup")
    monkeypatch.setattr(cgroup, "_SELF", tmp_path / "self")
    (tmp_path / "cgroup").mkdir()
    return tmp_path / "cgroup"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("max 100000\n", 8),
        ("200000 100000\n", 2),
        ("150000 100000\n", 2),  # a started CPU counts: half of it idle is better than half a CPU
        ("10000 100000\n", 1),
        ("1600000 100000\n", 8),  # more than there are
        ("", 8),
        ("nonsense\n", 8),
        ("100000 0\n", 8),
    ],
)
def test_the_quota_of_version_2(host: pathlib.Path, text: str, expected: int) -> None:
    (host / "cpu.max").write_text(text)
    assert resources.usable_cpus() == expected


@pytest.mark.parametrize(
    ("quota", "period", "expected"),
    [("300000", "100000", 3), ("50000", "100000", 1), ("-1", "100000", 8), ("x", "100000", 8)],
)
def test_the_quota_of_version_1(host: pathlib.Path, quota: str, period: str, expected: int) -> None:
    (host / "cpu").mkdir()
    (host / "cpu" / "cpu.cfs_quota_us").write_text(quota)
    (host / "cpu" / "cpu.cfs_period_us").write_text(period)
    assert resources.usable_cpus() == expected


def test_no_control_group() -> None:
    assert resources.usable_cpus() == 8


def test_affinity_is_less_than_the_host_has(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {3}, raising=False)
    assert resources.usable_cpus() == 1


def test_a_system_without_affinity(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert resources.usable_cpus() == 1


def test_the_groups_above_hold_too(host: pathlib.Path) -> None:
    """On a host with systemd, where a unit's limits are not those of the topmost group."""
    (host.parent / "self").write_text("0::/system.slice/headrace.service\n")
    unit = host / "system.slice" / "headrace.service"
    unit.mkdir(parents=True)
    (unit / "cpu.max").write_text("400000 100000\n")
    (unit / "memory.max").write_text("max\n")
    assert (resources.usable_cpus(), resources.usable_memory()) == (4, 4 << 30)
    (unit.parent / "cpu.max").write_text("300000 100000\n")
    (unit.parent / "memory.max").write_text(f"{512 << 20}\n")
    assert (resources.usable_cpus(), resources.usable_memory()) == (3, 512 << 20)


def test_a_container_sees_only_its_own_group(host: pathlib.Path) -> None:
    (host.parent / "self").write_text("0::/kubepods/pod/container\n")
    (host / "cpu.max").write_text("200000 100000\n")
    (host / "memory.max").write_text(f"{1 << 30}\n")
    assert (resources.usable_cpus(), resources.usable_memory()) == (2, 1 << 30)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (f"{384 << 20}\n", 384 << 20),
        ("9223372036854771712\n", 4 << 30),  # version 1's word for no limit
        ("max\n", 4 << 30),
        ("", 4 << 30),
    ],
)
def test_memory_of_version_1(host: pathlib.Path, text: str, expected: int) -> None:
    (host / "memory").mkdir()
    (host / "memory" / "memory.limit_in_bytes").write_text(text)
    assert resources.usable_memory() == expected


def test_a_system_that_does_not_tell_its_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "sysconf")
    assert resources.usable_memory() is None
