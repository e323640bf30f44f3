"""Several processes carry calls for one that runs models: what callers may rely on all the same."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import os
import pathlib
import sys
from collections.abc import AsyncIterator, Iterator
from typing import Any

import grpc
import numpy as np
import psutil
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from headrace.client import AsyncClient, HeadraceError, RetryPolicy, StreamRequest, Unavailable
from headrace.inference.v2 import grpc_service_pb2 as pb
from headrace.server.errors import DOMAIN
from support import models, server
from support.waiting import until

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="front processes need Linux")
METHOD = "/inference.GRPCInferenceService/ModelInfer"
NATIVE = pytest.mark.skipif(
    importlib.util.find_spec("pygrpc_native") is None, reason="needs the extra 'fast'"
)
# Of connections there are several times as many, so that each front has some.
FRONTS = 2
ONCE = RetryPolicy(max_attempts=1)
# Shared memory that holds some requests of LARGE values, and none of HUGE.
MEMORY, LARGE, HUGE = 1 << 20, 60_000, 400_000


@pytest.fixture(scope="module", params=["grpcio", pytest.param("native", marks=NATIVE)])
def running(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[server.RunningServer]:
    folder = tmp_path_factory.mktemp("fronts")
    models.write(folder / "models", "double", models.scaled(2))
    lab = "max_batch_size = 1\ninstances = 1\n"
    models.write(folder / "models", "lab", models.lab(), toml=lab)
    with serving(folder, folder / "models", f"--rpc-engine={request.param}") as up:
        yield up


@contextlib.contextmanager
def serving(folder: pathlib.Path, *arguments: str | pathlib.Path) -> Iterator[server.RunningServer]:
    """With front processes; all of them must have gone in the end, and left nothing."""
    options = (f"--front-processes={FRONTS}", f"--front-memory-bytes={MEMORY}")
    with server.serving(folder / "log", *arguments, *options) as up:
        children = psutil.Process(up.process.pid).children()
        yield up
        if up.process.poll() is None:
            children = psutil.Process(up.process.pid).children()
            up.terminate()
            assert up.wait() == 0
    assert psutil.wait_procs(children, server.PATIENCE)[1] == []


def processes(running: server.RunningServer, module: str) -> list[psutil.Process]:
    """Those of the server's processes that run `module`."""
    found = []
    for child in psutil.Process(running.process.pid).children():
        with contextlib.suppress(psutil.Error):
            if any(part.endswith(module) for part in child.cmdline()):
                found.append(child)
    return found


def ports_of(process: psutil.Process) -> set[int]:
    """Its own ends of its connections."""
    return {c.laddr.port for c in process.net_connections("tcp") if c.raddr}


def listens(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.Error):
        return any(c.status == psutil.CONN_LISTEN for c in process.net_connections("tcp"))
    return False


def message(values: Any, model: str = "double", id_: str = "") -> pb.ModelInferRequest:
    array = np.asarray(values, np.float32)
    asked = pb.ModelInferRequest(model_name=model, id=id_, raw_input_contents=[array.tobytes()])
    asked.inputs.add(name="x", datatype="FP32", shape=array.shape)
    return asked


def slow(value: float, steps: int = models.ENDLESS) -> pb.ModelInferRequest:
    """Of the model that runs one at a time; for ever, unless `steps` says how long."""
    asked = message([[value]], "lab")
    for name, number in (("steps", steps), ("index", 0)):
        asked.inputs.add(name=name, datatype="INT64", shape=[1])
        asked.raw_input_contents.append(np.array([number], np.int64).tobytes())
    return asked


class Callers:
    """ModelInfer in bare gRPC, on several connections."""

    def __init__(self, address: str) -> None:
        options = [("grpc.use_local_subchannel_pool", 1)]
        self.channels = [grpc.aio.insecure_channel(address, options=options) for _ in range(8)]

    def call(self, number: int, asked: pb.ModelInferRequest, **options: Any) -> Any:
        call: Any = self.channels[number % len(self.channels)].unary_unary(
            METHOD, pb.ModelInferRequest.SerializeToString, pb.ModelInferResponse.FromString
        )
        return call(asked, **options)

    async def close(self) -> None:
        for channel in self.channels:
            await channel.close()


@pytest.fixture
async def callers(running: server.RunningServer) -> AsyncIterator[Callers]:
    made = Callers(running.grpc)
    yield made
    await made.close()


async def metric_is(running: server.RunningServer, name: str, value: float) -> None:
    async def reached() -> bool:
        _, text = await asyncio.to_thread(running.get, "/metrics")
        lines = [line for line in text.splitlines() if line.startswith(f'{name}{{model="lab"')]
        return sum(float(line.rsplit(" ", 1)[1]) for line in lines) == value

    await until(reached)


async def busy(running: server.RunningServer, executors: int) -> None:
    await metric_is(running, "headrace_executors_busy", executors)


