"""From a result to its message: tensors, classes, and the explanation."""

from __future__ import annotations

import dataclasses
from collections.abc import Hashable
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from headrace.batcher.callers import Answer
from headrace.batcher.executor import Completion
from headrace.batcher.request import Batch, Reason, Request
from headrace.inference.tensors import DATATYPES, Array, decode_raw
from headrace.inference.v2 import grpc_service_pb2 as pb
from headrace.server.errors import InvalidInput
from headrace.server.exchange import InferenceResult
from headrace.server.models.served import ServedModel
from headrace.server.models.spec import ModelSpec, TensorSpec
from headrace.server.rpc import codec
from headrace.server.rpc.wire import Head, WireRequest

Output = pb.ModelInferRequest.InferRequestedOutputTensor


def result(
    *outputs: tuple[str, str, Any], batched: bool = True, labels: tuple[str, ...] = ()
) -> InferenceResult:
    specs = [TensorSpec(name, datatype, (-1,), ("",)) for name, datatype, _ in outputs]
    spec = ModelSpec("m", "4", (), tuple(specs), batched, "", 8, None)
    model = cast(ServedModel, SimpleNamespace(spec=spec, labels={"y": labels}))
    requests = [Request("key", None, 0.0, rows=2), Request("key", None, 0.0)]
    batch = Batch("key", requests, "m/4/cpu0", Reason.FULL, 0.0, waiting=5)
    answer = Answer(None, batch, Completion((), None, 0.001, 0.02, 0.3), 0.0042, 1.0, found=3)
    arrays: list[Array] = [array for _, _, array in outputs]
    return InferenceResult(model, list(zip(specs, arrays, strict=True)), answer)


def encode(message: pb.ModelInferRequest, found: InferenceResult) -> pb.ModelInferResponse:
    data = codec.encode(WireRequest(Head(message), message.id, ()), found)
    return pb.ModelInferResponse.FromString(data)


def classify(
    array: Array, count: int, datatype: str = "FP32", **more: Any
) -> tuple[list[int], list[bytes]]:
    parameters = {"classification": pb.InferParameter(int64_param=count)}
    message = pb.ModelInferRequest(outputs=[Output(name="y", parameters=parameters)])
    response = encode(message, result(("y", datatype, array), **more))
    tensor = response.outputs[0]
    assert tensor.datatype == "BYTES"
    shape = list(tensor.shape)
    found = decode_raw(response.raw_output_contents[0], DATATYPES["BYTES"], shape)
    return shape, found.ravel().tolist()


def test_outputs_go_out_raw_in_their_order() -> None:
    number = np.arange(6, dtype=np.float32).reshape(2, 3)
    text = np.array(["a", "ßé"], object)
    scalar = np.array(7, np.int64)
    message = pb.ModelInferRequest(id="mine")
    response = encode(
        message, result(("n", "FP32", number[:, ::2]), ("t", "BYTES", text), ("s", "INT64", scalar))
    )
    assert (response.model_name, response.model_version, response.id) == ("m", "4", "mine")
    assert [(o.name, o.datatype, list(o.shape)) for o in response.outputs] == [
        ("n", "FP32", [2, 2]),
        ("t", "BYTES", [2]),
        ("s", "INT64", []),
    ]
    assert list(response.raw_output_contents) == [
        np.array([0, 2, 3, 5], "<f4").tobytes(),
        b"\1\0\0\0a\4\0\0\0" + "ßé".encode(),
        b"\7" + b"\0" * 7,
    ]
    assert not response.parameters
    assert not any(output.HasField("contents") for output in response.outputs)


def test_classes_are_the_largest_of_each_row_with_their_labels() -> None:
    rows = np.array([[0.1, 0.7, 0.2], [3.0, 1.0, 2.0]], np.float32)
    shape, found = classify(rows, 2, labels=("cat", "dog"))
    assert shape == [2, 2]
    assert found == [b"0.700000:1:dog", b"0.200000:2", b"3.000000:0:cat", b"2.000000:2"]


def test_classes_of_a_model_without_a_batch_dimension() -> None:
    assert classify(np.array([[1.0, 4.0], [3.0, 2.0]]), 3, "FP64", batched=False) == (
        [3],
        [b"4.000000:1", b"3.000000:2", b"2.000000:3"],
    )


