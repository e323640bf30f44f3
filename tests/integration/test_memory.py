"""What readers who do not read can make the server hold: no more than it says."""

from __future__ import annotations

import contextlib
import itertools
import pathlib
import queue
import socket
import struct
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

import grpc
import numpy as np
import psutil
import pytest
from onnx import helper

from headrace.bench.transports import frames
from headrace.feedback.v1 import feedback_pb2
from headrace.inference.v2 import grpc_service_pb2 as pb
from headrace.stream.v1 import stream_pb2 as stream_pb
from support import models, server

METHOD = "/inference.GRPCInferenceService/ModelInfer"
STREAM = "/inference.GRPCInferenceService/ModelStreamInfer"
CONFIG = "/inference.GRPCInferenceService/ModelConfig"
SENSORS = "/headrace.stream.v1.SensorStream/Stream"
REPORT = "/headrace.feedback.v1.Feedback/Report"
LIMIT = 4 << 20
WIDTH = 1 << 16  # of an answer to one number: 256 KiB
CALLS = 800  # whose answers come to fifty times the limit
# Beside answers: threads, a batch's output and its copy, arenas, what gRPC has in its buffers.
GROWTH = 2 * LIMIT + (128 << 20)

native = server.ENGINE == "native" or server.FRONTS != "0"


@pytest.fixture
def folder(tmp_path: pathlib.Path) -> pathlib.Path:
    wide = models.build(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        [("x", "FP32", ["n", 1])],
        [("y", "FP32", ["n", WIDTH])],
        {"w": np.ones((1, WIDTH), np.float32)},
    )
    models.write(tmp_path / "models", "wide", wide, toml='instances = 1\npadding = "off"\n')
    return tmp_path


@pytest.fixture
def running(folder: pathlib.Path) -> Iterator[server.RunningServer]:
    limit = f"--max-inflight-bytes={LIMIT}"
    # gRPC itself logs a traceback where a connection breaks under a write, so the log is not read.
    with server.serving(folder / "log", folder / "models", limit, json_log=False) as up:
        yield up


def request() -> bytes:
    asked = pb.ModelInferRequest(model_name="wide", raw_input_contents=[b"\0\0\x80\x3f"])
    asked.inputs.add(name="x", datatype="FP32", shape=[1, 1])
    return asked.SerializeToString()