async def test_everybody_gets_his_own_answer_and_is_counted_once(
    running: server.RunningServer, callers: Callers
) -> None:
    async with AsyncClient(running.grpc, retry=ONCE) as client:
        (before,) = await client.model_statistics("double")
        calls = [callers.call(n, message([[n]], id_=f"{n}")) for n in range(1000)]
        for number, response in enumerate(await asyncio.gather(*calls)):
            assert response.id == f"{number}"
            assert np.frombuffer(response.raw_output_contents[0], np.float32) == [2 * number]
        (after,) = await client.model_statistics("double")
    assert after.inference_count - before.inference_count == 1000


async def test_every_front_gets_connections(running: server.RunningServer) -> None:
    async def used() -> bool:
        """The kernel deals connections out by chance."""
        callers.append(Callers(running.grpc))
        await asyncio.gather(*(callers[-1].call(n, message([[n]])) for n in range(8)))
        return all(len(one.net_connections("tcp")) > 1 for one in fronts)

    fronts = processes(running, "front_process")
    assert len(fronts) == FRONTS
    callers: list[Callers] = []
    try:
        await until(used)
    finally:
        for one in callers:
            await one.close()


@pytest.mark.parametrize("size", [LARGE, HUGE])
async def test_large_tensors(callers: Callers, size: int) -> None:
    """More of them at once than the shared memory holds; or one that is larger than that."""
    calls = [callers.call(n, message([np.arange(n, size + n)])) for n in range(12)]
    for number, response in enumerate(await asyncio.gather(*calls)):
        found = np.frombuffer(response.raw_output_contents[0], np.float32)
        np.testing.assert_array_equal(found, 2 * np.arange(number, size + number, dtype=np.float32))


async def test_errors_come_with_their_details(
    running: server.RunningServer, callers: Callers
) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await callers.call(0, message([[1]], model="ünknown"))
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND
    assert "'ünknown'" in str(caught.value.details())
    details = dict(caught.value.trailing_metadata() or ())["grpc-status-details-bin"]
    assert isinstance(details, bytes)
    assert DOMAIN.encode() in details
    async with AsyncClient(running.grpc, retry=ONCE) as client:
        explained = await client.infer(
            "double", {"x": np.ones((1, 1), np.float32)}, parameters={"headrace_explain": True}
        )
        assert explained.parameters["headrace_batch_size"] == 1
        with pytest.raises(HeadraceError) as refused:
            await client.model_metadata("unknown")
    assert refused.value.reason == "MODEL_NOT_FOUND"


async def test_a_deadline_and_a_caller_that_leaves_end_their_runs(
    running: server.RunningServer, callers: Callers
) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await callers.call(0, slow(1), timeout=0.3)
    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    await busy(running, 0)
    call = callers.call(0, slow(1))
    await busy(running, 1)
    call.cancel()
    await busy(running, 0)


async def test_streams_health_and_control_share_the_port(running: server.RunningServer) -> None:
    async def requests() -> AsyncIterator[StreamRequest]:
        for number in range(20):
            yield StreamRequest("double", {"x": np.full((1, 1), number, np.float32)})

    async with AsyncClient(running.grpc, retry=ONCE) as client:
        found = [answer.unwrap()["y"].item() async for answer in client.infer_stream(requests())]
        assert sorted(found) == [2 * n for n in range(20)]
        assert await client.server_ready()
        assert {m.name for m in await client.repository_index()} == {"double", "lab"}
    async with grpc.aio.insecure_channel(running.grpc) as channel:
        check = health_pb2_grpc.HealthStub(channel).Check
        assert (await check(health_pb2.HealthCheckRequest(service="double"))).status == 1
        unknown: Any = channel.unary_unary("/nothing/Nothing")
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await unknown(b"")
        assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


async def test_a_front_that_dies_takes_its_own_connections_only(
    running: server.RunningServer,
) -> None:
    before = ports_of(psutil.Process())  # connections of other tests may still be closing
    callers = Callers(running.grpc)
    try:
        await asyncio.gather(*(callers.call(n, message([[n]])) for n in range(8)))
        victim = processes(running, "front_process")[0]
        ours = ports_of(psutil.Process()) - before
        theirs = [c for c in victim.net_connections("tcp") if c.raddr and c.raddr.port in ours]
        blocker = asyncio.ensure_future(callers.call(0, slow(0)))
        await busy(running, 1)
        waiting = [asyncio.ensure_future(callers.call(n, slow(n, 0))) for n in range(8)]
        await metric_is(running, "headrace_queue_requests", 8)
        victim.kill()
        await asyncio.wait(waiting, timeout=0.2)
        blocker.cancel()
        outcomes = await asyncio.gather(*waiting, return_exceptions=True)
    finally:
        await callers.close()
    errors = [outcome for outcome in outcomes if isinstance(outcome, grpc.aio.AioRpcError)]
    assert {error.code() for error in errors} <= {grpc.StatusCode.UNAVAILABLE}
    assert len(errors) == len(theirs)
    for number, outcome in enumerate(outcomes):
        if isinstance(outcome, pb.ModelInferResponse):
            assert np.frombuffer(outcome.raw_output_contents[0], np.float32) == [2 * number + 1]
    await busy(running, 0)

    async def back() -> bool:
        fronts = processes(running, "front_process")
        return len(fronts) == FRONTS and all(listens(front) for front in fronts)

    await until(back)


