"""The real server as a process of its own: started, found, stopped, and its log read."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import pathlib
import re
import select
import signal
import subprocess
import sysconfig
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

_BANNER = re.compile(r"gRPC on (\S+) and HTTP on (\S+)$")
# Generous: what is waited for is an event, this only ends a test that would hang.
PATIENCE = 60.0
# The engine that tests run with: `RPC_ENGINE=native python -m pytest tests/integration`.
ENGINE = os.environ.get("RPC_ENGINE", "auto")
# And how many front processes: `FRONTS=2 python -m pytest tests/integration`.
FRONTS = os.environ.get("FRONTS", "0")


@dataclass
class RunningServer:
    """A server that is up. `log()` is what it has written so far."""

    process: subprocess.Popen[str]
    grpc: str
    http: str
    log_file: pathlib.Path

    def log(self) -> list[dict[str, Any]]:
        """The log's records; a line that is no JSON becomes a record of level "raw"."""
        records = []
        for line in self.log_file.read_text().splitlines():
            try:
                records.append(json.loads(line))
            except ValueError:
                records.append({"level": "raw", "message": line})
        return records

    def get(self, path: str) -> tuple[int, str]:
        """Status and body of an HTTP GET."""
        connection = http.client.HTTPConnection(self.http, timeout=PATIENCE)
        try:
            connection.request("GET", path)
            response = connection.getresponse()
            return response.status, response.read().decode()
        finally:
            connection.close()

    def terminate(self) -> None:
        self.process.send_signal(signal.SIGTERM)

    def wait(self) -> int:
        return self.process.wait(PATIENCE)


def executable() -> pathlib.Path:
    """The console script beside this interpreter."""
    return pathlib.Path(sysconfig.get_path("scripts")) / "headrace"


def clean_environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """This environment without any setting of the server's, then `extra`."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith("HEADRACE_")}
    return {**kept, **(extra or {})}


def run(
    *arguments: str | pathlib.Path, environment: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Runs `headrace` with `arguments` to its end: for commands that must not start to serve."""
    return subprocess.run(
        [executable(), *arguments],
        env=clean_environment(environment),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )


@contextlib.contextmanager
def serving(
    log_file: pathlib.Path,
    *arguments: str | pathlib.Path,
    environment: Mapping[str, str] | None = None,
    command: pathlib.Path | None = None,
    cwd: pathlib.Path | None = None,
    json_log: bool = True,
) -> Iterator[RunningServer]:
    """`headrace serve` with `arguments` and free ports, inside the block.

    Afterwards it is told to stop, must exit with 0, and must not have logged an error that nobody
    expected. A block that has waited for the exit itself is left alone with what it found.
    """
    ways = (f"--rpc-engine={ENGINE}", f"--front-processes={FRONTS}")
    with log_file.open("w") as log:
        process = subprocess.Popen(
            [
                command or executable(),
                "serve",
                *ways,
                "--grpc-port=0",
                "--http-port=0",
                *arguments,  # the last that says something of an option is heard
            ],
            env=clean_environment(environment),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            cwd=cwd,
        )
    try:
        server = RunningServer(process, *_addresses(process, log_file), log_file)
        yield server
        if process.poll() is None:
            server.terminate()
            assert server.wait() == 0, log_file.read_text()
        if json_log:
            _assert_no_surprises(server)
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
        assert process.stdout is not None
        process.stdout.close()


def _addresses(process: subprocess.Popen[str], log_file: pathlib.Path) -> tuple[str, str]:
    """What the first line on standard output says."""
    assert process.stdout is not None
    readable, _, _ = select.select([process.stdout], [], [], PATIENCE)
    line = process.stdout.readline().strip() if readable else "nothing, in time"
    found = _BANNER.search(line)
    assert found, f"first line: {line!r}; the log: {log_file.read_text()}"
    return found[1], found[2]


def _assert_no_surprises(server: RunningServer) -> None:
    """A traceback in the log is a bug, even where every caller got an answer. So is a line that is
    not JSON, which is what was promised to whoever reads it."""
    surprises = [
        record
        for record in server.log()
        if record["level"] == "raw"
        or "exception" in record
        or "unexpected" in record["message"]
        or record["message"].startswith(("Task ", "Exception ", "Future "))
    ]
    assert not surprises, surprises
