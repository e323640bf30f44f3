"""Metrics of a real server, held against what ModelStatistics says and what was sent."""

from __future__ import annotations

import asyncio
import pathlib
from collections import Counter
from collections.abc import Iterator
from typing import Any

import grpc
import numpy as np
import pytest
from prometheus_client.parser import text_string_to_metric_families

from headrace.client import Client
from headrace.client.errors import InferenceFailed, InvalidInput, ModelNotFound
from headrace.inference.v2 import grpc_service_pb2 as pb
from headrace.inference.v2 import grpc_service_pb2_grpc as pb_grpc
from support import models, server
from support.server import RunningServer
from support.waiting import until

LAB = {"model": "lab", "version": "1"}


class Scrape:
    """One reading of /metrics."""

    def __init__(self, running: RunningServer) -> None:
        status, text = running.get("/metrics")
        assert status == 200
        self.samples = [s for f in text_string_to_metric_families(text) for s in f.samples]

    def value(self, name: str, **labels: str) -> float:
        """The only sample of `name` with these labels among its own."""
        found = [
            s.value for s in self.samples if s.name == name and labels.items() <= s.labels.items()
        ]
        assert len(found) == 1, (name, labels, found)
        return found[0]

    def total(self, name: str, **labels: str) -> float:
        return sum(
            s.value for s in self.samples if s.name == name and labels.items() <= s.labels.items()
        )

    def labels(self, name: str, key: str) -> set[str]:
        return {s.labels[key] for s in self.samples if s.name == name}


def lab(index: int = 0, rows: int = 1, steps: int = 0) -> dict[str, Any]:
    return {
        "x": np.ones((rows, 1), np.float32),
        "steps": np.full(rows, steps),
        "index": np.full(rows, index),
    }


@pytest.fixture
def folder(tmp_path: pathlib.Path) -> pathlib.Path:
    models.write(tmp_path / "models", "lab", models.lab(), config="instance_group [{ count: 1 }]")
    return tmp_path / "models"


def drive(running: RunningServer) -> Any:
    """Answers, failures and refusals; then ModelStatistics of `lab`."""
    with Client(running.grpc) as client:
        for rows in (1, 2, 2, 5):
            client.infer("lab", lab(rows=rows))
        for _ in range(3):
            with pytest.raises(InferenceFailed):
                client.infer("lab", lab(index=99))
        for name in ("guess", "lab\n", "x" * 1000):
            with pytest.raises(ModelNotFound):
                client.infer(name, lab())
        with pytest.raises(InvalidInput):
            client.infer("lab", {"x": np.ones((1, 1), np.float32)})
        client.model_metadata("lab")
    with grpc.insecure_channel(running.grpc) as channel:
        stub = pb_grpc.GRPCInferenceServiceStub(channel)
        (found,) = stub.ModelStatistics(pb.ModelStatisticsRequest(name="lab")).model_stats
    return found


def test_statistics_and_metrics_agree_to_the_unit(
    tmp_path: pathlib.Path, folder: pathlib.Path
) -> None:
    with server.serving(tmp_path / "log", folder, "--triton-metrics=true") as running:
        said, scrape = drive(running), Scrape(running)
    stats = said.inference_stats
    assert (stats.success.count, stats.fail.count) == (4, 3)
    assert scrape.value("headrace_requests_total", **LAB, outcome="answered") == 4
    assert scrape.value("headrace_requests_total", **LAB, outcome="model failed") == 3
    assert scrape.value("headrace_queue_duration_seconds_count", **LAB) == stats.queue.count == 4
    assert scrape.value("headrace_rows_total", **LAB) == said.inference_count == 10
    assert scrape.value("headrace_batch_rows_count", **LAB) == said.execution_count == 4
    assert scrape.value("headrace_batch_rows_sum", **LAB) == 10
    sizes = {batch.batch_size: batch.compute_infer.count for batch in said.batch_stats}
    assert sizes == {1: 1, 2: 2, 5: 1}
    phases = {
        "total": stats.success,
        "queue": stats.queue,
        "compute_input": stats.compute_input,
        "compute_infer": stats.compute_infer,
        "compute_output": stats.compute_output,
    }
    for phase, duration in phases.items():
        seconds = scrape.value("headrace_request_time_seconds_total", **LAB, phase=phase)
        assert int(seconds * 1e9) == duration.ns, phase
    triton = {
        "request_success": stats.success.count,
        "count": said.inference_count,
        "exec_count": said.execution_count,
        "request_duration_us": stats.success.ns // 1000,
        "queue_duration_us": stats.queue.ns // 1000,
        "compute_infer_duration_us": stats.compute_infer.ns // 1000,
        "pending_request_count": 0,
    }
    for name, value in triton.items():
        assert abs(scrape.value(f"nv_inference_{name}", **LAB) - value) <= 1, name
    assert scrape.value("nv_inference_request_failure", **LAB, reason="BACKEND") == 3
    assert scrape.value("nv_inference_request_failure", **LAB, reason="REJECTED") == 0


