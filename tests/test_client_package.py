"""The client's own distribution: what is in it, and that it calls a server without `headrace`.

It needs a package index, as pip is configured to reach it.
"""

from __future__ import annotations

import pathlib
import subprocess
import sys
import tomllib
import venv
import zipfile

import pytest

from support import models, server

ROOT = pathlib.Path(__file__).parents[1]
CLIENT = ROOT / "clients/python"
pytestmark = pytest.mark.timeout(600)

CALL = """
import importlib.util, sys
import numpy as np
import headrace.client
assert headrace.client.__file__.startswith(sys.prefix), headrace.client.__file__
for room in ("server", "batcher", "bench"):
    assert importlib.util.find_spec(f"headrace.{room}") is None, room
with headrace.client.Client(sys.argv[1]) as client:
    print(client.infer("double", {"x": np.array([[1, 2.5]], np.float32)})["y"].tolist())
    with client.stream("double", window=2, sample_rate=1) as stream:
        print([event["y"].tolist() for event in stream.run([np.ones(4, np.float32)])])
"""


def run(*command: str | pathlib.Path, cwd: pathlib.Path) -> str:
    # PYTHONPATH would lead back here.
    environment = {k: v for k, v in server.clean_environment().items() if k != "PYTHONPATH"}
    done = subprocess.run(
        command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=500, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """Built from the source distribution, which must therefore be complete."""
    folder = tmp_path_factory.mktemp("dist")
    hatchling = (sys.executable, "-m", "hatchling", "build")
    run(*hatchling, "-t", "sdist", "-d", folder, cwd=CLIENT)
    (source,) = folder.glob("*.tar.gz")
    run("tar", "xzf", source, cwd=folder)
    run(*hatchling, "-t", "wheel", "-d", folder, cwd=folder / source.name.removesuffix(".tar.gz"))
    (found,) = folder.glob("*.whl")
    return found


def test_it_says_what_the_whole_says() -> None:
    whole, client = (
        tomllib.loads((folder / "pyproject.toml").read_text())["project"]
        for folder in (ROOT, CLIENT)
    )
    for key in ("version", "requires-python", "license", "classifiers", "dependencies"):
        assert client[key] == whole[key], key


def test_what_is_in_it(wheel: pathlib.Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    inside = [name for name in names if ".dist-info/" not in name]
    assert {"/".join(name.split("/")[:2]) for name in inside} == {
        f"headrace/{room}" for room in ("client", "feedback", "inference", "stream")
    }
    sources = {
        str(path.relative_to(root))
        for root in (CLIENT, ROOT / "protos/python")
        for path in (root / "headrace").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert set(inside) == sources


def test_it_calls_a_server(wheel: pathlib.Path, tmp_path: pathlib.Path) -> None:
    environment = tmp_path / "environment"
    venv.create(environment, with_pip=True)
    python = environment / "bin" / "python"
    pip = ("-m", "pip", "install", "--quiet", "--disable-pip-version-check")
    run(python, *pip, "--constraint", ROOT / "constraints.txt", wheel, cwd=tmp_path)
    models.write(tmp_path / "models", "double", models.scaled(2))
    with server.serving(tmp_path / "log", tmp_path / "models") as up:
        said = run(python, "-c", CALL, up.grpc, cwd=tmp_path)
    assert said.splitlines() == ["[[2.0, 5.0]]", "[[[2.0, 2.0]], [[2.0, 2.0]]]"]
