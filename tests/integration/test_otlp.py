"""What a real OTLP receiver gets from a real server."""

from __future__ import annotations

import contextlib
import importlib.util
import itertools
import pathlib
import threading
from collections.abc import Iterator
from functools import partial
from typing import Any

import grpc
import numpy as np
import pytest

from headrace.client import Client
from headrace.inference.v2 import grpc_service_pb2 as pb
from headrace.inference.v2 import grpc_service_pb2_grpc as pb_grpc
from support import models, otlp, server
from support.otlp import Receiver
from support.server import RunningServer

METHOD = "inference.GRPCInferenceService/ModelInfer"
PARENT = ("0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331")
SAMPLED, UNSAMPLED = (f"00-{PARENT[0]}-{PARENT[1]}-{flags}" for flags in ("01", "00"))
TRACED, UNTRACED = (("traceparent", SAMPLED),), (("traceparent", UNSAMPLED),)
SERVER_KIND, ERROR = 2, 2
NATIVE = pytest.mark.skipif(
    importlib.util.find_spec("pygrpc_native") is None, reason="needs the extra 'fast'"
)
on_each_engine = pytest.mark.parametrize("engine", ["grpcio", pytest.param("native", marks=NATIVE)])


@contextlib.contextmanager
def serving(
    tmp_path: pathlib.Path,
    receiver: Receiver,
    protocol: str = "grpc",
    engine: str = server.ENGINE,
    **variables: str,
) -> Iterator[RunningServer]:
    models.write(tmp_path / "models", "lab", models.lab(), config="instance_group [{ count: 1 }]")
    environment = {
        "OTEL_EXPORTER_OTLP_ENDPOINT": receiver.grpc if protocol == "grpc" else receiver.http,
        "OTEL_EXPORTER_OTLP_PROTOCOL": protocol,
        "OTEL_BSP_SCHEDULE_DELAY": "50",
        "OTEL_METRIC_EXPORT_INTERVAL": "100",
        **variables,
    }
    log, folder = tmp_path / "log", tmp_path / "models"
    option = f"--rpc-engine={engine}"
    with server.serving(log, folder, option, environment=environment) as running:
        yield running


def request(index: int = 0, steps: int = 0) -> pb.ModelInferRequest:
    message = pb.ModelInferRequest(model_name="lab", id="r")
    tensors = (
        ("x", "FP32", np.ones((1, 1), np.float32)),
        ("steps", "INT64", np.array([steps])),
        ("index", "INT64", np.array([index])),
    )
    for name, datatype, array in tensors:
        message.inputs.add(name=name, datatype=datatype, shape=array.shape)
        message.raw_input_contents.append(array.tobytes())
    return message


@contextlib.contextmanager
def stub(running: RunningServer) -> Iterator[pb_grpc.GRPCInferenceServiceStub]:
    with grpc.insecure_channel(running.grpc) as channel:
        yield pb_grpc.GRPCInferenceServiceStub(channel)


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with otlp.receiving() as made:
        yield made


@on_each_engine
@pytest.mark.parametrize("protocol", ["grpc", "http/protobuf"])
def test_a_call_is_traced_from_its_caller_to_its_run(
    tmp_path: pathlib.Path, receiver: Receiver, protocol: str, engine: str
) -> None:
    with serving(tmp_path, receiver, protocol, engine, OTEL_SERVICE_NAME="lab-server") as running:
        with stub(running) as client:
            client.ModelInfer(request(), metadata=TRACED)
        receiver.until(lambda: len(receiver.spans) >= 4)
    (call,), (queue,) = receiver.named(METHOD), receiver.named("queue")
    (batch,), (run,) = receiver.named("batch"), receiver.named("executor")
    assert (call.trace_id, call.parent_id, call.kind) == (*PARENT, SERVER_KIND)
    assert (queue.trace_id, queue.parent_id) == (PARENT[0], call.span_id)
    assert (run.trace_id, run.parent_id) == (batch.trace_id, batch.span_id)
    assert batch.trace_id != call.trace_id
    assert batch.links == [(call.trace_id, call.span_id)]
    assert (batch.trace_id, batch.span_id) in call.links
    assert call.start <= queue.start <= queue.end <= batch.start <= run.start
    assert run.end <= batch.end <= call.end
    said = call.attributes
    assert said["rpc.response.status_code"] == "OK"
    assert (said["headrace.model.name"], said["headrace.model.version"]) == ("lab", "1")
    assert (said["headrace.batch.rows"], said["headrace.batch.requests"]) == (1, 1)
    assert said["headrace.batch.reason"]
    assert said["headrace.batch.actual_seconds"] > 0
    assert "steps INT64[]" in said["headrace.batch.key"]
    assert "headrace.error.reason" not in said
    assert said["headrace.batch.executor"] == run.attributes["headrace.executor"]
    assert call.resource["service.name"] == "lab-server"


