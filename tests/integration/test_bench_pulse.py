"""Small calls beside a load: evenly spaced, counted from when they were due, and ended with it."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import grpc
import pytest

from headrace.bench.errors import BenchError
from headrace.bench.pulse import Pulse
from headrace.bench.results import Distribution
from headrace.bench.run import measure
from headrace.bench.spec import ClosedLoad, Job, RequestSpec, Target
from headrace.inference.v2 import grpc_service_pb2 as pb
from headrace.inference.v2 import grpc_service_pb2_grpc as rpc
from support import models, server

PAUSE = 0.4
EVERY, SECONDS, CALLS = 0.01, 1.0, 100


class Live(rpc.GRPCInferenceServiceServicer):
    """Pauses at its 20th call, once."""

    count = 0

    def ServerLive(self, request: Any, context: Any) -> pb.ServerLiveResponse:
        self.count += 1
        if self.count == 20:
            time.sleep(PAUSE)
        return pb.ServerLiveResponse(live=True)


@contextmanager
def grpc_server(*, knows: bool = True) -> Iterator[Target]:
    serving = grpc.server(ThreadPoolExecutor(1))
    if knows:
        live = Live()  # type: ignore[abstract]
        rpc.add_GRPCInferenceServiceServicer_to_server(live, serving)
    port = serving.add_insecure_port("127.0.0.1:0")
    serving.start()
    try:
        yield Target(address=f"127.0.0.1:{port}")
    finally:
        serving.stop(None).wait()


@contextmanager
def http_server() -> Iterator[Target]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        count = 0

        def do_GET(self) -> None:
            Handler.count += 1
            if Handler.count == 20:
                time.sleep(PAUSE)
            self.send_response(200 if self.path == "/alive" else 404)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Says nothing."""

    serving = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=serving.serve_forever).start()
    try:
        address = f"http://127.0.0.1:{serving.server_port}"
        yield Target(address=address, protocol="http", about={"ready": "/alive"})
    finally:
        serving.shutdown()
        serving.server_close()


def beside(target: Target) -> Distribution | None:
    with Pulse(target, EVERY) as pulse:
        pulse.begin(time.monotonic() + 0.05, SECONDS)
        return pulse.found()


@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_calls_held_up_by_a_pause_count_from_when_they_were_due(protocol: str) -> None:
    with grpc_server() if protocol == "grpc" else http_server() as target:
        found = beside(target)
    assert found is not None
    assert found.count == CALLS
    assert found.max_ms >= PAUSE * 1e3
    # 40 of 100 were due while the server paused: one in ten of all waited for most of that.
    assert found.p90_ms > PAUSE * 1e3 / 2


def test_nobody_is_there() -> None:
    with pytest.raises(BenchError, match=r"small calls beside the load: http://127\.0\.0\.1:1"):
        Pulse(Target(address="http://127.0.0.1:1", protocol="http"), EVERY)


def test_a_server_that_does_not_know_the_call() -> None:
    with (
        grpc_server(knows=False) as target,
        pytest.raises(BenchError, match="UNIMPLEMENTED"),
    ):
        Pulse(target, EVERY)


def test_a_process_that_dies_is_an_error() -> None:
    with grpc_server() as target, Pulse(target, EVERY) as pulse:
        pulse._process.kill()
        with pytest.raises(BenchError, match="ended unexpectedly"):
            pulse.found()


def test_beside_the_real_server(tmp_path: Any) -> None:
    models.write(tmp_path / "models", "double", models.scaled(2.0))
    with server.serving(tmp_path / "server.log", tmp_path / "models") as up:
        found = measure(
            Job(
                target=Target(address=up.grpc),
                load=ClosedLoad(callers=2),
                requests=(RequestSpec(model="double"),),
                duration=SECONDS,
                warm_up=0,
                pulse=EVERY,
            )
        )
    assert found.ok > 0
    assert found.pulse is not None
    assert found.pulse.count == CALLS
