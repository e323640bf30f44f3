"""Every client passes the cases of clients/interop.md, against the real server."""

from __future__ import annotations

import atexit
import functools
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable

import pytest

from support.server import clean_environment

ROOT = pathlib.Path(__file__).parents[2]
HERE = pathlib.Path(__file__).parent
TYPESCRIPT = ROOT / "clients/typescript"
# Packages are fetched and built, and the cases run in one go.
pytestmark = pytest.mark.timeout(600)

Report = Callable[[str], dict[str, str]]
# Beside the cases: that the server ends well and has logged nothing that nobody expects.
SERVER = "server"


def listed(client: str) -> list[str]:
    """The names in clients/interop.md that are this client's, in their order."""
    text = (ROOT / "clients/interop.md").read_text()
    # The tables before are those of the clients and of the models.
    lines = text[text.index("## Tensors") :].splitlines()
    named = [(match[1], line) for line in lines if (match := re.match(r"\| `(\w+)` \|", line))]
    wire = client in ("go", "java")
    return [name for name, line in named if not wire or line.endswith("| wire |")]


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


@functools.cache
def built_program(language: str) -> list[str]:
    """By tests/interop/<language>/build.sh, which exits with 77 where it lacks something."""
    folder = pathlib.Path(tempfile.mkdtemp(prefix=f"interop-{language}-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    done = subprocess.run(
        [HERE / language / "build.sh", folder],
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )
    if done.returncode == 77:
        pytest.skip(done.stderr.strip())
    assert done.returncode == 0, done.stdout + done.stderr
    return [str(folder / "client")]


PROGRAMS: dict[str, Callable[[], list[str]]] = {
    "python": python_program,
    "typescript": typescript_program,
    "go": functools.partial(built_program, "go"),
    "java": functools.partial(built_program, "java"),
}


def run(command: list[str], cwd: pathlib.Path | None = None) -> str:
    done = subprocess.run(
        command, cwd=cwd, capture_output=True, text=True, timeout=500, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def report_of(client: str) -> dict[str, str]:
    """How a client's cases went on a server of its own: what that has learned is nobody else's
    business. The entry SERVER tells what it had to complain about."""
    program = PROGRAMS[client]()
    with subprocess.Popen(
        [sys.executable, str(HERE / "serve.py")],
        env=clean_environment({"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        addresses = process.stdout.readline().split()
        found = problems(program, addresses, listed(client))
        _, complaint = process.communicate()
    found[SERVER] = complaint if process.returncode else ""
    return found


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
    return functools.cache(report_of)


NAMED = [(client, name) for client in PROGRAMS for name in (*listed(client), SERVER)]


@pytest.mark.parametrize(("client", "name"), NAMED, ids=[f"{c}-{n}" for c, n in NAMED])
def test_case(reports: Report, client: str, name: str) -> None:
    problem = reports(client)[name]
    assert not problem, problem


@pytest.mark.parametrize("client", PROGRAMS)
def test_every_client_knows_the_list(client: str) -> None:
    assert sorted(run([*PROGRAMS[client](), "--list"]).split()) == sorted(listed(client))