async def test_the_model_process_may_die_and_comes_back(
    running: server.RunningServer, callers: Callers
) -> None:
    in_flight = [asyncio.ensure_future(callers.call(n, slow(n))) for n in range(8)]
    await busy(running, 1)
    (model,) = processes(running, "model_process")
    async with grpc.aio.insecure_channel(running.grpc) as channel:
        health = health_pb2_grpc.HealthStub(channel)
        request = health_pb2.HealthCheckRequest()
        assert (await health.Check(request)).status == health_pb2.HealthCheckResponse.SERVING
        model.kill()
        for outcome in await asyncio.gather(*in_flight, return_exceptions=True):
            assert isinstance(outcome, grpc.aio.AioRpcError)
            assert outcome.code() is grpc.StatusCode.UNAVAILABLE
            assert (
                b"MODEL_PROCESS_AWAY"
                in dict(outcome.trailing_metadata() or ())["grpc-status-details-bin"]
            )
        async with AsyncClient(running.grpc, retry=ONCE) as client:
            assert (await health.Check(request)).status != health_pb2.HealthCheckResponse.SERVING
            assert await client.server_live()
            assert not await client.server_ready()
            assert not await client.model_ready("double")
            with pytest.raises(Unavailable):
                await client.infer("double", {"x": np.ones((1, 1), np.float32)})
            with pytest.raises(Unavailable):
                await client.repository_index()

            async def serves() -> bool:
                """On every connection: fronts learn of it one by one."""
                try:
                    calls = [callers.call(n, message([[4]])) for n in range(8)]
                    await asyncio.gather(*calls)
                    return await client.server_ready()
                except (Unavailable, grpc.aio.AioRpcError):
                    return False

            await until(serves)
            assert (await asyncio.to_thread(running.get, "/v2/health/ready"))[0] == 200
    response = await callers.call(0, message([[4]]))
    assert np.frombuffer(response.raw_output_contents[0], np.float32) == [8]


async def test_a_reload_under_load_harms_nobody(
    running: server.RunningServer, tmp_path: pathlib.Path, callers: Callers
) -> None:
    async def ask(number: int) -> None:
        while not done.is_set():
            response = await callers.call(number, message([[number]]))
            assert np.frombuffer(response.raw_output_contents[0], np.float32) == [2 * number]

    done = asyncio.Event()
    async with AsyncClient(running.grpc, retry=ONCE) as client, asyncio.TaskGroup() as tasks:
        for number in range(8):
            tasks.create_task(ask(number))
        await client.load_model("double")
        done.set()


async def test_all_that_is_in_flight_is_answered_when_it_stops(
    tmp_path: pathlib.Path,
) -> None:
    models.write(tmp_path / "models", "double", models.slowed(models.scaled(2)))
    with serving(tmp_path, tmp_path / "models") as own:
        callers = Callers(own.grpc)
        calls = [asyncio.ensure_future(callers.call(n, message([[n]]))) for n in range(400)]
        await asyncio.wait(calls, return_when=asyncio.FIRST_COMPLETED)
        own.terminate()
        outcomes = await asyncio.gather(*calls, return_exceptions=True)
        await callers.close()
        assert await asyncio.to_thread(own.wait) == 0
    errors = [o for o in outcomes if isinstance(o, grpc.aio.AioRpcError)]
    assert {error.code() for error in errors} <= {grpc.StatusCode.UNAVAILABLE}
    assert len(errors) + sum(isinstance(o, pb.ModelInferResponse) for o in outcomes) == 400
    assert own.log()[-1]["message"] == "stopped"


async def test_when_the_supervisor_is_killed_nothing_is_left(tmp_path: pathlib.Path) -> None:
    """Nor is there a second server on its port meanwhile; nor one in a folder without models."""
    models.write(tmp_path / "models", "double", models.scaled(2))
    with serving(tmp_path, tmp_path / "models") as own:
        port = own.grpc.rpartition(":")[2]
        options = ("--front-processes=2", f"--grpc-port={port}")
        ended = await asyncio.to_thread(server.run, "serve", tmp_path / "models", *options)
        assert ended.returncode == 1
        assert f":{port}: another server may be there already" in ended.stderr
        children = psutil.Process(own.process.pid).children()
        own.process.kill()
        gone, alive = await asyncio.to_thread(psutil.wait_procs, children, server.PATIENCE)
        assert (len(gone), alive) == (FRONTS + 1, [])
        await asyncio.to_thread(own.wait)
    assert not [name for name in os.listdir("/dev/shm") if "headrace" in name]


def test_a_model_process_that_cannot_start_tells_why_once(tmp_path: pathlib.Path) -> None:
    flags = ("--front-processes=1", "--grpc-port=0", "--http-port=0")
    ended = server.run("serve", tmp_path / "none", *flags)
    assert ended.returncode == 2
    assert ended.stderr.count("headrace serve:") == 1
