"""The processors that a container really has."""

from __future__ import annotations

import os
import pathlib

import pytest

from headrace.server.executors import cpus


@pytest.fixture(autouse=True)
def host(monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path) -> pathlib.Path:
    """Eight processors, and no control group's files yet."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    monkeypatch.setattr(cpus, "_CGROUP_V2", tmp_path / "cpu.max")
    monkeypatch.setattr(cpus, "_CGROUP_V1", tmp_path)
    return tmp_path


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
    assert cpus.usable_cpus() == expected


@pytest.mark.parametrize(
    ("quota", "period", "expected"),
    [("300000", "100000", 3), ("50000", "100000", 1), ("-1", "100000", 8), ("x", "100000", 8)],
)
def test_the_quota_of_version_1(host: pathlib.Path, quota: str, period: str, expected: int) -> None:
    (host / "cpu.cfs_quota_us").write_text(quota)
    (host / "cpu.cfs_period_us").write_text(period)
    assert cpus.usable_cpus() == expected


def test_no_control_group() -> None:
    assert cpus.usable_cpus() == 8


def test_affinity_is_less_than_the_host_has(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {3}, raising=False)
    assert cpus.usable_cpus() == 1


def test_a_system_without_affinity(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert cpus.usable_cpus() == 1
