"""Whose CPU time and memory are a server's, told from its address alone."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator

import pytest

from headrace.bench.commands.listener import listener

# Prints its port, and then stays until its input ends.
LISTEN = """
import socket, sys
sock = socket.create_server(("127.0.0.1", 0))
print(sock.getsockname()[1], flush=True)
sys.stdin.read()
"""
START = f"""
import subprocess, sys
sys.exit(subprocess.run([sys.executable, "-c", {LISTEN!r}]).returncode)
"""


@pytest.fixture
def started(request: pytest.FixtureRequest) -> Iterator[tuple[subprocess.Popen[str], int]]:
    with subprocess.Popen(
        [sys.executable, "-c", request.param],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        process_group=0,
    ) as process:
        assert process.stdout is not None
        yield process, int(process.stdout.readline())
        process.communicate()


@pytest.mark.parametrize("started", [LISTEN, START], ids=["itself", "a child"], indirect=True)
@pytest.mark.parametrize("form", ["127.0.0.1:{}", "localhost:{}", "http://127.0.0.1:{}/v2"])
def test_it_is_the_process_that_began_the_server(
    started: tuple[subprocess.Popen[str], int], form: str
) -> None:
    process, port = started
    assert listener(form.format(port)) == process.pid


def test_it_is_never_who_started_the_bench() -> None:
    with socket.create_server(("127.0.0.1", 0)) as ours:
        assert listener(f"127.0.0.1:{ours.getsockname()[1]}") == os.getpid()


@pytest.mark.parametrize("address", ["a.test:1", "127.0.0.1", "127.0.0.1:1"])
def test_where_it_cannot_be_told_it_is_not(address: str) -> None:
    assert listener(address) is None
