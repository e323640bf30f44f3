"""How a server starts and stops while callers are there."""

from __future__ import annotations

import asyncio
import pathlib
import signal
from collections.abc import AsyncIterator
from typing import Any

import grpc
import numpy as np
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from headrace.client import (
    AsyncClient,
    Cancelled,
    HeadraceError,
    RetryPolicy,
    StreamRequest,
    Unavailable,
)
from headrace.server import app as server_app
from headrace.server.config import load_settings
from headrace.server.rpc import server as rpc
from headrace.server.rpc.engine import stop
from support import models, server
from support.waiting import until

ONCE = RetryPolicy(max_attempts=1)
SINGLE = "instance_group [{ count: 1 kind: KIND_CPU }]"


def row(value: float, steps: int = 0) -> dict[str, Any]:
    return {
        "x": np.array([[value]], np.float32),
        "steps": np.array([steps], np.int64),
        "index": np.zeros(1, np.int64),
    }


async def metric_is(running: server.RunningServer, name: str, value: int) -> None:
    """Waits until /metrics says so about the only model."""

    async def says_so() -> bool:
        _, text = await asyncio.to_thread(running.get, "/metrics")
        lines = [line for line in text.splitlines() if line.startswith(f"{name}{{")]
        return any(float(line.split()[-1]) == value for line in lines)

    await until(says_so)


@pytest.fixture
def repository(tmp_path: pathlib.Path) -> pathlib.Path:
    models.write(tmp_path / "models", "lab", models.lab(), config=SINGLE)
    return tmp_path / "models"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "SIGINT"])
async def test_what_is_in_flight_is_answered(
    tmp_path: pathlib.Path, repository: pathlib.Path, number: signal.Signals
) -> None:
    with server.serving(tmp_path / "log", repository) as running:
        async with (
            AsyncClient(running.grpc, retry=ONCE) as client,
            grpc.aio.insecure_channel(running.grpc) as channel,
        ):
            # Nothing can finish while this one runs, so what waits is known to be in flight.
            blocker = asyncio.create_task(client.infer("lab", row(0, models.ENDLESS)))
            await metric_is(running, "headrace_executors_busy", 1)
            waiting = [asyncio.create_task(client.infer("lab", row(n))) for n in range(50)]

            async def requests() -> AsyncIterator[StreamRequest]:
                yield StreamRequest("lab", row(100))
                await asyncio.Event().wait()  # the caller's side stays open

            stream = client.infer_stream(requests())
            streamed = asyncio.create_task(anext(stream))
            await metric_is(running, "headrace_queue_requests", 51)
            watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest())
            serving = health_pb2.HealthCheckResponse
            assert (await watch.read()).status == serving.SERVING

            running.process.send_signal(number)

            assert (await watch.read()).status == serving.NOT_SERVING
            with pytest.raises(Unavailable, match="shutting down") as refused:
                await client.infer("lab", row(1))
            assert refused.value.reason == "DRAINING"
            assert not await client.server_ready()
            assert await client.server_live()
            assert (await asyncio.to_thread(running.get, "/v2/health/ready"))[0] == 503
            assert running.process.poll() is None

            blocker.cancel()
            results = await asyncio.gather(*waiting)
            assert [r["y"].item() for r in results] == [2 * n + 1 for n in range(50)]
            assert (await streamed).unwrap()["y"].item() == 201
            with pytest.raises(Unavailable, match="shutting down"):
                await anext(stream)
            watch.cancel()
        assert await asyncio.to_thread(running.wait) == 0
    assert running.log()[-1]["message"] == "stopped"


async def test_when_the_grace_period_is_over(
    tmp_path: pathlib.Path, repository: pathlib.Path
) -> None:
    with server.serving(tmp_path / "log", repository, "--grace-seconds=0.2") as running:
        async with AsyncClient(running.grpc, retry=ONCE) as client:
            calls = [asyncio.create_task(client.infer("lab", row(0, models.ENDLESS)))]
            await metric_is(running, "headrace_executors_busy", 1)
            calls += [asyncio.create_task(client.infer("lab", row(n))) for n in range(5)]
            await metric_is(running, "headrace_queue_requests", 5)
            running.terminate()
            outcomes = await asyncio.gather(*calls, return_exceptions=True)
        assert await asyncio.to_thread(running.wait) == 0
    assert isinstance(outcomes[0], (Unavailable, Cancelled))
    assert all(isinstance(outcome, Unavailable) for outcome in outcomes[1:])
    assert any("grace period" in record["message"] for record in running.log())


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "SIGINT"])
async def test_a_second_signal_stops_at_once(
    tmp_path: pathlib.Path, repository: pathlib.Path, number: signal.Signals
) -> None:
    with server.serving(tmp_path / "log", repository) as running:
        async with AsyncClient(running.grpc, retry=ONCE) as client:
            blocker = asyncio.create_task(client.infer("lab", row(0, models.ENDLESS)))
            await metric_is(running, "headrace_executors_busy", 1)
            running.process.send_signal(number)

            async def not_ready() -> bool:
                return (await asyncio.to_thread(running.get, "/v2/health/ready"))[0] == 503

            await until(not_ready)
            running.process.send_signal(number)
            assert await asyncio.to_thread(running.wait) == 128 + number
            with pytest.raises(HeadraceError):
                await blocker
        assert running.log()[-1]["message"].startswith("stopping at once")


