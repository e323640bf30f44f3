"""From a message to what it asks, or to an error that names the field."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from headrace.inference.v2 import grpc_service_pb2 as pb
from headrace.server.errors import InvalidInput, Unsupported
from headrace.server.exchange import InferenceRequest
from headrace.server.rpc import codec
from headrace.server.rpc.wire import Head, Reader, WireRequest

Input = pb.ModelInferRequest.InferInputTensor
Output = pb.ModelInferRequest.InferRequestedOutputTensor


def decode(message: pb.ModelInferRequest, remaining: float | None = None) -> InferenceRequest:
    raw = [memoryview(contents) for contents in message.raw_input_contents]
    return codec.decode(WireRequest(Head(message), message.id, raw), 7.0, remaining)


def one(tensor: Input, *raw: bytes) -> pb.ModelInferRequest:
    return pb.ModelInferRequest(inputs=[tensor], raw_input_contents=raw)


def typed(**contents: Any) -> Input:
    return Input(name="x", datatype="FP32", shape=[1], contents=pb.InferTensorContents(**contents))


def test_what_a_message_asks() -> None:
    message = pb.ModelInferRequest(
        model_name="m",
        model_version="2",
        inputs=[
            Input(name="a", datatype="FP32", shape=[1, 2]),
            Input(name="b", datatype="BYTES", shape=[1]),
        ],
        outputs=[Output(name="z"), Output(name="y")],
        raw_input_contents=[np.array([1, 2], "<f4").tobytes(), b"\1\0\0\0q"],
    )
    request = decode(message, 0.25)
    assert (request.model, request.version, request.outputs) == ("m", "2", ["z", "y"])
    assert (request.arrival, request.remaining) == (7.0, 0.25)
    assert (request.timeout, request.priority) == (None, 0)
    assert [(t.name, t.datatype, t.array.tolist()) for t in request.inputs] == [
        ("a", "FP32", [[1.0, 2.0]]),
        ("b", "BYTES", [b"q"]),
    ]


def test_typed_contents_and_no_deadline() -> None:
    request = decode(one(typed(fp32_contents=[1.5])))
    assert request.inputs[0].array.tolist() == [1.5]
    assert request.remaining == math.inf


def test_no_inputs_and_no_raw_contents_are_left_to_the_model_to_judge() -> None:
    assert decode(pb.ModelInferRequest()).inputs == []


@pytest.mark.parametrize(
    ("message", "said"),
    [
        (
            one(Input(name="x", datatype="FP8", shape=[1]), b"a"),
            "input 'x': unknown datatype 'FP8', expected one of BOOL, UINT8",
        ),
        (
            one(Input(name="x", datatype="FP32", shape=[-1, 2]), b""),
            "input 'x': expected dimensions of 0 or more, got shape [-1, 2]",
        ),
        (
            one(Input(name="x", datatype="FP32", shape=[2]), b"1234"),
            "input 'x': expected 8 bytes for FP32 of shape [2], got 4",
        ),
        (
            one(Input(name="x", datatype="FP32", shape=[2**62, 2**62]), b"1234"),
            "input 'x': shape [4611686018427387904, 4611686018427387904]: expected at most ",
        ),
        (
            one(Input(name="x", datatype="BYTES", shape=[1]), b"\5\0\0\0a"),
            "input 'x': BYTES element 0 of 1 says 5 bytes, 1 are left",
        ),
        (
            one(typed(fp32_contents=[1]), b"1234"),
            "input 'x': contents field must not be specified when using raw_input_contents",
        ),
        (
            one(typed(fp32_contents=[1, 2])),
            "input 'x': expected 1 elements for shape [1], got 2",
        ),
        (
            one(typed(fp64_contents=[1])),
            "input 'x': FP32 is carried by fp32_contents, got fp64_contents",
        ),
        (
            one(Input(name="x", datatype="FP16", shape=[1])),
            "input 'x': FP16 has no typed contents",
        ),
        (
            one(Input(name="x", datatype="FP32", shape=[1]), b"1234", b"5678"),
            "raw_input_contents: expected one entry for each of 1 inputs, got 2",
        ),
        (
            pb.ModelInferRequest(inputs=[Input(name="a"), Input()], raw_input_contents=[b""]),
            "raw_input_contents: expected one entry for each of 2 inputs, got 1",
        ),
    ],
)
def test_a_tensor_that_does_not_fit_is_named(message: pb.ModelInferRequest, said: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        decode(message)
    assert str(caught.value).startswith(said)


@pytest.mark.parametrize("where", ["input 'x'", "output 'x'"])
def test_shared_memory_is_not_offered(where: str) -> None:
    parameters = {"shared_memory_region": pb.InferParameter(string_param="region")}
    if where.startswith("input"):
        message = one(Input(name="x", datatype="FP32", shape=[1], parameters=parameters))
    else:
        message = pb.ModelInferRequest(outputs=[Output(name="x", parameters=parameters)])
    with pytest.raises(Unsupported, match=rf"^{where}: shared memory is not offered"):
        decode(message)


def parameters(**values: pb.InferParameter) -> pb.ModelInferRequest:
    return pb.ModelInferRequest(parameters=values)


def test_timeout_and_priority() -> None:
    request = decode(
        parameters(
            timeout=pb.InferParameter(int64_param=2500), priority=pb.InferParameter(uint64_param=3)
        )
    )
    assert (request.timeout, request.priority) == (0.0025, 3)
    assert decode(parameters(priority=pb.InferParameter(int64_param=4))).priority == 4


def test_solo() -> None:
    assert not decode(pb.ModelInferRequest()).solo
    assert decode(parameters(headrace_solo=pb.InferParameter(bool_param=True))).solo
    assert not decode(parameters(headrace_solo=pb.InferParameter(bool_param=False))).solo


def test_the_caller_is_bounded() -> None:
    wire = WireRequest(Head(pb.ModelInferRequest()), "", [])
    assert codec.decode(wire, 7.0, None, "c" * 128).caller == "c" * 128
    said = "metadata 'headrace-caller': expected at most 128 characters, got 129"
    with pytest.raises(InvalidInput, match=said):
        codec.decode(wire, 7.0, None, "c" * 129)


def test_a_timeout_of_zero_is_none() -> None:
    assert decode(parameters(timeout=pb.InferParameter(int64_param=0))).timeout is None


@pytest.mark.parametrize(
    ("message", "said"),
    [
        (
            parameters(timeout=pb.InferParameter(string_param="1")),
            "parameter 'timeout': expected int64_param, got string_param",
        ),
        (
            parameters(timeout=pb.InferParameter(uint64_param=1)),
            "parameter 'timeout': expected int64_param, got uint64_param",
        ),
        (
            parameters(timeout=pb.InferParameter()),
            "parameter 'timeout': expected int64_param, got None",
        ),
        (
            parameters(timeout=pb.InferParameter(int64_param=-1)),
            "parameter 'timeout': expected 0 or more, got -1",
        ),
        (
            parameters(priority=pb.InferParameter(bool_param=True)),
            "parameter 'priority': expected int64_param or uint64_param, got bool_param",
        ),
        (
            parameters(priority=pb.InferParameter(int64_param=-2)),
            "parameter 'priority': expected 0 or more, got -2",
        ),
        (
            parameters(headrace_solo=pb.InferParameter(string_param="true")),
            "parameter 'headrace_solo': expected bool_param, got string_param",
        ),
        (
            parameters(headrace_explain=pb.InferParameter(string_param="yes")),
            "parameter 'headrace_explain': expected bool_param, got string_param",
        ),
        (
            parameters(triton_secret=pb.InferParameter(bool_param=True)),
            "parameter 'triton_secret': of names that begin with 'triton_' expected "
            "triton_enable_empty_final_response or triton_final_response",
        ),
        (
            parameters(headrace_explian=pb.InferParameter(bool_param=True)),
            "parameter 'headrace_explian': of names that begin with 'headrace_' expected "
            "headrace_explain or headrace_solo",
        ),
    ],
)
def test_a_parameter_that_does_not_fit_is_named(message: pb.ModelInferRequest, said: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        decode(message)
    assert str(caught.value) == said


def test_other_parameters_are_left_alone() -> None:
    decode(
        parameters(
            triton_enable_empty_final_response=pb.InferParameter(bool_param=True),
            mine=pb.InferParameter(double_param=1.0),
            sequence_id=pb.InferParameter(int64_param=1),
        )
    )


def alike(*values: float, id_: str = "", shape: tuple[int, ...] = (2,)) -> bytes:
    """Messages that share a head where they have the same shape."""
    tensor = Input(name="x", datatype="FP32", shape=shape)
    raw = [np.array(values, "<f4").tobytes()]
    message = pb.ModelInferRequest(id=id_, model_name="m", inputs=[tensor], raw_input_contents=raw)
    return message.SerializeToString()


def test_requests_that_share_a_head_have_their_own_tensors() -> None:
    reader = Reader()
    found = [
        codec.decode(reader.read(alike(n, n + 1, id_=f"{n}")), float(n), None) for n in range(3)
    ]
    assert [request.inputs[0].array.tolist() for request in found] == [[0, 1], [1, 2], [2, 3]]
    assert [request.arrival for request in found] == [0, 1, 2]
    assert found[0].kind is found[1].kind is found[2].kind is not None


def test_other_shapes_are_of_another_kind() -> None:
    reader = Reader()
    first = codec.decode(reader.read(alike(1, 2)), 0.0, None)
    other = codec.decode(reader.read(alike(1, 2, shape=(1, 2))), 0.0, None)
    assert first.kind is not other.kind
    assert other.inputs[0].array.shape == (1, 2)


def test_a_wrong_request_of_a_known_head_is_told_as_if_it_were_the_first() -> None:
    reader = Reader()
    codec.decode(reader.read(alike(1, 2)), 0.0, None)
    with pytest.raises(InvalidInput, match=r"expected 8 bytes for FP32 of shape \[2\], got 4"):
        codec.decode(reader.read(alike(1)), 0.0, None)
    tensor = Input(name="x", datatype="FP32", shape=[2])
    none = pb.ModelInferRequest(model_name="m", inputs=[tensor])
    with pytest.raises(InvalidInput, match="expected 2 elements"):
        codec.decode(reader.read(none.SerializeToString()), 0.0, None)


def test_text_is_read_from_each_message() -> None:
    reader = Reader()
    tensor = Input(name="x", datatype="BYTES", shape=[1])
    for text in (b"\1\0\0\0a", b"\2\0\0\0bc"):
        message = pb.ModelInferRequest(model_name="m", inputs=[tensor], raw_input_contents=[text])
        request = codec.decode(reader.read(message.SerializeToString()), 0.0, None)
        assert request.inputs[0].array.tolist() == [text[4:]]