@pytest.mark.parametrize(
    ("array", "datatype", "expected"),
    [
        (np.array([[2, 2, 1]], np.int32), "INT32", [b"2.000000:0", b"2.000000:1"]),
        (np.array([[1, 200]], np.uint8), "UINT8", [b"200.000000:1", b"1.000000:0"]),
        (np.array([[-1, 1]], np.float16), "FP16", [b"1.000000:1", b"-1.000000:0"]),
        (np.array([[0xBF80, 0x4000]], np.uint16), "BF16", [b"2.000000:1", b"-1.000000:0"]),
    ],
)
def test_classes_of_other_datatypes(array: Array, datatype: str, expected: list[bytes]) -> None:
    assert classify(array, 2, datatype)[1] == expected


def test_more_classes_than_there_are() -> None:
    assert classify(np.ones((1, 2), np.float32), 10)[0] == [1, 2]


@pytest.mark.parametrize("shape", [(0, 3), (0, 0), (2, 0), (0,)])
def test_classes_of_nothing(shape: tuple[int, ...]) -> None:
    found, values = classify(np.ones(shape, np.float32), 2)
    assert (found[0], values) == (shape[0], [])


@pytest.mark.parametrize(
    ("parameter", "datatype", "said"),
    [
        (pb.InferParameter(int64_param=0), "FP32", "output 'y': classification expects 1 or more"),
        (pb.InferParameter(int64_param=-1), "FP32", "parameter 'classification': expected 0 or"),
        (pb.InferParameter(string_param="1"), "FP32", "'classification': expected int64_param"),
        (pb.InferParameter(int64_param=1), "BYTES", "output 'y': BYTES cannot be classified"),
        (pb.InferParameter(int64_param=1), "BOOL", "output 'y': BOOL cannot be classified"),
    ],
)
def test_what_cannot_be_classified(parameter: pb.InferParameter, datatype: str, said: str) -> None:
    output = Output(name="y", parameters={"classification": parameter})
    message = pb.ModelInferRequest(outputs=[output])
    with pytest.raises(InvalidInput) as caught:
        encode(message, result(("y", datatype, np.ones((1, 1), np.float32))))
    assert said in str(caught.value)


def test_the_explanation_is_given_when_asked_for() -> None:
    message = pb.ModelInferRequest()
    message.parameters["headrace_explain"].bool_param = True
    given = encode(message, result()).parameters
    values = {key: getattr(p, str(p.WhichOneof("parameter_choice"))) for key, p in given.items()}
    assert values == {
        "headrace_batch_size": 3,
        "headrace_batch_requests": 2,
        "headrace_found_waiting": 3,
        "headrace_left_waiting": 5,
        "headrace_queue_us": 4200,
        "headrace_compute_us": 321000,
        "headrace_reason": "full",
        "headrace_executor": "m/4/cpu0",
    }
    padded = dataclasses.replace(result(), padded_to=48)
    given = encode(message, padded).parameters
    assert given["headrace_padded_to"].int64_param == 48
    message.parameters["headrace_explain"].bool_param = False
    assert not encode(message, result()).parameters


def test_a_response_is_what_protobuf_would_write() -> None:
    """Field by field the same bytes, also where lengths take several."""
    array = np.arange(40_000, dtype=np.float32).reshape(2, -1)
    data = codec.encode(
        WireRequest(Head(pb.ModelInferRequest()), "i" * 200, ()), result(("n", "FP32", array))
    )
    expected = pb.ModelInferResponse(model_name="m", model_version="4", id="i" * 200)
    expected.outputs.add(name="n", datatype="FP32", shape=[2, 20_000])
    expected.raw_output_contents.append(array.tobytes())
    assert pb.ModelInferResponse.FromString(data) == expected
    assert len(data) == expected.ByteSize()


def test_what_is_kept_of_a_response_is_told_apart_by_shape() -> None:
    notes: dict[Hashable, bytes] = {}
    for rows in (1, 2, 1):
        array = np.full((rows, 2), rows, np.float32)
        found = dataclasses.replace(result(("y", "FP32", array)), notes=notes)
        response = encode(pb.ModelInferRequest(id=f"{rows}"), found)
        assert (response.id, list(response.outputs[0].shape)) == (f"{rows}", [rows, 2])
        assert response.raw_output_contents[0] == array.tobytes()
    assert len(notes) == 2