@on_each_engine
def test_a_batch_is_linked_with_each_of_its_requests(
    tmp_path: pathlib.Path, receiver: Receiver, engine: str
) -> None:
    with serving(tmp_path, receiver, engine=engine) as running:
        with stub(running) as client:
            # While the first runs the others gather.
            blocker = client.ModelInfer.future(request(steps=models.ENDLESS), metadata=UNTRACED)
            _until_metric(running, "headrace_executors_busy", 1)
            waiting = [client.ModelInfer.future(request()) for _ in range(3)]
            _until_metric(running, "headrace_queue_requests", 3)
            blocker.cancel()
            for each in waiting:
                each.result()
        receiver.until(lambda: len(receiver.named(METHOD)) >= 3)
    calls, batches = receiver.named(METHOD), receiver.named("batch")
    assert len(calls) == len(receiver.named("queue")) == 3
    members = {link for batch in batches for link in batch.links}
    assert members == {(call.trace_id, call.span_id) for call in calls}
    assert sum(batch.attributes["headrace.batch.rows"] for batch in batches) == 3
    for call in calls:
        assert set(call.links) <= {(batch.trace_id, batch.span_id) for batch in batches}
        assert len(call.links) == 1


def _until_metric(running: RunningServer, name: str, value: int) -> None:
    wanted = f'{name}{{model="lab",version="1"}} {float(value)}'
    waited = threading.Event()
    for _ in range(2000):
        if wanted in running.get("/metrics")[1]:
            return
        waited.wait(0.005)
    raise AssertionError(wanted)


@on_each_engine
def test_callers_decide_and_a_share_of_the_rest(
    tmp_path: pathlib.Path, receiver: Receiver, engine: str
) -> None:
    none = {"OTEL_TRACES_SAMPLER": "parentbased_traceidratio", "OTEL_TRACES_SAMPLER_ARG": "0"}
    with serving(tmp_path, receiver, engine=engine, **none) as running, stub(running) as client:
        for parent in (UNSAMPLED, "", "00-nonsense-01"):
            metadata = (("traceparent", parent),) if parent else ()
            client.ModelInfer(request(), metadata=metadata)
        client.ModelInfer(request(), metadata=TRACED)
        client.ModelInfer(request(), metadata=UNTRACED)
    assert [span.trace_id for span in receiver.named(METHOD)] == [PARENT[0]]
    assert len(receiver.named("batch")) == 1


@on_each_engine
def test_what_failed_says_so(tmp_path: pathlib.Path, receiver: Receiver, engine: str) -> None:
    with serving(tmp_path, receiver, engine=engine) as running:
        with stub(running) as client:
            for wrong in (request(index=99), pb.ModelInferRequest(model_name="nobody")):
                with pytest.raises(grpc.RpcError):
                    client.ModelInfer(wrong)
        receiver.until(lambda: len(receiver.named(METHOD)) == 2)
    by_status = {
        span.attributes["rpc.response.status_code"]: span
        for span in receiver.spans
        if span.name == METHOD
    }
    reasons = {s: span.attributes["headrace.error.reason"] for s, span in by_status.items()}
    assert reasons == {"INTERNAL": "EXECUTION_FAILED", "NOT_FOUND": "MODEL_NOT_FOUND"}
    assert by_status["INTERNAL"].status == ERROR
    assert by_status["NOT_FOUND"].status != ERROR  # the caller's fault, not the server's
    assert "headrace.model.name" not in by_status["NOT_FOUND"].attributes
    (batch,) = receiver.named("batch")
    assert batch.status == ERROR


