"""What is told of the machine."""

from __future__ import annotations

import json
import pathlib
import subprocess

import pytest

from headrace.bench.machine import cgroup_limits, git_commit, machine, versions


def test_the_machine_can_be_kept_as_json() -> None:
    found = machine()
    assert json.loads(json.dumps(found)) == found
    assert found["logical_cpus"] >= 1
    assert found["memory_gib"] > 0
    assert found["cpu"]


def test_versions_name_what_is_installed() -> None:
    found = versions()
    assert {"python", "numpy", "grpcio"} <= found.keys()
    assert "no-such-package" not in found


@pytest.mark.parametrize(
    ("cpu", "memory", "expected"),
    [
        ("max 100000", "max", {}),
        ("150000 100000", "2147483648", {"cgroup_cpus": 1.5, "cgroup_memory_gib": 2.0}),
        (None, None, {}),
    ],
)
def test_limits_of_the_control_group(
    tmp_path: pathlib.Path, cpu: str | None, memory: str | None, expected: dict[str, float]
) -> None:
    for name, text in (("cpu.max", cpu), ("memory.max", memory)):
        if text is not None:
            (tmp_path / name).write_text(text + "\n")
    assert cgroup_limits(tmp_path) == expected


def test_a_commit_says_whether_it_is_all(tmp_path: pathlib.Path) -> None:
    def git(*words: str) -> None:
        identity = ("-c", "user.name=t", "-c", "user.email=t@example.org")
        subprocess.run(("git", "-C", tmp_path, *identity, *words), check=True, capture_output=True)

    assert git_commit(tmp_path) is None
    git("init")
    (tmp_path / "file").write_text("1")
    git("add", "file")
    git("commit", "-m", "first")
    commit = git_commit(tmp_path)
    assert commit is not None
    assert len(commit) == 12
    (tmp_path / "file").write_text("2")
    assert git_commit(tmp_path) == commit + "+"