@contextlib.contextmanager
def asking(address: str, method: str, streams: int) -> Iterator[None]:
    """A connection with CALLS requests on so many HTTP/2 streams, on which the server may send no
    byte of an answer."""
    host, _, port = address.rpartition(":")
    headers = [(":method", "POST"), (":scheme", "http"), (":path", method)]
    headers += [(":authority", address), ("te", "trailers"), ("content-type", "application/grpc")]
    block, data = frames.request_block(headers), request()
    body = (struct.pack(">BI", 0, len(data)) + data) * (CALLS // streams)
    out = frames.PREFACE + frames.settings({frames.SETTING_WINDOW: 0})
    for stream in range(1, 2 * streams, 2):
        out += frames.frame(frames.HEADERS, frames.END_HEADERS, stream, block)
        for at in range(0, len(body), frames.FIRST_FRAME):
            part = body[at : at + frames.FIRST_FRAME]
            out += frames.frame(frames.DATA, 0, stream, part)
        out += frames.frame(frames.DATA, frames.END_STREAM, stream)
    with socket.create_connection((host, int(port))) as connection:
        connection.sendall(out)
        yield


# For requests; or for answers, where the others came in between.
NO_MEMORY = "out of memory for"
TOO_MANY_CALLS = "limit exceeded"  # gRPC's own words


def infer(channel: grpc.Channel, refusal: str = NO_MEMORY) -> grpc.StatusCode:
    method: Any = channel.unary_unary(METHOD)
    try:
        method(request(), timeout=server.PATIENCE)
    except grpc.RpcError as error:
        told: Any = error
        assert refusal in told.details()
        code: grpc.StatusCode = told.code()
        return code
    return grpc.StatusCode.OK


def until(channel: grpc.Channel, wanted: grpc.StatusCode, refusal: str = NO_MEMORY) -> None:
    end = time.monotonic() + server.PATIENCE
    while infer(channel, refusal) is not wanted:
        assert time.monotonic() < end
        time.sleep(0.01)


def send(channel: grpc.Channel, name: str, message: Any) -> grpc.StatusCode:
    method: Any = channel.unary_unary(name)
    with pytest.raises(grpc.RpcError) as caught:
        method(message.SerializeToString(), timeout=server.PATIENCE)
    error: Any = caught.value
    code: grpc.StatusCode = error.code()
    return code


@pytest.mark.skipif(native, reason="the native engine does not tell when an answer has left")
def test_answers_that_nobody_reads(running: server.RunningServer) -> None:
    """They are charged until gRPC has written them, and then nothing is left of them."""
    process = psutil.Process(running.process.pid)
    with grpc.insecure_channel(running.grpc) as channel:
        assert infer(channel) is grpc.StatusCode.OK
        before = process.memory_info().rss
        report = feedback_pb2.ReportRequest(model="wide")
        with asking(running.grpc, METHOD, CALLS):
            until(channel, grpc.StatusCode.RESOURCE_EXHAUSTED)
            assert process.memory_info().rss - before < GROWTH
            # Messages of other kinds are held to it too, but for the small ones of control.
            assert send(channel, REPORT, report) is grpc.StatusCode.RESOURCE_EXHAUSTED
            large = pb.ModelConfigRequest(name="no such model" * 10_000)
            assert send(channel, CONFIG, large) is grpc.StatusCode.RESOURCE_EXHAUSTED
            small = pb.ModelConfigRequest(name="no such model")
            assert send(channel, CONFIG, small) is grpc.StatusCode.NOT_FOUND
        until(channel, grpc.StatusCode.OK)
        assert send(channel, REPORT, report) is grpc.StatusCode.UNIMPLEMENTED


def test_answers_of_streams_that_nobody_reads(running: server.RunningServer) -> None:
    process = psutil.Process(running.process.pid)
    with grpc.insecure_channel(running.grpc) as channel:
        assert infer(channel) is grpc.StatusCode.OK
        before = process.memory_info().rss
        with asking(running.grpc, STREAM, 1):
            until(channel, grpc.StatusCode.RESOURCE_EXHAUSTED)
            assert process.memory_info().rss - before < GROWTH
        until(channel, grpc.StatusCode.OK)


@pytest.mark.skipif(native, reason="the native engine has no limit of all calls")
def test_calls_on_all_connections(folder: pathlib.Path) -> None:
    """So that what their messages can hold has a bound: beyond it none is read."""
    arguments = (folder / "models", "--max-calls=2")
    with server.serving(folder / "log", *arguments) as up, contextlib.ExitStack() as open_:
        channels = [open_.enter_context(grpc.insecure_channel(up.grpc)) for _ in range(3)]
        calls = []
        for channel in channels[:2]:
            stream: Any = channel.stream_stream(STREAM)
            asked: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
            asked.put(request())
            call = stream(iter(asked.get, None))
            next(call)
            calls.append((call, asked))
        unary: Any = channels[2].unary_unary(METHOD)
        with pytest.raises(grpc.RpcError) as caught:
            unary(request(), timeout=server.PATIENCE)
        error: Any = caught.value
        assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        for call, asked in calls:
            asked.put(None)
            assert list(call) == []
        # A call's end is told before it is counted.
        until(channels[2], grpc.StatusCode.OK, TOO_MANY_CALLS)


def test_results_of_a_session_that_nobody_reads(folder: pathlib.Path) -> None:
    """They are bounded over all sessions; what was not computed is, once they are read."""
    limit = 1 << 20
    arguments = (folder / "models", f"--max-stream-bytes={limit}")
    with (
        server.serving(folder / "log", *arguments) as up,
        grpc.insecure_channel(up.grpc) as channel,
    ):
        method: Any = channel.stream_stream(
            SENSORS, stream_pb.StreamRequest.SerializeToString, stream_pb.StreamResponse.FromString
        )
        asked: queue.SimpleQueue[stream_pb.StreamRequest | None] = queue.SimpleQueue()
        call = method(iter(asked.get, None))
        events = (event for response in call for event in response.events)
        signal = stream_pb.Signal(input="x")
        opening = stream_pb.Open(model="wide", window=1, sample_rate_hz=1.0, signals=[signal])
        asked.put(command(open=opening))
        asked.put(command(chunk=stream_pb.Chunk(data=[bytes(4)])))
        until_result(events)
        process = psutil.Process(up.process.pid)
        before = process.memory_info().rss
        asked.put(command(chunk=stream_pb.Chunk(sequence=1, data=[bytes(4 * CALLS)])))
        time.sleep(
            1.0
        )  # nothing tells that nothing more will come; too short would only be lenient
        assert process.memory_info().rss - before < GROWTH
        large = stream_pb.Chunk(sequence=1 + CALLS, data=[bytes(4 << 16)])
        asked.put(command(chunk=large))
        asked.put(command(close=stream_pb.Close()))
        rest = list(itertools.takewhile(lambda e: e.WhichOneof("event") != "closed", events))
        told = Counter(event.WhichOneof("event") for event in rest)
        assert (told["result"], told["gap"]) == (CALLS, 0)
        assert [e.error.reason for e in rest if e.HasField("error")] == ["STREAM_MEMORY"]
        asked.put(None)


def command(**kind: Any) -> stream_pb.StreamRequest:
    return stream_pb.StreamRequest(commands=[stream_pb.Command(handle=1, **kind)])


def until_result(events: Iterator[Any]) -> None:
    for event in events:
        assert event.WhichOneof("event") != "error", event
        if event.WhichOneof("event") == "result":
            return
