"""What a peer's folder says of it, and the Python environment that its requirements ask for.

An environment is made once for each set of requirements and each Python, and kept under `CACHE`.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Literal, Self

from pydantic import Field, PositiveFloat, PositiveInt, ValidationError, model_validator

from headrace.bench.spec import Spec

CACHE = Path(".cache", "peers")
INSTALL_SECONDS = 1200.0

_DESCRIBE = """
import json, platform
from importlib.metadata import distributions
packages = {d.metadata["Name"].lower(): d.version for d in distributions()}
print(json.dumps({"python": platform.python_version(), "packages": packages}))
"""


class PeerUnavailable(Exception):
    """A peer that cannot be installed or started here. `reason` says why, with the end of its
    log."""

    def __init__(self, peer: str, reason: str) -> None:
        super().__init__(f"{peer}: {reason}")
        self.peer = peer
        self.reason = reason


class Configuration(Spec):
    """One way to set a peer up. `words` say it to a reader; `settings` are given to its program,
    with "cpus" replaced by the number of CPUs; `adaptor` overrides the peer's."""

    words: str = Field(min_length=1)
    settings: dict[str, bool | int | float | str] = Field(default={})
    adaptor: str = ""


class Peer(Spec):
    """A peer.toml.

    `package` is the distribution whose version is the peer's. `requirements` are pip's; a bare
    "onnxruntime" becomes the version that is installed beside the load generator. None at all means
    the load generator's own environment. `python` are the minor versions that the peer runs on (any
    where there are none). `ready` is "model" for the protocol's ModelReady, or a path that answers
    200. `differs` are the lines that a report prints beside the peer's numbers."""

    about: str = Field(min_length=1)
    package: str = Field(min_length=1)
    requirements: tuple[str, ...]
    python: tuple[str, ...] = ()
    protocol: Literal["grpc", "http"]
    adaptor: str = ""
    ready: str = Field(pattern="^(model|/.*)$")
    ports: PositiveInt = 1
    start_seconds: PositiveFloat = 120.0
    computes: bool = True
    differs: tuple[str, ...]
    configurations: dict[str, Configuration]

    @model_validator(mode="after")
    def _complete(self) -> Self:
        missing = {"default", "tuned"} - set(self.configurations)
        if missing:
            raise ValueError(f"configurations: {', '.join(sorted(missing))} missing")
        if (self.protocol == "http") != bool(self.adaptor):
            raise ValueError("adaptor: an HTTP peer names one, a gRPC peer has none")
        return self


def folder() -> Path:
    """Where the peers are: beside the load generator in a wheel, two floors down in a checkout."""
    here = Path(__file__).parent
    return next(path for path in (here / "peers", here.parents[1] / "peers") if path.is_dir())


def names() -> list[str]:
    """Every peer that has a peer.toml."""
    return sorted(path.parent.name for path in folder().glob("*/peer.toml"))


def read(peer: str) -> Peer:
    """The peer of this name. Raises ValueError, naming the file, for one that is unknown or
    wrong."""
    path = folder() / peer / "peer.toml"
    if not path.is_file():
        raise ValueError(f"peer {peer!r}: unknown; there are {', '.join(names())}")
    try:
        return Peer.model_validate(tomllib.loads(path.read_text()))
    except (tomllib.TOMLDecodeError, ValidationError) as error:
        raise ValueError(f"{path}: {error}") from error


@dataclass(frozen=True)
class Environment:
    """An interpreter, and what is installed for it. Names of packages are in lower case."""

    python: Path
    version: str
    packages: dict[str, str]


def environment(name: str, peer: Peer) -> Environment:
    """The environment of a peer, made where it is not there yet. Raises PeerUnavailable."""
    if not peer.requirements:
        return _describe(Path(sys.executable))
    requirements = pinned(peer.requirements)
    interpreter, found = _interpreter(name, peer.python)
    place = (CACHE / name / key(requirements, found)).resolve()
    place.parent.mkdir(parents=True, exist_ok=True)
    with _locked(place.with_suffix(".lock")):
        record = place / "installed.json"
        if not record.exists():
            made = _install(name, interpreter, requirements, place)
            record.write_text(json.dumps({"python": made.version, "packages": made.packages}))
    installed = json.loads(record.read_text())
    return Environment(place / "bin" / "python", installed["python"], installed["packages"])


def pinned(requirements: tuple[str, ...]) -> tuple[str, ...]:
    """`requirements` with a bare "onnxruntime" at the version installed here, where there is
    one."""
    try:
        same = f"onnxruntime=={version('onnxruntime')}"
    except PackageNotFoundError:
        same = "onnxruntime"
    return tuple(same if each == "onnxruntime" else each for each in requirements)


def key(requirements: tuple[str, ...], python: str) -> str:
    """A short name that is another one wherever anything asked for is."""
    asked = json.dumps([sorted(requirements), python])
    return hashlib.sha256(asked.encode()).hexdigest()[:12]


def tail(log: Path, lines: int = 40) -> str:
    """The end of a log, for an error message."""
    text = log.read_text(errors="replace") if log.exists() else ""
    return "\n".join(text.strip().splitlines()[-lines:])


def _interpreter(name: str, minors: tuple[str, ...]) -> tuple[Path, str]:
    """This interpreter where it will do, else the first on the PATH that will, and its version."""
    candidates = [sys.executable, *(f"python{minor}" for minor in minors)]
    for candidate in candidates:
        path = shutil.which(candidate)
        found = _version(path) if path else None
        if path and found and (not minors or found.rpartition(".")[0] in minors):
            return Path(path), found
    raise PeerUnavailable(name, f"needs Python {' or '.join(minors)}, and none is on the PATH")


def _version(python: str) -> str | None:
    """The version of an interpreter; None for one that does not run."""
    command = [python, "-c", "import platform; print(platform.python_version())"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _install(
    name: str, interpreter: Path, requirements: tuple[str, ...], place: Path
) -> Environment:
    log = place.with_suffix(".log")
    python = place / "bin" / "python"
    steps = [
        [str(interpreter), "-m", "venv", "--clear", str(place)],
        [str(python), "-m", "pip", "install", "--quiet", *requirements],
    ]
    with log.open("w") as output:
        for step in steps:
            try:
                subprocess.run(
                    step,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    stdin=subprocess.DEVNULL,
                    env=clean_environ(),
                    check=True,
                    timeout=INSTALL_SECONDS,
                )
            except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
                why = f"could not be installed: {error}\n{tail(log)}"
                raise PeerUnavailable(name, why) from error
    return _describe(python)


def clean_environ() -> dict[str, str]:
    """This process' environment without what would lead another interpreter to packages of
    ours."""
    return {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PYTHONHOME")}


def _describe(python: Path) -> Environment:
    done = subprocess.run(
        [str(python), "-c", _DESCRIBE],
        capture_output=True,
        text=True,
        check=True,
        env=None if python == Path(sys.executable) else clean_environ(),
    )
    found = json.loads(done.stdout)
    return Environment(python, found["python"], found["packages"])


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Alone with `path` among all processes here: two load tests may want the same peer."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
