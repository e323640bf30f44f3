"""Hostile requests over a real connection: each gets the right status, and the one beside it its
answer."""

from __future__ import annotations

import asyncio
import pathlib
import socket
import struct
from collections.abc import AsyncIterator, Iterator
from typing import Any

import grpc
import numpy as np
import psutil
import pytest
from onnx import helper

from headrace.inference.v2 import grpc_service_pb2 as pb
from support import models, server

METHOD = "/inference.GRPCInferenceService/ModelInfer"
STREAM = "/inference.GRPCInferenceService/ModelStreamInfer"
INVALID = grpc.StatusCode.INVALID_ARGUMENT
LIMIT = 4 << 20
HUGE = 2**62
# What a process may grow by over the corpus, many times: far less than one of the sizes it claims.
GROWTH = 64 << 20


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[server.RunningServer]:
    folder = tmp_path_factory.mktemp("hostile")
    models.write(folder / "models", "double", models.scaled(2))
    text = models.build(
        [helper.make_node("Identity", ["x"], ["y"])],
        [("x", "BYTES", ["n", 2])],
        [("y", "BYTES", ["n", 2])],
    )
    models.write(folder / "models", "text", text)
    lab = "max_batch_size = 1\ninstances = 1\n"
    models.write(folder / "models", "lab", models.lab(), toml=lab)
    limits = (
        f"--max-message-bytes={LIMIT}",
        "--max-caller-calls=50",
        "--max-caller-streams=2",
    )
    with server.serving(folder / "log", folder / "models", *limits) as up:
        yield up


@pytest.fixture
async def channel(running: server.RunningServer) -> AsyncIterator[grpc.aio.Channel]:
    async with grpc.aio.insecure_channel(running.grpc) as opened:
        yield opened


def message(
    shape: Any = (1, 1),
    raw: bytes | None = b"\0\0\x80\x3f",
    datatype: str = "FP32",
    model: str = "double",
) -> pb.ModelInferRequest:
    asked = pb.ModelInferRequest(model_name=model)
    asked.inputs.add(name="x", datatype=datatype, shape=shape)
    if raw is not None:
        asked.raw_input_contents.append(raw)
    return asked


def text(*lengths: int, raw: bytes = b"") -> bytes:
    """To the model of text: two elements of the lengths said, of which there is `raw`."""
    prefixed = b"".join(struct.pack("<I", length) for length in lengths)
    return message((1, 2), prefixed + raw, "BYTES", "text").SerializeToString()


def many_parameters(of: str) -> bytes:
    asked = message()
    holder: Any = {"request": asked, "input": asked.inputs[0]}[of]
    for number in range(10_000):
        holder.parameters[f"p{number}"].int64_param = number
    return asked.SerializeToString()


def typed(**contents: Any) -> bytes:
    asked = message((1, 1), None)
    asked.inputs[0].contents.CopyFrom(pb.InferTensorContents(**contents))
    return asked.SerializeToString()


def twice(asked: pb.ModelInferRequest) -> bytes:
    asked.inputs.add().CopyFrom(asked.inputs[0])
    asked.raw_input_contents.append(asked.raw_input_contents[0])
    return asked.SerializeToString()


WHOLE = message().SerializeToString()
CORPUS: dict[str, tuple[bytes, str]] = {
    "truncated": (WHOLE[:-3], "cannot be parsed"),
    "nothing but ones": (b"\xff" * 64, "cannot be parsed"),
    "a length beyond the end": (b"\x0a\xff\xff\xff\xff\x07x", "cannot be parsed"),
    "invalid UTF-8 in the model's name": (b"\x0a\x02\xc3\x28", "cannot be parsed"),
    "invalid UTF-8 in the id": (WHOLE + b"\x1a\x02\xc3\x28", "cannot be parsed"),
    "seventy thousand empty tensors": (b"\x2a\x00" * 70_000, "at most 65536 fields"),
    "two thousand empty tensors": (b"\x2a\x00" * 2_000, "inputs: expected at most 1024 tensors"),
    "a huge dimension": (message((HUGE, 1)).SerializeToString(), "at most 268435456 elements"),
    "a huge dimension beside none": (
        message((HUGE, 0), b"").SerializeToString(),
        "at most 268435456 elements",
    ),
    "a product of 2 to the 64": (
        message((2**32, 2**32), b"").SerializeToString(),
        "at most 268435456 elements",
    ),
    "a product that is small, modulo 2 to the 64": (
        message((2**63 - 1, 2, 2**62 + 1)).SerializeToString(),
        "at most 268435456 elements",
    ),
    "a negative dimension": (message((-1, 1)).SerializeToString(), "dimensions of 0 or more"),
    "two negative dimensions": (message((-1, -1)).SerializeToString(), "dimensions of 0 or more"),
    "a thousand dimensions": (message([1] * 1000).SerializeToString(), "at most 16 dimensions"),
    "too few bytes": (message((1, 1), b"123").SerializeToString(), "expected 4 bytes"),
    "too many bytes": (message((1, 1), b"12345").SerializeToString(), "expected 4 bytes"),
    "an unknown datatype": (message(datatype="FP33").SerializeToString(), "unknown datatype"),
    "a tensor twice": (twice(message()), "given more than once"),
    "typed contents of another type": (typed(fp64_contents=[1.0]), "carried by fp32_contents"),
    "too many typed contents": (typed(fp32_contents=[0.0] * 1000), "expected 1 elements"),
    "BYTES whose length lies beyond the end": (text(1, 2**32 - 1), "'x'"),
    "BYTES whose first length takes the second": (text(4, 0), "'x'"),
    "BYTES with something after them": (text(0, 0, raw=b"more"), "follow the last"),
    "BYTES with fewer elements than the shape": (text(0), "'x'"),
    "BYTES that are not UTF-8": (
        message((1, 2), b"\1\0\0\0\xff\0\0\0\0", "BYTES", "text").SerializeToString(),
        "expected UTF-8",
    ),
    "ten thousand parameters": (many_parameters("request"), "at most 128 parameters"),
    "ten thousand of a tensor": (many_parameters("input"), "at most 128 parameters"),
}