@on_each_engine
def test_a_caller_who_leaves_has_a_queue_span(
    tmp_path: pathlib.Path, receiver: Receiver, engine: str
) -> None:
    with serving(tmp_path, receiver, engine=engine) as running, stub(running) as client:
        blocker = client.ModelInfer.future(request(steps=models.ENDLESS), metadata=UNTRACED)
        _until_metric(running, "headrace_executors_busy", 1)
        leaving = client.ModelInfer.future(request())
        _until_metric(running, "headrace_queue_requests", 1)
        leaving.cancel()
        _until_metric(running, "headrace_queue_requests", 0)
        blocker.cancel()
        receiver.until(lambda: len(receiver.named(METHOD)) == 1)
    (queue,), (call,) = receiver.named("queue"), receiver.named(METHOD)
    assert queue.attributes["headrace.queue.outcome"] == "cancelled"
    assert call.attributes["rpc.response.status_code"] == "CANCELLED"


@pytest.mark.parametrize("protocol", ["grpc", "http/protobuf"])
@pytest.mark.parametrize("exponential", [False, True])
def test_metrics_are_sent(
    tmp_path: pathlib.Path, receiver: Receiver, protocol: str, exponential: bool
) -> None:
    kind = "base2_exponential_bucket_histogram" if exponential else "explicit_bucket_histogram"
    name = "OTEL_EXPORTER_OTLP_METRICS_DEFAULT_HISTOGRAM_AGGREGATION"
    with serving(tmp_path, receiver, protocol, **{name: kind}) as running:
        with stub(running) as client:
            for _ in range(3):
                client.ModelInfer(request())
        labels = {"model": "lab", "version": "1", "outcome": "answered"}
        receiver.until(
            lambda: any(
                said == labels and point.as_int == 3
                for said, point in receiver.points("headrace.requests")
            )
        )
    ((said, point),) = [
        (said, point)
        for said, point in receiver.points("rpc.server.call.duration")
        if said["rpc.method"] == METHOD
    ]
    assert (said["model"], said["version"], said["rpc.response.status_code"]) == ("lab", "1", "OK")
    assert point.count == 3
    if exponential:
        assert point.scale == 2
        assert sum(point.positive.bucket_counts) == 3
        # The mean lies within the buckets that have counts.
        places = [i for i, n in enumerate(point.positive.bucket_counts) if n]
        base = 2**2**-point.scale
        low, high = (base ** (point.positive.offset + i) for i in (places[0], places[-1] + 1))
        assert low < point.sum / 3 <= high
    else:
        assert sum(point.bucket_counts) == 3
        assert 0.005 in list(point.explicit_bounds)
    assert receiver.points("process.memory.usage")[0][1].as_int > 0
    assert receiver.points("headrace.queue.duration")


def _series(receiver: Receiver) -> dict[Any, list[tuple[int, int, float]]]:
    """Of each series of a sum or histogram, in the order of the messages: when it began, when the
    point is of, and its value or count."""
    found: dict[Any, list[tuple[int, int, float]]] = {}
    metrics = [
        metric
        for message in receiver.metrics
        for metric in message.resource_metrics[0].scope_metrics[0].metrics
    ]
    for metric in metrics:
        kind = str(metric.WhichOneof("data"))
        points = [] if kind == "gauge" else getattr(metric, kind).data_points
        for point in points:
            labels = frozenset((pair.key, pair.value.string_value) for pair in point.attributes)
            value = float(point.as_double or point.as_int if kind == "sum" else point.count)
            times = point.start_time_unix_nano, point.time_unix_nano
            found.setdefault((metric.name, labels), []).append((*times, value))
    return found