def test_calls_by_method_model_version_and_status(
    tmp_path: pathlib.Path, folder: pathlib.Path
) -> None:
    with server.serving(tmp_path / "log", folder) as running:
        drive(running)
        scrape = Scrape(running)

    def calls(method: str, status: str, **labels: str) -> float:
        name = f"inference.GRPCInferenceService/{method}"
        found = {"rpc_method": name, "rpc_response_status_code": status, **labels}
        return scrape.value("rpc_server_call_duration_seconds_count", **found)

    assert calls("ModelInfer", "OK", **LAB) == 4
    assert calls("ModelInfer", "INTERNAL", **LAB) == 3
    assert calls("ModelInfer", "INVALID_ARGUMENT", **LAB) == 1
    assert calls("ModelInfer", "NOT_FOUND", model="", version="") == 3
    assert calls("ModelMetadata", "OK", model="", version="") == 1
    assert scrape.labels("rpc_server_call_duration_seconds_count", "model") == {"", "lab"}
    inferred = scrape.total(
        "rpc_server_call_duration_seconds_bucket",
        rpc_method="inference.GRPCInferenceService/ModelInfer",
        le="+Inf",
    )
    assert inferred == scrape.total("headrace_calls_total") == 11
    assert not [s for s in scrape.samples if s.name.startswith("nv_")]


def test_streams_are_calls_with_the_status_they_end_with(
    tmp_path: pathlib.Path, folder: pathlib.Path
) -> None:
    def requests(*indices: int) -> Iterator[pb.ModelInferRequest]:
        for index in indices:
            message = pb.ModelInferRequest(model_name="lab")
            for name, array in lab(index).items():
                datatype = "FP32" if name == "x" else "INT64"
                message.inputs.add(name=name, datatype=datatype, shape=array.shape)
                message.raw_input_contents.append(array.tobytes())
            yield message

    strict = (("triton_grpc_error", "true"),)
    with (
        server.serving(tmp_path / "log", folder) as running,
        grpc.insecure_channel(running.grpc) as channel,
    ):
        stub = pb_grpc.GRPCInferenceServiceStub(channel)
        assert len(list(stub.ModelStreamInfer(requests(0, 99, 0)))) == 3
        with pytest.raises(grpc.RpcError):
            list(stub.ModelStreamInfer(requests(99), metadata=strict))
        name = "rpc_server_call_duration_seconds_count"
        which = {"rpc_method": "inference.GRPCInferenceService/ModelStreamInfer"}
        # Its caller knows how a stream ended before it has ended here.
        while (scrape := Scrape(running)).total(name, **which) < 2:
            pass
    assert scrape.value(name, **which, rpc_response_status_code="OK") == 1
    assert scrape.value(name, **which, rpc_response_status_code="INTERNAL") == 1
    assert scrape.value("headrace_requests_total", **LAB, outcome="answered") == 2


def test_a_line_for_each_call_where_wished(tmp_path: pathlib.Path, folder: pathlib.Path) -> None:
    with server.serving(tmp_path / "log", folder, "--access-log=true") as running:
        drive(running)
        found = [r for r in running.log() if r["logger"] == "headrace.access"]
    infer = [r for r in found if r["method"].endswith("/ModelInfer")]
    assert [r["status"] for r in infer].count("OK") == 4
    assert {(r["model"], r["version"]) for r in infer if r["status"] == "OK"} == {("lab", "1")}
    assert all(r["seconds"] > 0 and r["caller"] for r in infer)
    answered = [r for r in infer if r["status"] == "OK"]
    assert all(0 <= r["queue_seconds"] < r["seconds"] and "reason" not in r for r in answered)
    failed = [r for r in infer if r["status"] != "OK"]
    assert failed
    assert all(r["reason"] and "queue_seconds" not in r for r in failed)


def test_off_counts_how_calls_end_and_no_more(tmp_path: pathlib.Path, folder: pathlib.Path) -> None:
    with server.serving(tmp_path / "log", folder, "--telemetry=off") as running:
        said, scrape = drive(running), Scrape(running)
    assert said.inference_count == 0
    assert scrape.value("headrace_calls_total", reason="OK") == 4
    assert scrape.value("headrace_rows_total", **LAB) == 0


def test_top_shows_the_models(tmp_path: pathlib.Path, folder: pathlib.Path) -> None:
    with server.serving(tmp_path / "log", folder) as running:
        drive(running)
        wide = {"COLUMNS": "200"}
        shown = server.run("top", running.http, "--once", "--interval=0.1", environment=wide)
    assert (shown.returncode, shown.stderr) == (0, "")
    assert "lab 1" in shown.stdout
    assert "rows/" in shown.stdout