async def infer(channel: grpc.aio.Channel, data: bytes) -> Any:
    call: Any = channel.unary_unary(METHOD)
    return await call(data, timeout=server.PATIENCE)


async def right(channel: grpc.aio.Channel, value: float) -> None:
    """A request that is as it should be gets its own answer."""
    data = message(raw=np.float32(value).tobytes()).SerializeToString()
    answer = pb.ModelInferResponse.FromString(await infer(channel, data))
    assert np.frombuffer(answer.raw_output_contents[0], np.float32) == [2 * value]


async def refused(channel: grpc.aio.Channel, data: bytes) -> grpc.aio.AioRpcError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await infer(channel, data)
    return caught.value


@pytest.mark.parametrize("name", CORPUS)
async def test_each_has_its_status_and_the_one_beside_it_its_answer(
    channel: grpc.aio.Channel, name: str
) -> None:
    data, said = CORPUS[name]
    beside = [asyncio.ensure_future(right(channel, value)) for value in (1, 2)]
    error = await refused(channel, data)
    await asyncio.gather(*beside)
    assert error.code() is INVALID
    assert said in str(error.details())


async def test_a_stream_outlives_them(channel: grpc.aio.Channel) -> None:
    opened: Any = channel.stream_stream(STREAM, None, pb.ModelStreamInferResponse.FromString)
    call = opened(timeout=server.PATIENCE)
    for data, said in CORPUS.values():
        await call.write(data)
        answer = await call.read()
        assert said in answer.error_message
        assert answer.infer_response.parameters["headrace_status"].string_param == INVALID.name
    await call.write(WHOLE)
    assert (await call.read()).infer_response.outputs
    await call.done_writing()
    assert await call.read() is grpc.aio.EOF


async def test_a_message_over_the_limit(channel: grpc.aio.Channel) -> None:
    error = await refused(channel, b"\0" * (LIMIT + 1))
    assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    await right(channel, 3)


async def test_memory_does_not_grow(
    running: server.RunningServer, channel: grpc.aio.Channel
) -> None:
    async def once() -> None:
        await asyncio.gather(*(refused(channel, data) for data, _ in CORPUS.values()))

    for _ in range(5):
        await once()
    process = psutil.Process(running.process.pid)
    before = process.memory_info().rss
    for _ in range(40):
        await once()
    assert process.memory_info().rss - before < GROWTH
    await right(channel, 4)


async def test_a_caller_with_too_many_streams_is_told(channel: grpc.aio.Channel) -> None:
    def opened() -> Any:
        method: Any = channel.stream_stream(STREAM, None, pb.ModelStreamInferResponse.FromString)
        # By name: connections that another engine has passed on cannot be told apart.
        caller = (("headrace-caller", "greedy"),)
        return method(timeout=server.PATIENCE, metadata=caller)

    open_ = [opened(), opened()]
    for call in open_:
        await call.write(WHOLE)
        assert (await call.read()).infer_response.outputs
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await opened().read()
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert "the limit is 2 (max_caller_streams)" in str(caught.value.details())
    for call in open_:
        await call.done_writing()
        assert await call.read() is grpc.aio.EOF


async def test_a_caller_with_too_many_calls_is_told_and_others_are_not(
    channel: grpc.aio.Channel,
) -> None:
    many: Any = channel.unary_unary(METHOD)
    caller = [("headrace-caller", "greedy")]
    calls = [asyncio.ensure_future(endless(many, caller)) for _ in range(51)]
    done, waiting = await asyncio.wait(calls, return_when=asyncio.FIRST_COMPLETED)
    (error,) = [call.exception() for call in done]
    assert isinstance(error, grpc.aio.AioRpcError)
    assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert "'greedy' has 50 in flight, the limit is 50 (max_caller_calls)" in str(error.details())
    await right(channel, 5)
    for call in waiting:
        call.cancel()
    await asyncio.wait(waiting)


async def endless(method: Any, metadata: Any) -> Any:
    """Runs until it is stopped."""
    asked = message(model="lab")
    for name, value in (("steps", models.ENDLESS), ("index", 0)):
        asked.inputs.add(name=name, datatype="INT64", shape=[1])
        asked.raw_input_contents.append(np.array([value], np.int64).tobytes())
    return await method(asked.SerializeToString(), metadata=metadata)


@pytest.mark.parametrize(
    "data",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        b"\0" * 1000,
        b"\x16\x03\x01\x02\x00\x01" + b"\xff" * 512,  # a handshake of TLS
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\xff" * 100,
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\4\0\0\0\0\0",  # and then nothing
    ],
)
async def test_what_is_no_grpc_harms_nobody(
    running: server.RunningServer, channel: grpc.aio.Channel, data: bytes
) -> None:
    host, _, port = running.grpc.rpartition(":")
    with socket.create_connection((host, int(port))) as raw:
        raw.sendall(data)
        await right(channel, 6)
    await right(channel, 7)


def test_the_corpus_is_not_repeated_in_the_log(running: server.RunningServer) -> None:
    """Nobody fills the log with what callers got wrong."""
    assert len(pathlib.Path(running.log_file).read_text()) < 100_000
