"""Who may do what, over a real connection: every way in asks the same guard."""

from __future__ import annotations

import hashlib
import pathlib
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Iterator
from typing import Any

import grpc
import numpy as np
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from headrace.client import TLS, ChannelOptions, Client, RetryPolicy
from headrace.inference.v2 import grpc_service_pb2 as pb
from headrace.stream.v1 import stream_pb2
from support import models, server
from support.certificates import Authority
from support.waiting import until

SERVICE = "/inference.GRPCInferenceService"
DENIED, UNKNOWN = grpc.StatusCode.PERMISSION_DENIED, grpc.StatusCode.UNAUTHENTICATED
IDENTITIES = """
[[identity]]
name = "{name}"
token_sha256 = "{digest}"
models = ["double"]
calls = ["infer", "stream", "read"]

[[identity]]
name = "operators"
token_sha256 = "{operators}"
certificate = "ops.example"
calls = ["read", "control"]
"""


def identities(token: str = "one") -> str:
    one, two = (hashlib.sha256(text.encode()).hexdigest() for text in (token, "two"))
    return IDENTITIES.format(name="sensors", digest=one, operators=two)


def bearer(token: str) -> list[tuple[str, str]]:
    return [("authorization", f"Bearer {token}")]


def infer(model: str) -> pb.ModelInferRequest:
    request = pb.ModelInferRequest(model_name=model, raw_input_contents=[b"\0\0\x80\x3f"])
    request.inputs.add(name="x", datatype="FP32", shape=[1, 1])
    return request


@pytest.fixture
def access(tmp_path: pathlib.Path) -> pathlib.Path:
    (tmp_path / "access.toml").write_text(identities())
    for name in ("double", "other"):
        models.write(tmp_path / "models", name, models.scaled(2))
    return tmp_path / "access.toml"


@pytest.fixture
def running(tmp_path: pathlib.Path, access: pathlib.Path) -> Iterator[server.RunningServer]:
    option = f"--access-file={access}"
    with server.serving(tmp_path / "log", tmp_path / "models", option) as up:
        yield up


@pytest.fixture
async def channel(running: server.RunningServer) -> AsyncIterator[grpc.aio.Channel]:
    async with grpc.aio.insecure_channel(running.grpc) as opened:
        yield opened


async def status(channel: grpc.aio.Channel, method: str, request: Any, token: str = "") -> Any:
    """The status of a unary call, and its message."""
    call: Any = channel.unary_unary(f"{SERVICE}/{method}", type(request).SerializeToString)
    try:
        await call(request, metadata=bearer(token) if token else None)
    except grpc.aio.AioRpcError as error:
        return error.code(), error.details()
    return grpc.StatusCode.OK, ""


async def test_inference_needs_a_token_that_allows_it(channel: grpc.aio.Channel) -> None:
    assert (await status(channel, "ModelInfer", infer("double"), "one"))[0] is grpc.StatusCode.OK
    assert (await status(channel, "ModelInfer", infer("double")))[0] is UNKNOWN
    assert (await status(channel, "ModelInfer", infer("double"), "three"))[0] is UNKNOWN
    assert (await status(channel, "ModelInfer", infer("double"), "two"))[0] is DENIED


async def test_a_model_that_there_is_not_is_refused_like_one_that_there_is(
    channel: grpc.aio.Channel,
) -> None:
    there = await status(channel, "ModelInfer", infer("other"), "one")
    not_there = await status(channel, "ModelInfer", infer("nothing"), "one")
    assert there == (DENIED, "infer of model 'other': not allowed for 'sensors'")
    assert not_there == (DENIED, "infer of model 'nothing': not allowed for 'sensors'")


