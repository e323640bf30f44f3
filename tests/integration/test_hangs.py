"""Runs that hang, and memory that runs out, in a real server: those concerned are told, the others
served, and the end is not held up."""

from __future__ import annotations

import asyncio
import pathlib
import re
import urllib.request
from collections.abc import AsyncIterator, Iterator
from typing import Any

import grpc
import numpy as np
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from headrace.client import (
    AsyncClient,
    HeadraceError,
    InferenceFailed,
    Overloaded,
    RetryPolicy,
    Unavailable,
)
from headrace.server import app as server_app
from headrace.server.config import load_settings
from headrace.server.models import served
from soaking import serving
from soaking.faulty import HANG, LET_GO, NO_MEMORY, RAISE, Faulty
from support import models, server
from support.server import PATIENCE
from support.waiting import until

ONCE = RetryPolicy(max_attempts=1)
SERVING = health_pb2.HealthCheckResponse
SETTINGS = ("--hang-seconds=0.3", "--grace-seconds=20")


@pytest.fixture
def repository(tmp_path: pathlib.Path) -> pathlib.Path:
    toml = 'instances = 1\nintra_op_threads = 1\npadding = "off"\n'
    models.write(tmp_path / "models", "work", models.scaled(2), toml=toml)
    return tmp_path / "models"


@pytest.fixture
def running(tmp_path: pathlib.Path, repository: pathlib.Path) -> Iterator[serving.Server]:
    with serving.serving(repository, tmp_path / "log", *SETTINGS) as server:
        yield server
        if server.process.poll() is None:
            assert server.stop() == 0, (tmp_path / "log").read_text()


@pytest.fixture
async def client(running: serving.Server) -> AsyncIterator[AsyncClient]:
    async with AsyncClient(running.grpc, retry=ONCE) as opened:
        yield opened


def row(value: float) -> dict[str, Any]:
    return {"x": np.array([[value]], np.float32)}


async def right(client: AsyncClient, value: float) -> None:
    assert (await client.infer("work", row(value)))["y"].item() == 2 * value


async def metric(running: serving.Server, name: str) -> float:
    text = await asyncio.to_thread(get, running.http, "/metrics")
    (value,) = re.findall(rf"^{name}{{.*}} (\S+)$", text, re.MULTILINE)
    return float(value)


def get(address: str, path: str) -> str:
    with urllib.request.urlopen(f"http://{address}{path}", timeout=PATIENCE) as answer:
        return str(answer.read().decode())


async def test_those_of_a_hung_run_are_told_and_others_served(
    running: serving.Server, client: AsyncClient, tmp_path: pathlib.Path
) -> None:
    await right(client, 1.0)
    with pytest.raises(InferenceFailed, match="has not come back") as caught:
        await client.infer("work", row(HANG))
    assert caught.value.reason == "EXECUTOR_HUNG"
    await right(client, 2.0)
    assert await metric(running, "headrace_executor_hangs_total") == 1
    assert await client.model_ready("work")
    await right(client, LET_GO)  # the hung run ends now, and its answer is nobody's
    await right(client, 3.0)
    assert "a fresh executor has taken the place of work/1/cpu0" in (tmp_path / "log").read_text()


async def test_a_stop_does_not_wait_for_what_hangs(
    running: serving.Server, client: AsyncClient
) -> None:
    with pytest.raises(InferenceFailed):
        await client.infer("work", row(HANG))
    await right(client, 1.0)
    assert await asyncio.to_thread(running.stop) == 0


async def test_memory_that_runs_out_has_a_status_of_its_own(
    running: serving.Server, client: AsyncClient
) -> None:
    async def refused() -> HeadraceError:
        with pytest.raises(Overloaded, match=r"out of memory: std::bad_alloc") as caught:
            await client.infer("work", row(NO_MEMORY))
        error: HeadraceError = caught.value
        return error

    async def failed() -> None:
        with pytest.raises(InferenceFailed, match="a fault that was asked for"):
            await client.infer("work", row(RAISE))

    neighbours = [right(client, float(n)) for n in range(20)]
    others = asyncio.gather(failed(), *neighbours)
    error = await refused()
    await others
    # The same would happen again, for all that is known: no time to come back is promised.
    assert (error.reason, error.retry_after) == ("OUT_OF_MEMORY", None)


async def test_without_an_executor_it_is_not_ready(
    repository: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In this process, where a session can be kept from being opened again."""
    open_session = getattr(served, "open_session")  # noqa: B009 (not its own to export)
    allowed = True

    def sometimes(*arguments: Any) -> Any:
        if not allowed:
            raise RuntimeError("the device is gone")
        return Faulty(open_session(*arguments))

    monkeypatch.setattr(served, "open_session", sometimes)
    flags = {"models": [repository], "grpc_port": 0, "http_port": 0, "hang_seconds": 0.3}
    settings = load_settings(flags | {"rpc_engine": server.ENGINE}, None, {})
    async with (
        server_app.running(settings) as (_, addresses),
        AsyncClient(addresses.grpc, retry=ONCE) as client,
        grpc.aio.insecure_channel(addresses.grpc) as channel,
    ):
        health = health_pb2_grpc.HealthStub(channel)

        async def says(ready: bool) -> bool:
            asked = [health.Check(health_pb2.HealthCheckRequest(service=s)) for s in ("", "work")]
            found = [answer.status == SERVING.SERVING for answer in await asyncio.gather(*asked)]
            found += [await client.model_ready("work"), await client.server_ready()]
            return found == [ready] * 4

        assert await says(True)
        allowed = False
        with pytest.raises(InferenceFailed):
            await client.infer("work", row(HANG))

        async def unready() -> bool:
            return await says(False)

        await until(unready)
        with pytest.raises(Unavailable, match="no executor left: the device is gone") as caught:
            await client.infer("work", row(1.0))
        assert caught.value.reason == "NO_EXECUTOR"
        assert await client.server_live()
        allowed = True

        async def ready() -> bool:
            return await says(True)

        await until(ready)
        await right(client, 1.0)
        await right(client, LET_GO)
