"""A Ray cluster for tests, and how many replicas serve on it. Both are programs of their own, in
tests/deploy: Ray is not imported into the tests' process."""

from __future__ import annotations

import contextlib
import os
import pathlib
import select
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable, Iterator

from support import server

HERE = pathlib.Path(__file__).parents[1] / "deploy"
PATIENCE = 120.0


def environment() -> dict[str, str]:
    """Nothing is asked of anybody, and nothing said to anybody."""
    more = {
        "PATH": f"{sysconfig.get_path('scripts')}{os.pathsep}{os.environ['PATH']}",
        "RAY_USAGE_STATS_ENABLED": "0",
        # Else a token is made in the user's home.
        "RAY_AUTH_MODE": "disabled",
        # A machine that others fill is no reason to kill a worker.
        "RAY_memory_monitor_refresh_ms": "0",
    }
    return server.clean_environment(more)


@contextlib.contextmanager
def running(nodes: int, cpus: int) -> Iterator[str]:
    """A cluster of so many nodes with so many processors each, which are all this machine's; gives
    the address of the first. Its sockets need a short name: not in pytest's folder."""
    with tempfile.TemporaryDirectory(prefix="ray-", dir="/tmp") as folder:
        with pathlib.Path(folder, "log").open("w") as log:
            process = subprocess.Popen(
                [sys.executable, HERE / "ray_cluster.py", str(nodes), str(cpus)],
                env=environment() | {"RAY_TMPDIR": folder},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )
        assert process.stdin is not None
        assert process.stdout is not None
        with process.stdin, process.stdout:
            readable, _, _ = select.select([process.stdout], [], [], PATIENCE)
            address = process.stdout.readline().strip() if readable else ""
            try:
                assert address, pathlib.Path(folder, "log").read_text()
                yield address
            finally:
                process.stdin.close()
                process.wait(PATIENCE)


@contextlib.contextmanager
def replicas(cluster: str, log: pathlib.Path) -> Iterator[Callable[[int], None]]:
    """Inside the block, a function that waits until so many replicas run."""
    with log.open("w") as errors:
        process = subprocess.Popen(
            [sys.executable, HERE / "ray_replicas.py", cluster, "headrace", "Headrace"],
            env=environment(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            bufsize=0,  # a line that lay in a buffer would not be waited for
        )
    with process:
        assert process.stdin is not None
        assert process.stdout is not None
        output = process.stdout
        seen: list[int] = []

        def wait(number: int) -> None:
            end = time.monotonic() + PATIENCE
            while seen[-1:] != [number]:
                left = max(end - time.monotonic(), 0)
                readable, _, _ = select.select([output], [], [], left)
                assert readable, f"replicas seen: {seen}, waited for {number}"
                line = output.readline()
                assert line, log.read_text()
                seen.append(int(line))

        yield wait
        process.stdin.close()