@pytest.mark.parametrize(
    ("method", "request_", "sensors", "operators"),
    [
        ("ModelReady", pb.ModelReadyRequest(name="double"), True, True),
        ("ModelMetadata", pb.ModelMetadataRequest(name="other"), False, True),
        ("ModelConfig", pb.ModelConfigRequest(name="double"), True, True),
        ("ModelStatistics", pb.ModelStatisticsRequest(), False, True),
        ("RepositoryIndex", pb.RepositoryIndexRequest(), False, True),
        ("RepositoryModelLoad", pb.RepositoryModelLoadRequest(model_name="double"), False, True),
        ("RepositoryModelUnload", pb.RepositoryModelUnloadRequest(model_name="x"), False, None),
        ("LogSettings", pb.LogSettingsRequest(), False, True),
        ("ServerMetadata", pb.ServerMetadataRequest(), True, True),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
async def test_each_unary_method_asks(
    channel: grpc.aio.Channel, method: str, request_: Any, sensors: bool, operators: bool | None
) -> None:
    assert (await status(channel, method, request_))[0] is UNKNOWN
    found = (await status(channel, method, request_, "one"))[0]
    assert found is (grpc.StatusCode.OK if sensors else DENIED)
    found = (await status(channel, method, request_, "two"))[0]
    assert found is (grpc.StatusCode.NOT_FOUND if operators is None else grpc.StatusCode.OK)


async def test_health_is_open(running: server.RunningServer, channel: grpc.aio.Channel) -> None:
    for method, request in (
        ("ServerLive", pb.ServerLiveRequest()),
        ("ServerReady", pb.ServerReadyRequest()),
    ):
        assert (await status(channel, method, request))[0] is grpc.StatusCode.OK
    check = health_pb2_grpc.HealthStub(channel).Check
    assert (await check(health_pb2.HealthCheckRequest())).status == 1
    assert running.get("/v2/health/ready")[0] == 200


def test_http_asks_for_what_it_tells_of_models(running: server.RunningServer) -> None:
    def get(path: str, token: str) -> int:
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        request = urllib.request.Request(f"http://{running.http}{path}", headers=headers)
        try:
            with urllib.request.urlopen(request, timeout=server.PATIENCE) as response:
                return int(response.status)
        except urllib.error.HTTPError as error:
            return error.code

    assert [get("/metrics", token) for token in ("", "one", "two")] == [401, 403, 200]
    ready = "/v2/models/other/ready"
    assert [get(ready, token) for token in ("", "one", "two")] == [401, 403, 200]


def test_top_brings_its_token(running: server.RunningServer) -> None:
    def top(environment: dict[str, str]) -> tuple[int, str]:
        looked = server.run(
            "top", running.http, "--once", "--interval=0.05", environment=environment
        )
        return looked.returncode, looked.stdout + looked.stderr

    code, shown = top({"HEADRACE_TOKEN": "two"})
    assert code == 0
    assert "inference calls/s" in shown
    code, shown = top({})
    assert code == 1
    assert "Unauthorized" in shown


async def test_a_stream_is_refused_when_it_is_opened(channel: grpc.aio.Channel) -> None:
    for method in (f"{SERVICE}/ModelStreamInfer", "/headrace.stream.v1.SensorStream/Stream"):
        opened: Any = channel.stream_stream(method)
        for token, expected in (("", UNKNOWN), ("three", UNKNOWN), ("two", DENIED)):
            call = opened(metadata=bearer(token) if token else None)
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await call.read()
            assert caught.value.code() is expected


async def test_each_request_of_a_stream_asks_for_its_model(
    channel: grpc.aio.Channel, access: pathlib.Path
) -> None:
    opened: Any = channel.stream_stream(
        f"{SERVICE}/ModelStreamInfer",
        pb.ModelInferRequest.SerializeToString,
        pb.ModelStreamInferResponse.FromString,
    )
    call = opened(metadata=bearer("one"))

    async def error_of(model: str) -> str:
        await call.write(infer(model))
        return str((await call.read()).error_message)

    assert await error_of("double") == ""
    assert await error_of("other") == "stream of model 'other': not allowed for 'sensors'"
    access.write_text(identities("changed"))  # noqa: ASYNC240 (a few bytes)

    async def withdrawn() -> bool:
        return "an unknown token" in await error_of("double")

    await until(withdrawn)
    call.cancel()


async def test_a_sensor_session_asks_for_its_model(channel: grpc.aio.Channel) -> None:
    opened: Any = channel.stream_stream(
        "/headrace.stream.v1.SensorStream/Stream",
        stream_pb2.StreamRequest.SerializeToString,
        stream_pb2.StreamResponse.FromString,
    )
    call = opened(metadata=bearer("one"))
    request = stream_pb2.StreamRequest()
    request.commands.add(handle=1).open.model = "other"
    await call.write(request)
    (event,) = (await call.read()).events
    assert event.error.code == DENIED.value[0]
    assert event.error.message == "stream of model 'other': not allowed for 'sensors'"
    call.cancel()


async def test_a_token_is_taken_up_without_a_restart(
    channel: grpc.aio.Channel, access: pathlib.Path
) -> None:
    access.write_text(identities("renewed"))  # noqa: ASYNC240 (a few bytes)

    async def renewed() -> bool:
        found = await status(channel, "ModelInfer", infer("double"), "renewed")
        return found[0] is grpc.StatusCode.OK

    await until(renewed)
    assert (await status(channel, "ModelInfer", infer("double"), "one"))[0] is UNKNOWN


@pytest.mark.skipif(server.ENGINE == "native", reason="the native engine has no TLS")
def test_a_client_certificate_is_an_identity(tmp_path: pathlib.Path, access: pathlib.Path) -> None:
    authority = Authority()
    certificate, key = authority.write_server(tmp_path)
    (tmp_path / "ca.crt").write_bytes(authority.pem)
    options = (
        f"--access-file={access}",
        f"--tls-certificate={certificate}",
        f"--tls-key={key}",
        f"--tls-client-ca={tmp_path / 'ca.crt'}",
    )

    def client(tls: TLS) -> Client:
        return Client(up.grpc, channel=ChannelOptions(tls=tls), retry=RetryPolicy(max_attempts=1))

    with server.serving(tmp_path / "log", tmp_path / "models", *options) as up:
        with client(authority.client("someone", "ops.example")) as operator:
            assert {model.name for model in operator.repository_index()} == {"double", "other"}
        with client(authority.client("someone", "other.example")) as stranger:
            assert stranger.server_live()
            with pytest.raises(Exception, match="an unknown certificate"):
                stranger.repository_index()
            one = np.ones((1, 1), np.float32)
            headers = dict(bearer("one"))
            answer = stranger.infer("double", {"x": one}, headers=headers)
            assert answer["y"] == [[2]]
        channel = ChannelOptions(tls=authority.client("someone", "other.example"))
        with Client(up.grpc, channel=channel, token="two") as operator:
            assert len(operator.repository_index()) == 2


@pytest.mark.parametrize("allowed", [False, True])
async def test_control_beyond_loopback_is_off_unless_allowed(
    tmp_path: pathlib.Path, access: pathlib.Path, allowed: bool
) -> None:
    options = ("--host=0.0.0.0", f"--allow-control={allowed}")
    with server.serving(tmp_path / "log", tmp_path / "models", *options) as up:
        port = up.grpc.rpartition(":")[2]
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            change = pb.LogSettingsRequest()
            change.settings["log_info"].bool_param = True
            controls: list[tuple[str, Any]] = [
                ("RepositoryModelLoad", pb.RepositoryModelLoadRequest(model_name="double")),
                ("LogSettings", change),
                ("RepositoryModelUnload", pb.RepositoryModelUnloadRequest(model_name="double")),
            ]
            others: list[tuple[str, Any]] = [
                ("ModelInfer", infer("other")),
                ("LogSettings", pb.LogSettingsRequest()),
                ("RepositoryIndex", pb.RepositoryIndexRequest()),
            ]
            for method, request in controls:
                code, message = await status(channel, method, request)
                assert code is (grpc.StatusCode.OK if allowed else DENIED)
                assert allowed or "allow_control" in message
            for method, request in others:
                assert (await status(channel, method, request))[0] is grpc.StatusCode.OK
