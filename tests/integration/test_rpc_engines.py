"""What callers may rely on whichever engine carries their calls."""

from __future__ import annotations

import asyncio
import importlib.util
import pathlib
from collections.abc import AsyncIterator, Iterator
from typing import Any

import grpc
import numpy as np
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from headrace.client import AsyncClient, RetryPolicy, StreamRequest
from headrace.inference.v2 import grpc_service_pb2 as pb
from headrace.server.errors import DOMAIN
from support import models, server
from support.waiting import until

METHOD = "/inference.GRPCInferenceService/ModelInfer"
LIMIT = 100_000
NATIVE = pytest.mark.skipif(
    importlib.util.find_spec("pygrpc_native") is None, reason="needs the extra 'fast'"
)


@pytest.fixture(scope="module", params=["grpcio", pytest.param("native", marks=NATIVE)])
def running(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[server.RunningServer]:
    folder = tmp_path_factory.mktemp("engine")
    repository = folder / "models"
    models.write(repository, "double", models.scaled(2))
    models.write(repository, "lab", models.lab(), toml="max_batch_size = 1\ninstances = 1\n")
    options = (f"--rpc-engine={request.param}", f"--max-message-bytes={LIMIT}")
    with server.serving(folder / "log", repository, *options) as up:
        yield up


def message(values: Any, model: str = "double", id_: str = "") -> pb.ModelInferRequest:
    array = np.asarray(values, np.float32)
    asked = pb.ModelInferRequest(model_name=model, id=id_, raw_input_contents=[array.tobytes()])
    asked.inputs.add(name="x", datatype="FP32", shape=array.shape)
    return asked


def endless() -> pb.ModelInferRequest:
    """Runs until it is stopped."""
    asked = message([[1]], "lab")
    for name, value in (("steps", models.ENDLESS), ("index", 0)):
        asked.inputs.add(name=name, datatype="INT64", shape=[1])
        asked.raw_input_contents.append(np.array([value], np.int64).tobytes())
    return asked


class Caller:
    """ModelInfer in bare gRPC."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._call: Any = channel.unary_unary(
            METHOD, pb.ModelInferRequest.SerializeToString, pb.ModelInferResponse.FromString
        )

    def __call__(self, asked: pb.ModelInferRequest, **options: Any) -> Any:
        return self._call(asked, **options)


@pytest.fixture
async def caller(running: server.RunningServer) -> AsyncIterator[Caller]:
    async with grpc.aio.insecure_channel(running.grpc) as channel:
        yield Caller(channel)


async def refused(call: Any) -> grpc.aio.AioRpcError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return caught.value


async def busy(running: server.RunningServer, executors: int) -> None:
    async def reached() -> bool:
        _, text = await asyncio.to_thread(running.get, "/metrics")
        line = next(line for line in text.splitlines() if 'busy{model="lab"' in line)
        return float(line.rsplit(" ", 1)[1]) == executors

    await until(reached)


async def test_a_burst_on_one_connection(caller: Caller) -> None:
    calls = [caller(message([[n]], id_=f"{n}")) for n in range(2000)]
    for number, response in enumerate(await asyncio.gather(*calls)):
        assert response.id == f"{number}"
        assert np.frombuffer(response.raw_output_contents[0], np.float32) == [2 * number]


async def test_compressed_requests_are_understood(caller: Caller) -> None:
    response = await caller(message([[1] * 20_000]), compression=grpc.Compression.Gzip)
    assert set(np.frombuffer(response.raw_output_contents[0], np.float32)) == {2}


async def test_a_message_over_the_limit_is_refused_by_its_size(caller: Caller) -> None:
    error = await refused(caller(message([[0] * LIMIT])))
    assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert f"vs. {LIMIT}" in str(error.details())
    assert (await caller(message([[0] * 1000]))).outputs


async def test_errors_come_with_their_details(caller: Caller) -> None:
    error = await refused(caller(message([[1]], model="ünknown")))
    assert error.code() is grpc.StatusCode.NOT_FOUND
    assert "'ünknown'" in str(error.details())
    details = dict(error.trailing_metadata() or ())["grpc-status-details-bin"]
    assert isinstance(details, bytes)
    assert DOMAIN.encode() in details


def bare(channel: grpc.aio.Channel, method: str) -> Any:
    return channel.unary_unary(method)


async def test_what_is_no_message_is_an_invalid_input(running: server.RunningServer) -> None:
    async with grpc.aio.insecure_channel(running.grpc) as channel:
        error = await refused(bare(channel, METHOD)(b"\xff\xff"))
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "cannot be parsed" in str(error.details())


async def test_an_unknown_method_is_unimplemented(running: server.RunningServer) -> None:
    async with grpc.aio.insecure_channel(running.grpc) as channel:
        for method in ("/inference.GRPCInferenceService/Nothing", "/nothing/Nothing"):
            error = await refused(bare(channel, method)(b""))
            assert error.code() is grpc.StatusCode.UNIMPLEMENTED


async def test_a_deadline_ends_a_call_that_runs_and_its_run(
    running: server.RunningServer, caller: Caller
) -> None:
    error = await refused(caller(endless(), timeout=0.5))
    assert error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    await busy(running, 0)


async def test_a_call_that_is_cancelled_stops_its_run(
    running: server.RunningServer, caller: Caller
) -> None:
    call = caller(endless())
    await busy(running, 1)
    call.cancel()
    await busy(running, 0)


async def test_a_caller_that_vanishes_stops_its_run(running: server.RunningServer) -> None:
    async with grpc.aio.insecure_channel(running.grpc) as channel:
        call = Caller(channel)(endless())
        await busy(running, 1)
    await busy(running, 0)
    assert call.done()


async def test_streams_health_and_control_share_the_port(running: server.RunningServer) -> None:
    async def requests() -> AsyncIterator[StreamRequest]:
        for number in range(20):
            yield StreamRequest("double", {"x": np.full((1, 1), number, np.float32)})

    async with AsyncClient(running.grpc, retry=RetryPolicy(max_attempts=1)) as client:
        found = [answer.unwrap()["y"].item() async for answer in client.infer_stream(requests())]
        assert sorted(found) == [2 * n for n in range(20)]
        assert await client.server_ready()
        assert {m.name for m in await client.repository_index()} == {"double", "lab"}
    async with grpc.aio.insecure_channel(running.grpc) as channel:
        check = health_pb2_grpc.HealthStub(channel).Check
        assert (await check(health_pb2.HealthCheckRequest(service="double"))).status == 1


async def test_what_is_in_flight_is_answered_when_the_server_stops(
    tmp_path: pathlib.Path, running: server.RunningServer
) -> None:
    """Of many callers none learns anything but an answer or UNAVAILABLE."""
    models.write(tmp_path / "models", "double", models.slowed(models.scaled(2)))
    engine = next(a for a in running.process.args if "--rpc-engine" in str(a))  # type: ignore[union-attr]
    with server.serving(tmp_path / "log", tmp_path / "models", str(engine)) as own:
        async with grpc.aio.insecure_channel(own.grpc) as channel:
            call = Caller(channel)
            calls = [asyncio.ensure_future(call(message([[n]]))) for n in range(600)]
            await asyncio.wait(calls, return_when=asyncio.FIRST_COMPLETED)
            own.terminate()
            outcomes = await asyncio.gather(*calls, return_exceptions=True)
        assert await asyncio.to_thread(own.wait) == 0
    errors = [o for o in outcomes if isinstance(o, grpc.aio.AioRpcError)]
    assert {error.code() for error in errors} <= {grpc.StatusCode.UNAVAILABLE}
    assert len(errors) + sum(isinstance(o, pb.ModelInferResponse) for o in outcomes) == 600