def test_a_counter_that_begins_anew_says_so(tmp_path: pathlib.Path, receiver: Receiver) -> None:
    """By a start time of its own, whether a version was reloaded or went and came back."""
    labels = {"model": "lab", "version": "1", "outcome": "answered"}
    answered = ("headrace.requests", frozenset(labels.items()))

    def reached(count: int) -> bool:
        points = _series(receiver).get(answered)
        return points is not None and points[-1][2] == count

    def more_than(messages: int) -> bool:
        return len(receiver.metrics) > messages

    with serving(tmp_path, receiver) as running, stub(running) as client:
        load = pb.RepositoryModelLoadRequest(model_name="lab")
        for count in (5, 2, 3):
            for _ in range(count):
                client.ModelInfer(request())
            receiver.until(partial(reached, count))
            if count == 2:  # the second time it goes, is seen to be gone, and comes back
                client.RepositoryModelUnload(pb.RepositoryModelUnloadRequest(model_name="lab"))
                receiver.until(partial(more_than, len(receiver.metrics) + 1))
            client.RepositoryModelLoad(load)
        receiver.until(partial(more_than, len(receiver.metrics) + 1))
    series = _series(receiver)
    assert len({began for began, _, _ in series[answered]}) >= 3
    for points in series.values():
        for before, after in itertools.pairwise(points):
            assert after[0] == before[0] or before[1] <= after[0] < after[1]
            assert before[1] < after[1]
            if before[0] == after[0]:
                assert before[2] <= after[2]
    (calls,) = [
        points
        for (name, said), points in series.items()
        if name == "rpc.server.call.duration" and {("rpc.method", METHOD), ("version", "1")} <= said
    ]
    assert len({began for began, _, _ in calls}) == 2  # a reload does not touch calls
    assert max(value for _, _, value in calls) == 7


def test_a_receiver_that_is_away_holds_nobody_up(tmp_path: pathlib.Path) -> None:
    away = Receiver(grpc="http://127.0.0.1:1")
    with serving(tmp_path, away) as running, Client(running.grpc) as client:
        zero = np.zeros(1, np.int64)
        inputs: dict[str, Any] = {"x": np.ones((1, 1), np.float32), "steps": zero, "index": zero}
        assert client.infer("lab", inputs)["picked"][0] == 100


def test_what_cannot_be_had_is_said_and_nothing_else(tmp_path: pathlib.Path) -> None:
    away = Receiver(grpc="http://127.0.0.1:1")
    with serving(tmp_path, away, OTEL_TRACES_SAMPLER="sometimes") as running:
        assert running.get("/v2/health/ready")[0] == 200
        (line,) = [r for r in running.log() if "OpenTelemetry" in r["message"]]
        assert "OTEL_TRACES_SAMPLER" in line["message"]
        assert "'sometimes'" in line["message"]


def change(
    client: pb_grpc.GRPCInferenceServiceStub, model: str = "", **settings: str
) -> dict[str, str]:
    """What TraceSetting says, asked to change `settings`; empty ones have no value."""
    message = pb.TraceSettingRequest(model_name=model)
    for key, value in settings.items():
        message.settings[key].value.extend([value] if value else [])
    found = client.TraceSetting(message).settings
    return {key: found[key].value[0] for key in ("trace_level", "trace_rate", "trace_count")}


def test_sampling_is_changed_while_the_server_runs(
    tmp_path: pathlib.Path, receiver: Receiver
) -> None:
    share = {"OTEL_TRACES_SAMPLER": "parentbased_traceidratio", "OTEL_TRACES_SAMPLER_ARG": "0.001"}
    start = {"trace_level": "TIMESTAMPS", "trace_rate": "1000", "trace_count": "-1"}
    with serving(tmp_path, receiver, **share) as running, stub(running) as client:
        assert change(client) == start
        assert change(client, trace_level="OFF") == start | {"trace_level": "OFF"}
        client.ModelInfer(request(), metadata=TRACED)
        own = change(client, "lab", trace_level="TIMESTAMPS", trace_rate="1", trace_count="2")
        assert own == {"trace_level": "TIMESTAMPS", "trace_rate": "1", "trace_count": "2"}
        for _ in range(4):
            client.ModelInfer(request())
        assert change(client, "lab")["trace_count"] == "0"
        cleared = change(client, "lab", trace_level="", trace_rate="", trace_count="")
        assert cleared == change(client)
        assert change(client, trace_level="") == start
    assert len(receiver.named(METHOD)) == 2