async def test_idle_connections_do_not_hold_it(
    tmp_path: pathlib.Path, repository: pathlib.Path
) -> None:
    """A watcher and a stream on which nothing happens: the server leaves them."""
    with server.serving(tmp_path / "log", repository) as running:
        async with (
            AsyncClient(running.grpc, retry=ONCE) as client,
            grpc.aio.insecure_channel(running.grpc) as channel,
        ):
            watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest())
            await watch.read()

            async def requests() -> AsyncIterator[StreamRequest]:
                yield StreamRequest("lab", row(1))
                await asyncio.Event().wait()

            stream = client.infer_stream(requests())
            assert (await anext(stream)).unwrap()["y"].item() == 3
            running.terminate()
            with pytest.raises(Unavailable):
                await anext(stream)
            assert await asyncio.to_thread(running.wait) == 0
            watch.cancel()


async def test_an_unload_under_way_is_waited_for(
    tmp_path: pathlib.Path, repository: pathlib.Path
) -> None:
    """What a model that is being unloaded has accepted is in flight like anything else."""
    models.write(repository, "other", models.scaled())
    with server.serving(tmp_path / "log", repository) as running:
        async with AsyncClient(running.grpc, retry=ONCE) as client:
            blocker = asyncio.create_task(client.infer("lab", row(0, models.ENDLESS)))
            await metric_is(running, "headrace_executors_busy", 1)
            waiting = asyncio.create_task(client.infer("lab", row(4)))
            await metric_is(running, "headrace_queue_requests", 1)
            unload = asyncio.create_task(client.unload_model("lab"))

            async def unloading() -> bool:
                return any(m.state == "UNLOADING" for m in await client.repository_index())

            await until(unloading)
            running.terminate()

            async def draining() -> bool:
                return not await client.server_ready()

            await until(draining)
            blocker.cancel()
            assert (await waiting)["y"].item() == 9
            await unload
        assert await asyncio.to_thread(running.wait) == 0


async def test_while_it_loads_it_lives_and_is_not_ready(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In this process, because the port of a server that is not ready is printed nowhere."""
    models.write(tmp_path / "models", "slow", models.lab(steps_factor=3_000), config=SINGLE)
    bound: asyncio.Queue[int] = asyncio.Queue()
    bind = rpc.bind

    def noting_bind(*arguments: Any) -> int:
        port = bind(*arguments)
        bound.put_nowait(port)
        return port

    monkeypatch.setattr(rpc, "bind", noting_bind)
    flags = {"models": [tmp_path / "models"], "grpc_port": 0, "http_port": 0}
    settings = load_settings(flags | {"rpc_engine": server.ENGINE}, None, {})
    app = server_app.App(settings)
    starting = asyncio.create_task(app.start())
    try:
        async with AsyncClient(f"127.0.0.1:{await bound.get()}", retry=ONCE) as client:

            async def loading() -> bool:
                return {m.state for m in await client.repository_index()} == {"LOADING"}

            await until(loading)
            assert await client.server_live()
            assert not await client.server_ready()
            with pytest.raises(Unavailable, match="LOADING"):
                await client.infer("slow", row(1))
            assert not starting.done()
            await starting
            assert await client.server_ready()
            assert (await client.infer("slow", row(1)))["y"].item() == 3
    finally:
        await starting
        await app.stop()


async def test_nobody_is_cancelled_by_a_stop(
    tmp_path: pathlib.Path, repository: pathlib.Path
) -> None:
    """Calls that gRPC holds when the server stops, and has not handed over, are refused by name."""
    with server.serving(tmp_path / "log", repository) as running:
        async with AsyncClient(running.grpc, retry=ONCE) as client:
            await client.infer("lab", row(0))
            calls = [asyncio.create_task(client.infer("lab", row(n))) for n in range(800)]
            await asyncio.wait(calls, return_when=asyncio.FIRST_COMPLETED)
            running.terminate()
            outcomes = await asyncio.gather(*calls, return_exceptions=True)
        assert await asyncio.to_thread(running.wait) == 0
    for number, outcome in enumerate(outcomes):
        if isinstance(outcome, BaseException):
            assert isinstance(outcome, Unavailable)
        else:
            assert outcome["y"].item() == 2 * number + 1


async def test_nothing_of_grpcio_is_left_when_it_has_stopped() -> None:
    """A balancing client watches health until the end. What the loop's own end would have to cancel
    writes a traceback into the log."""
    engine, health = grpc.aio.server(), rpc.Health()
    health_pb2_grpc.add_HealthServicer_to_server(health.servicer, engine)
    port = engine.add_insecure_port("127.0.0.1:0")
    await engine.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest())
        await watch.read()
        await stop(engine, 1)
        left = {task.get_name() for task in asyncio.all_tasks()}
        assert not any(name.startswith(("rpc_task", "HandleExceptions")) for name in left), left
