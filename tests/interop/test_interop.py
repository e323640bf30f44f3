"""Every client passes the cases of clients/interop.md, against the real server."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator

import pytest

from support.server import clean_environment

ROOT = pathlib.Path(__file__).parents[2]
HERE = pathlib.Path(__file__).parent
TYPESCRIPT = ROOT / "clients/typescript"
# Packages are fetched and built, and the cases run in one go.
pytestmark = pytest.mark.timeout(600)

Report = Callable[[str], dict[str, str]]


def listed(*, wire: bool = False) -> list[str]:
    """The names in clients/interop.md, in its order; with `wire` those that stubs alone pass."""
    lines = (ROOT / "clients/interop.md").read_text().splitlines()
    found = [(re.match(r"\| `(\w+)` \|", line), line) for line in lines]
    named = [(match[1], line) for match, line in found if match]
    # The first table is that of the models.
    names = [(name, line) for name, line in named[named.index(_first(named)) :]]
    return [name for name, line in names if not wire or line.endswith("| wire |")]


def _first(named: list[tuple[str, str]]) -> tuple[str, str]:
    return next(entry for entry in named if entry[0].startswith("datatype_"))


def python_program() -> list[str]:
    return [sys.executable, str(HERE / "python_client.py")]


@functools.cache
def typescript_program() -> list[str]:
    node, npm = shutil.which("node"), shutil.which("npm")
    if node is None or npm is None:
        pytest.skip("node and npm are not here (Debian: apt-get install nodejs npm)")
    if not (TYPESCRIPT / "node_modules/.package-lock.json").exists():
        run([npm, "ci", "--ignore-scripts"], cwd=TYPESCRIPT)
    run([npm, "run", "build"], cwd=TYPESCRIPT)
    return [node, str(TYPESCRIPT / "dist/interop/main.js")]


PROGRAMS = {"python": python_program, "typescript": typescript_program}


def run(command: list[str], cwd: pathlib.Path | None = None) -> str:
    done = subprocess.run(
        command, cwd=cwd, capture_output=True, text=True, timeout=500, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@contextlib.contextmanager
def serving() -> Iterator[list[str]]:
    """The addresses of a server for one client: what it has learned is nobody else's business."""
    with subprocess.Popen(
        [sys.executable, str(HERE / "serve.py")],
        env=clean_environment({"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdin is not None
        addresses = process.stdout.readline().split()
        assert len(addresses) == 2, "the server has not come up"
        yield addresses
        process.stdin.close()
        assert process.wait() == 0


def problems(program: list[str], addresses: list[str], names: list[str]) -> dict[str, str]:
    """What went wrong, by case; empty for what went well."""
    done = subprocess.run(
        [*program, *addresses, *names],
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
    )
    found = {line["case"]: line["problem"] for line in map(json.loads, done.stdout.splitlines())}
    for name in names:
        found.setdefault(name, f"it was not run: exit {done.returncode}\n{done.stderr[-4000:]}")
    return found


@pytest.fixture(scope="module")
def reports() -> Report:
    """Runs each client at its first use."""

    @functools.cache
    def report(client: str) -> dict[str, str]:
        program = PROGRAMS[client]()
        with serving() as addresses:
            return problems(program, addresses, listed())

    return report


@pytest.mark.parametrize("name", listed())
@pytest.mark.parametrize("client", PROGRAMS)
def test_case(reports: Report, client: str, name: str) -> None:
    problem = reports(client)[name]
    assert not problem, problem


@pytest.mark.parametrize("client", PROGRAMS)
def test_no_case_is_missing_from_the_list(client: str) -> None:
    assert run([*PROGRAMS[client](), "--list"]).split() == listed()
