"""The wheel, as a stranger would install it: away from this repository, with and without a server.

It needs a package index, as pip is configured to reach it.
"""

from __future__ import annotations

import json
import os
import pathlib
import subprocess
import sys
import venv
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass

import pytest

from support import models, server

ROOT = pathlib.Path(__file__).parents[1]
ROOMS = ("server", "batcher", "benchmarks", "clients/python", "protos/python")

# Two installations from a package index take their time.
pytestmark = pytest.mark.timeout(600)

WHERE = """
import importlib.util, json, sys
import headrace.client
found = lambda name: importlib.util.find_spec(name) is not None
print(json.dumps({
    "file": headrace.client.__file__,
    "path": sys.path,
    "onnxruntime": found("onnxruntime"),
    "aiohttp": found("aiohttp"),
}))
"""
CALL = """
import sys
import numpy as np
from headrace.client import Client
with Client(sys.argv[1]) as client:
    print(client.infer("double", {"x": np.array([[1, 2.5]], np.float32)})["y"].tolist())
"""


@dataclass(frozen=True)
class Environment:
    """A virtual environment of its own."""

    folder: pathlib.Path

    @property
    def scripts(self) -> pathlib.Path:
        return self.folder / ("Scripts" if os.name == "nt" else "bin")

    def run(self, program: str, *arguments: str | pathlib.Path) -> subprocess.CompletedProcess[str]:
        """Runs one of its programs, from a folder that has nothing to do with this repository."""
        return run([self.scripts / program, *arguments], self.folder)

    def install(self, requirement: str) -> None:
        pins = ROOT / "constraints.txt"
        constraint = ("--constraint", str(pins)) if pins.exists() else ()
        pip = ("-m", "pip", "install", "--quiet", "--disable-pip-version-check")
        done = self.run("python", *pip, *constraint, requirement)
        assert done.returncode == 0, done.stderr


@dataclass(frozen=True)
class ClientOnly:
    """What was seen before the server's extra was installed into the same environment."""

    environment: Environment
    where: dict[str, object]
    serve: subprocess.CompletedProcess[str]
    help: subprocess.CompletedProcess[str]


def run(
    command: Sequence[str | pathlib.Path], cwd: pathlib.Path
) -> subprocess.CompletedProcess[str]:
    # PYTHONPATH would lead back here.
    environment = {k: v for k, v in server.clean_environment().items() if k != "PYTHONPATH"}
    return subprocess.run(
        command,
        cwd=cwd,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    folder = tmp_path_factory.mktemp("dist")
    done = run([sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", folder], ROOT)
    assert done.returncode == 0, done.stderr
    (found,) = folder.glob("*.whl")
    return found


@pytest.fixture(scope="module")
def client_only(tmp_path_factory: pytest.TempPathFactory, wheel: pathlib.Path) -> ClientOnly:
    environment = Environment(tmp_path_factory.mktemp("environment"))
    venv.create(environment.folder, with_pip=True)
    environment.install(str(wheel))
    return ClientOnly(
        environment,
        json.loads(environment.run("python", "-c", WHERE).stdout),
        environment.run("headrace", "serve", "model.onnx"),
        environment.run("headrace", "--help"),
    )


@pytest.fixture(scope="module")
def with_server(client_only: ClientOnly, wheel: pathlib.Path) -> Environment:
    client_only.environment.install(f"{wheel}[cpu]")
    return client_only.environment


def test_no_room_hides_the_others() -> None:
    """A headrace/__init__.py in one room would make the whole namespace that room's."""
    for room in ROOMS:
        assert (ROOT / room / "headrace").is_dir()
        assert not (ROOT / room / "headrace" / "__init__.py").exists()


def test_what_is_in_the_wheel(wheel: pathlib.Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    packages = {"/".join(name.split("/")[:2]) for name in names if name.startswith("headrace/")}
    assert packages == {
        f"headrace/{room}"
        for room in ("server", "batcher", "client", "bench", "feedback", "inference", "stream")
    }
    others = {name.split("/")[0] for name in names if not name.startswith("headrace/")}
    assert {name for name in others if not name.endswith(".dist-info")} == set()
    assert "headrace/inference/v2/grpc_service_pb2.py" in names
    assert {f"{package}/py.typed" for package in packages} <= set(names)


def test_the_client_alone(client_only: ClientOnly) -> None:
    where = client_only.where
    assert str(where["file"]).startswith(str(client_only.environment.folder))
    assert isinstance(where["path"], list)
    assert not any(str(entry).startswith(str(ROOT)) for entry in where["path"])
    assert (where["onnxruntime"], where["aiohttp"]) == (False, False)


def test_serving_without_the_extra_says_which_to_install(client_only: ClientOnly) -> None:
    done = client_only.serve
    assert (done.returncode, done.stdout) == (1, "")
    assert "headrace[cpu]" in done.stderr
    assert "headrace[gpu]" in done.stderr
    assert "Traceback" not in done.stderr
    assert client_only.help.returncode == 0


def test_serving_from_the_wheel(with_server: Environment, tmp_path: pathlib.Path) -> None:
    models.write(tmp_path / "models", "double", models.scaled(2))
    command = with_server.scripts / "headrace"
    with server.serving(tmp_path / "log", tmp_path / "models", command=command, cwd=tmp_path) as up:
        done = with_server.run("python", "-c", CALL, up.grpc)
    assert done.stdout == "[[2.0, 5.0]]\n", done.stderr