def message(index: int = 0, rows: int = 1, steps: int = 0) -> pb.ModelInferRequest:
    asked = pb.ModelInferRequest(model_name="lab")
    for name, array in lab(index, rows, steps).items():
        asked.inputs.add(name=name, datatype=_DATATYPES[array.dtype.char], shape=array.shape)
        asked.raw_input_contents.append(array.tobytes())
    return asked


_DATATYPES = {"f": "FP32", "l": "INT64", "q": "INT64"}


async def storm(stub: Any, running: RunningServer) -> Counter[str]:
    """Hundreds of calls at once: some are answered, and some fail in each way there is. Statuses of
    the calls as their callers saw them."""
    blocker = stub.ModelInfer(message(steps=models.ENDLESS))

    async def alone() -> bool:
        """Whoever came into its batch would wait for ever."""
        return Scrape(running).value("headrace_executors_busy", **LAB) == 1

    await until(alone)
    calls: list[Any] = []
    for number in range(300):
        kind = number % 10
        timeout = 0.002 if kind == 7 else None
        calls.append(
            stub.ModelInfer(message(99 if kind == 8 else 0, 1 + number % 3), timeout=timeout)
        )
        if kind == 9:
            await asyncio.sleep(0)
            calls[-1].cancel()
        if number == 150:
            blocker.cancel()
            await asyncio.sleep(0.05)
    ended: Counter[str] = Counter()
    for call in (blocker, *calls):
        try:
            await call
        except grpc.aio.AioRpcError as error:
            ended[error.code().name] += 1
        except asyncio.CancelledError:
            ended["CANCELLED"] += 1
        else:
            ended["OK"] += 1
    return ended


async def test_statistics_and_metrics_agree_under_load(tmp_path: pathlib.Path) -> None:
    """Whatever became of the requests: answers, refusals, failures, deadlines, callers who left."""
    toml = "instances = 1\nmax_batch_size = 8\nmax_queued_requests = 60\n"
    models.write(tmp_path / "models", "lab", models.lab(), toml=toml)
    with server.serving(tmp_path / "log", tmp_path / "models") as running:
        async with grpc.aio.insecure_channel(running.grpc) as channel:
            stub: Any = pb_grpc.GRPCInferenceServiceStub(channel)
            ended = await storm(stub, running)

            async def settled() -> bool:
                """A caller who has left knows it before the server does."""
                now = Scrape(running)
                waiting = now.value("headrace_queue_requests", **LAB)
                return waiting == now.value("headrace_executors_busy", **LAB) == 0

            await until(settled)
            asked = pb.ModelStatisticsRequest(name="lab")
            (said,) = (await stub.ModelStatistics(asked)).model_stats
        scrape = Scrape(running)
    assert ended["OK"] > 30
    assert {"RESOURCE_EXHAUSTED", "INTERNAL", "CANCELLED"} <= set(ended), ended
    stats = said.inference_stats
    outcomes = {
        s.labels["outcome"]: s.value for s in scrape.samples if s.name == "headrace_requests_total"
    }
    assert stats.success.count == outcomes.pop("answered") >= ended["OK"]
    assert stats.fail.count == sum(outcomes.values())
    assert outcomes["model failed"] >= ended["INTERNAL"] > 0
    assert outcomes["queue full"] >= ended["RESOURCE_EXHAUSTED"] > 0
    assert said.inference_count == scrape.value("headrace_rows_total", **LAB)
    assert said.execution_count == scrape.value("headrace_batch_rows_count", **LAB)
    sizes = {batch.batch_size: batch.compute_infer.count for batch in said.batch_stats}
    assert sum(sizes.values()) == said.execution_count
    assert sum(size * n for size, n in sizes.items()) == scrape.value(
        "headrace_batch_rows_sum", **LAB
    )
    for phase, duration in {
        "total": stats.success,
        "queue": stats.queue,
        "compute_input": stats.compute_input,
        "compute_infer": stats.compute_infer,
        "compute_output": stats.compute_output,
    }.items():
        seconds = scrape.value("headrace_request_time_seconds_total", **LAB, phase=phase)
        assert (int(seconds * 1e9), duration.count) == (duration.ns, stats.success.count), phase
    # Each call ended once, and the calls are the requests, but for those that came too late.
    calls = scrape.total(
        "rpc_server_call_duration_seconds_count",
        rpc_method="inference.GRPCInferenceService/ModelInfer",
    )
    late = scrape.total("headrace_calls_total", reason="EXPIRED_ON_ARRIVAL")
    assert stats.success.count + stats.fail.count + late == calls <= 301
