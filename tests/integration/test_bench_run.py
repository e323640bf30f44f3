"""`measure` in earnest: load processes, sockets, the real server, and fakes that misbehave.

What is asserted are sums, and bounds that hold on any machine: a request cannot be answered before
its server has slept.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import grpc
import pytest
from aiohttp import web

from headrace.bench.errors import BenchError
from headrace.bench.fleet import Fleet
from headrace.bench.loads import Share
from headrace.bench.progress import Progress
from headrace.bench.results import Measurement
from headrace.bench.run import measure
from headrace.bench.spec import (
    BurstLoad,
    ClosedLoad,
    Job,
    Load,
    OpenLoad,
    RequestSpec,
    SensorLoad,
    Target,
)
from headrace.bench.worker import Assignment
from headrace.inference.v2 import grpc_service_pb2 as pb
from headrace.inference.v2 import grpc_service_pb2_grpc as rpc
from support import models, server
from support.server import RunningServer

PAUSE = 1.0


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    folder = tmp_path_factory.mktemp("bench")
    models.write(folder / "models", "double", models.scaled(2.0))
    with server.serving(folder / "server.log", folder / "models") as up:
        yield up


def job(target: Target, load: Load, **more: Any) -> Job:
    given = {"requests": (RequestSpec(model="double"),), "duration": 1.5, "warm_up": 0.5}
    return Job.model_validate({"target": target, "load": load} | given | more)


def check_sums(found: Measurement) -> None:
    assert found.sent == found.ok + sum(found.errors.values()) + found.unfinished
    for times in (found.latency, found.service):
        assert (times.count if times is not None else 0) == found.ok + found.unfinished
    assert found.throughput == pytest.approx(sum(i.ok for i in found.intervals) / found.seconds)


@pytest.mark.parametrize("transport", ["grpcio", "lean"])
def test_unary_calls_to_the_real_server(running: RunningServer, transport: str) -> None:
    seen: list[Progress] = []
    target = Target.model_validate(
        {"address": running.grpc, "transport": transport, "pid": running.process.pid}
    )
    found = measure(job(target, OpenLoad(rate=100), processes=2), seen.append)
    check_sums(found)
    assert found.errors == {}
    assert found.ok > 0
    assert found.client.transport == transport
    assert found.client.processes == 2
    assert found.client.behind is not None
    assert found.client.behind.count == found.sent
    assert found.batches is not None
    assert sum(size * count for size, count in found.batches.sizes.items()) > 0
    assert found.server is not None
    assert found.server.peak_memory_mb > 1
    assert found.server.threads >= 1
    assert [p.elapsed for p in seen if p.phase == "measure"] == [1.0, 1.5]
    assert [p.interval for p in seen if p.phase == "measure"] == list(found.intervals)


def test_one_bidirectional_call_for_all(running: RunningServer) -> None:
    target = Target(address=running.grpc, protocol="grpc-stream")
    found = measure(job(target, ClosedLoad(callers=4)))
    check_sums(found)
    assert found.errors == {}
    assert found.client.behind is None


def test_sensor_streams(running: RunningServer) -> None:
    """Of 10 sessions each window of 40 samples ends with every second chunk of 20."""
    load = SensorLoad(sessions=10, sample_rate=400, chunk=20, window=40)
    target = Target(address=running.grpc, protocol="sensor")
    found = measure(job(target, load, processes=2, duration=1.97, warm_up=0))
    check_sums(found)
    assert found.errors == {}
    assert found.sent == 10 * 19


def test_windows_that_cannot_be_in_time(running: RunningServer) -> None:
    """The server is told the deadline: it drops them, or they come too late."""
    requests = (RequestSpec(model="double", deadline=1e-6),)
    load = SensorLoad(sessions=4, sample_rate=400, chunk=20, window=20)
    target = Target(address=running.grpc, protocol="sensor")
    found = measure(job(target, load, duration=1.0, requests=requests))
    check_sums(found)
    assert found.sent > 0
    assert found.good == 0
    assert set(found.errors) <= {"DEADLINE_EXCEEDED"}


def test_nobody_is_there() -> None:
    with socket.socket() as bound:  # to a port on which nobody listens
        bound.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{bound.getsockname()[1]}"
        target = Target(address=address)
        with pytest.raises(BenchError, match=f"'double' at {address}: UNAVAILABLE"):
            measure(job(target, ClosedLoad()))


def test_there_is_no_such_model(running: RunningServer) -> None:
    unknown = (RequestSpec(model="nonesuch"),)
    with pytest.raises(BenchError, match=r"'nonesuch' at .*: NOT_FOUND: .*nonesuch"):
        measure(job(Target(address=running.grpc), ClosedLoad(), requests=unknown))
    load = SensorLoad(sessions=1, sample_rate=100, chunk=10, window=10)
    target = Target(address=running.grpc, protocol="sensor")
    with pytest.raises(BenchError, match="'nonesuch'"):
        measure(job(target, load, requests=unknown))


class Fake(rpc.GRPCInferenceServiceServicer):
    """Answers at once, but for the time in which it pauses: from the `first` request on, once."""

    def __init__(self, first: int) -> None:
        self.first = first
        self.count = 0
        self.status: grpc.StatusCode | None = None
        self.open = asyncio.Event()
        self.open.set()

    async def ModelMetadata(self, request: Any, context: Any) -> pb.ModelMetadataResponse:
        response = pb.ModelMetadataResponse(name=request.name)
        response.inputs.add(name="x", datatype="FP32", shape=[-1, 4])
        return response

    async def ModelInfer(self, request: Any, context: Any) -> pb.ModelInferResponse:
        self.count += 1
        if self.status is not None and self.count > 1:
            await context.abort(self.status, "scripted")
        if self.count == self.first:
            self.open.clear()
            asyncio.get_running_loop().call_later(PAUSE, self.open.set)
        await self.open.wait()
        return pb.ModelInferResponse(model_name=request.model_name)


@contextlib.contextmanager
def in_thread(serve: Callable[[], contextlib.AbstractAsyncContextManager[str]]) -> Iterator[str]:
    """Runs a server on a loop of its own; gives its address."""
    addresses: list[str] = []
    started = threading.Event()
    loop = asyncio.new_event_loop()
    leave = asyncio.Event()

    async def main() -> None:
        async with serve() as address:
            addresses.append(address)
            started.set()
            await leave.wait()

    thread = threading.Thread(target=lambda: loop.run_until_complete(main()))
    thread.start()
    try:
        assert started.wait(server.PATIENCE)
        yield addresses[0]
    finally:
        loop.call_soon_threadsafe(leave.set)
        thread.join()
        loop.close()


@contextlib.contextmanager
def fake(first: int, status: grpc.StatusCode | None = None) -> Iterator[str]:
    @contextlib.asynccontextmanager
    async def serve() -> AsyncIterator[str]:
        servicer = Fake(first)  # type: ignore[abstract]
        servicer.status = status
        grpc_server = grpc.aio.server()
        rpc.add_GRPCInferenceServiceServicer_to_server(servicer, grpc_server)
        port = grpc_server.add_insecure_port("127.0.0.1:0")
        await grpc_server.start()
        yield f"127.0.0.1:{port}"
        await grpc_server.stop(None)

    with in_thread(serve) as address:
        yield address


def test_a_pause_of_the_server_is_in_the_open_loads_latency() -> None:
    """150 requests in 3 s, of which the server lets a third wait: half of these over half a pause.
    A closed load sends one into the pause."""
    load = OpenLoad(rate=50, arrivals="constant")
    with fake(first=30) as address:
        target = Target(address=address, transport="grpcio")
        found = measure(job(target, load, warm_up=0, duration=3.0))
    check_sums(found)
    assert found.ok == found.sent == 150
    assert found.latency is not None
    assert found.latency.p90_ms > PAUSE * 1e3 / 2
    assert found.batches is None  # the fake has no statistics
    with fake(first=30) as address:
        target = Target(address=address, transport="grpcio")
        closed = measure(job(target, ClosedLoad(think=0.01), warm_up=0, duration=3.0))
    check_sums(closed)
    assert closed.latency is not None
    assert closed.latency.max_ms > PAUSE * 1e3 * 0.9
    assert closed.latency.p90_ms < found.latency.p90_ms


def test_a_load_process_that_dies_ends_the_test() -> None:
    with fake(first=0) as address:
        target = Target(address=address, transport="grpcio")
        assignment = Assignment(target, (), (), Share())
        with Fleet([assignment, assignment]) as fleet:
            assert fleet.ready() == "grpcio"
            fleet._processes[1].kill()
            with pytest.raises(BenchError, match=r"load process 1 has ended .* exit code -9"):
                list(fleet.reports(time.monotonic() + server.PATIENCE))


def test_errors_are_counted_by_status_and_do_not_end_the_test() -> None:
    with fake(first=0, status=grpc.StatusCode.RESOURCE_EXHAUSTED) as address:
        target = Target(address=address, transport="grpcio")
        found = measure(job(target, OpenLoad(rate=50, arrivals="constant"), duration=1.0))
    assert found.errors == {"RESOURCE_EXHAUSTED": 50}
    assert (found.sent, found.ok, found.latency) == (50, 0, None)


def test_a_deadline_is_told_and_kept() -> None:
    """A burst into a pause of the server, with deadlines a fifth of it: all of it expires."""
    requests = (RequestSpec(model="double", deadline=PAUSE / 5),)
    with fake(first=1) as address:
        target = Target(address=address, transport="grpcio")
        burst = BurstLoad(count=20)
        found = measure(job(target, burst, requests=requests, warm_up=0, duration=1.0))
    assert found.errors == {"DEADLINE_EXCEEDED": 20}
    assert found.goodput == 0


@contextlib.contextmanager
def http_server(status: Callable[[int], int]) -> Iterator[str]:
    """The Open Inference Protocol's REST form, as far as a load test needs it."""
    count = 0

    async def about(request: web.Request) -> web.Response:
        if request.match_info["model"] != "double":
            return web.Response(status=404, text="no such model")
        inputs = [{"name": "x", "datatype": "FP32", "shape": [-1, 4]}]
        return web.json_response({"name": "double", "inputs": inputs})

    async def infer(request: web.Request) -> web.Response:
        nonlocal count
        count += 1
        await request.read()
        return web.Response(status=status(count), body=b"{}")

    @contextlib.asynccontextmanager
    async def serve() -> AsyncIterator[str]:
        app = web.Application()
        app.add_routes(
            [web.get("/v2/models/{model}", about), web.post("/v2/models/{model}/infer", infer)]
        )
        runner = web.AppRunner(app)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        host, port = runner.addresses[0][:2]
        yield f"http://{host}:{port}"
        await runner.cleanup()

    with in_thread(serve) as address:
        yield address


def test_http() -> None:
    with http_server(lambda count: 503 if count % 2 else 200) as address:
        target = Target(address=address, protocol="http")
        load = OpenLoad(rate=50, arrivals="constant")
        found = measure(job(target, load, warm_up=0, duration=1.0))
        with pytest.raises(BenchError, match=r"'nonesuch' at .*: HTTP 404 .*no such model"):
            measure(job(target, load, requests=(RequestSpec(model="nonesuch"),)))
    check_sums(found)
    assert (found.sent, found.ok) == (50, 25)
    assert found.errors == {"HTTP 503": 25}
    assert found.client.transport == "aiohttp"
