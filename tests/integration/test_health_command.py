"""`headrace health` against a real server: what a container's health check gets to see."""

from __future__ import annotations

import asyncio
import pathlib
import re
import socket
import subprocess
import sys
from typing import Any

import numpy as np

from headrace.client import AsyncClient, RetryPolicy
from support import models, server
from support.waiting import until

SINGLE = "instance_group [{ count: 1 kind: KIND_CPU }]"


def test_it_serves(tmp_path: pathlib.Path) -> None:
    models.write(tmp_path / "models", "double", models.scaled(2))
    with server.serving(tmp_path / "log", tmp_path / "models") as running:
        for flags in ((), ("--service=double",)):
            done = server.run("health", running.grpc, *flags)
            assert (done.returncode, done.stdout, done.stderr) == (0, "SERVING\n", "")
        done = server.run("health", running.grpc, "--service=triple")
        assert (done.returncode, done.stdout) == (1, "")
        assert "NOT_FOUND" in done.stderr


async def test_it_drains(tmp_path: pathlib.Path) -> None:
    """A server that stops says so while it still answers what it has accepted."""
    models.write(tmp_path / "models", "lab", models.lab(), config=SINGLE)
    endless: dict[str, Any] = {
        "x": np.zeros((1, 1), np.float32),
        "steps": np.array([models.ENDLESS], np.int64),
        "index": np.zeros(1, np.int64),
    }
    with server.serving(tmp_path / "log", tmp_path / "models") as running:
        async with AsyncClient(running.grpc, retry=RetryPolicy(max_attempts=1)) as client:
            blocker = asyncio.create_task(client.infer("lab", endless))

            async def busy() -> bool:
                _, metrics = await asyncio.to_thread(running.get, "/metrics")
                return bool(re.search(r"^headrace_executors_busy{.*} 1", metrics, re.MULTILINE))

            await until(busy)
            running.terminate()

            async def stopping() -> bool:
                return not await client.server_ready()

            await until(stopping)
            done = await asyncio.to_thread(server.run, "health", running.grpc)
            assert (done.returncode, done.stdout) == (1, "NOT_SERVING\n")
            blocker.cancel()
        assert await asyncio.to_thread(running.wait) == 0


def test_nobody_is_there() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    done = server.run("health", f"127.0.0.1:{port}", "--timeout=30")
    assert (done.returncode, done.stdout) == (1, "")
    assert f"127.0.0.1:{port}: UNAVAILABLE" in done.stderr


def test_somebody_who_never_answers() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = f"127.0.0.1:{listener.getsockname()[1]}"
        done = server.run("health", address, "--timeout=0.2")
    assert (done.returncode, done.stdout) == (1, "")
    assert "DEADLINE_EXCEEDED" in done.stderr or "UNAVAILABLE" in done.stderr


def test_it_loads_no_runtime() -> None:
    """It is run every few seconds beside a server that needs the processor."""
    program = (
        "import sys\n"
        "from headrace.server.cli import main\n"
        "main(['health', '127.0.0.1:1', '--timeout=0.05'])\n"
        "print(sorted({'onnxruntime', 'aiohttp', 'headrace.server.app'} & set(sys.modules)))\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout == "[]\n", done.stderr
