"""Requests into messages and messages into results."""

import dataclasses
from typing import Any, get_type_hints

import grpc
import numpy as np
import pytest

from headrace.client import (
    BadResponse,
    HeadraceError,
    InferOptions,
    InferResult,
    ModelMetadata,
    Overloaded,
    StreamAnswer,
    StreamRequest,
    Tensor,
    TensorMetadata,
    messages,
    random_inputs,
)
from headrace.client.options import InferKeywords, merged
from headrace.client.tensors import as_tensor
from headrace.inference.tensors import DATATYPES
from headrace.inference.v2 import grpc_service_pb2 as pb

X = np.array([[1, 2]], np.float32)


def test_a_request_carries_inputs_raw_and_in_order() -> None:
    request = messages.infer_request("m", {"b": X, "a": ["t"]}, InferOptions())
    assert request.model_name == "m"
    assert [(i.name, i.datatype, list(i.shape)) for i in request.inputs] == [
        ("b", "FP32", [1, 2]),
        ("a", "BYTES", [1]),
    ]
    assert list(request.raw_input_contents) == [X.tobytes(), b"\1\0\0\0t"]
    assert not any(i.HasField("contents") for i in request.inputs)


def test_every_option_reaches_the_request() -> None:
    options = InferOptions(
        version="3",
        request_id="7",
        outputs=["y", "z"],
        parameters={"flag": True, "n": -1, "big": 2**63, "x": 0.5, "s": "t"},
        priority=1,
        solo=True,
    )
    request = messages.infer_request("m", {}, options)
    assert (request.model_version, request.id) == ("3", "7")
    assert [o.name for o in request.outputs] == ["y", "z"]
    said = {k: v.WhichOneof("parameter_choice") for k, v in request.parameters.items()}
    assert said == {
        "flag": "bool_param",
        "n": "int64_param",
        "big": "uint64_param",
        "x": "double_param",
        "s": "string_param",
        "priority": "int64_param",
        "headrace_solo": "bool_param",
    }
    assert request.parameters["flag"].bool_param is True
    assert request.parameters["headrace_solo"].bool_param is True
    assert request.parameters["priority"].int64_param == 1


def test_what_cannot_be_sent_is_named() -> None:
    with pytest.raises(TypeError, match=r"input 'x': .*complex"):
        messages.infer_request("m", {"x": np.zeros(1, np.complex64)}, InferOptions())
    with pytest.raises(ValueError, match=r"input 'x': .*FP8"):
        messages.infer_request("m", {"x": Tensor(X, "FP8")}, InferOptions())
    with pytest.raises(TypeError, match=r"parameter 'p': .*list"):
        messages.infer_request("m", {}, InferOptions(parameters={"p": []}))  # type: ignore[dict-item]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"version": 1}, "version: expected str, got 1"),
        ({"request_id": 5}, "request_id: expected str, got 5"),
        ({"priority": "high"}, "priority: expected an integer, got 'high'"),
        ({"outputs": 3}, "outputs: expected names, got 3"),
        ({"outputs": [1]}, "outputs: expected names, got 1"),
        ({"parameters": 3}, "parameters: expected values by name, got 3"),
        ({"headers": ["a"]}, r"headers: expected values by name, got \['a'\]"),
    ],
)
def test_options_of_another_type_are_named(options: dict[str, Any], said: str) -> None:
    with pytest.raises(TypeError, match=said):
        merged("infer", InferOptions, None, options)


def test_what_is_no_name_is_named() -> None:
    with pytest.raises(TypeError, match="model: expected its name, got 3"):
        messages.infer_request(3, {"x": X}, InferOptions())  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="inputs: expected names, got 0"):
        messages.infer_request("m", {0: X}, InferOptions())  # type: ignore[dict-item]
    with pytest.raises(TypeError, match=r"options: expected InferOptions, got \{'dead"):
        merged("infer", InferOptions, {"deadline": 1}, {})


def test_of_a_stream_it_is_said_which_request_cannot_be_sent() -> None:
    with pytest.raises(TypeError, match=r"request #3: expected StreamRequest, got \{\}"):
        messages.stream_request({}, 3)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"request #1: input 'x': expected an array.*got None"):
        messages.stream_request(StreamRequest("m", {"x": None}), 1)  # type: ignore[dict-item]


def test_one_output_name_is_not_a_sequence_of_letters() -> None:
    with pytest.raises(TypeError, match=r"\['logits'\]"):
        InferOptions(outputs="logits")


def test_keywords_are_the_fields_of_the_options() -> None:
    assert get_type_hints(InferKeywords) == get_type_hints(InferOptions)
    assert list(get_type_hints(InferKeywords)) == [
        field.name for field in dataclasses.fields(InferOptions)
    ]


def test_a_sequence_is_not_repeated() -> None:
    assert messages.infer("m", {}, InferOptions()).repeatable
    assert not messages.infer("m", {}, InferOptions(parameters={"sequence_id": 1})).repeatable


def answer_message(**fields: object) -> pb.ModelInferResponse:
    message = pb.ModelInferResponse(model_name="m", model_version="2", id="7", **fields)  # type: ignore[arg-type]
    message.outputs.add(name="y", datatype="FP32", shape=[1, 2])
    message.raw_output_contents.append(X.tobytes())
    message.parameters["batch_size"].int64_param = 4
    message.parameters["unset"].SetInParent()
    return message


def test_a_result_is_a_mapping_of_arrays() -> None:
    result = messages.read_result(answer_message())
    assert (result.model, result.version, result.id) == ("m", "2", "7")
    assert result.parameters == {"batch_size": 4}
    assert list(result) == ["y"]
    assert len(result) == 1
    assert result["y"].tolist() == X.tolist()
    assert repr(result) == "InferResult(m:2 y: float32[1, 2])"
    assert len({result, result}) == 1
    assert "z" not in result
    with pytest.raises(KeyError, match=r"no output 'z'.*'m' gave 'y'"):
        result["z"]


def test_a_response_that_contradicts_itself_is_a_bad_response() -> None:
    message = answer_message()
    message.raw_output_contents[0] = b"123"
    with pytest.raises(BadResponse, match="model 'm': output 'y': expected 8 bytes"):
        messages.read_result(message)


def test_metadata_is_plain_data() -> None:
    response = pb.ModelMetadataResponse(name="m", versions=["1"], platform="onnxruntime_onnx")
    response.inputs.add(name="x", datatype="FP32", shape=[-1, 2])
    read = messages.model_metadata("m", "").read(response)
    assert read == ModelMetadata(
        "m", ("1",), "onnxruntime_onnx", (TensorMetadata("x", "FP32", (-1, 2)),), ()
    )


def test_headers_of_the_call_win_over_those_of_the_client() -> None:
    found = messages.metadata({"X-Tenant": "a", "k-bin": b"1"}, None, {"x-tenant": "b"})
    assert found == (("x-tenant", "b"), ("k-bin", b"1"))


def test_a_stream_request_gets_its_position_as_id() -> None:
    assert messages.stream_request(StreamRequest("m", {"x": X}), 3).id == "#3"
    named = StreamRequest("m", {"x": X}, InferOptions(request_id="mine"))
    assert messages.stream_request(named, 3).id == "mine"


def test_a_stream_requests_deadline_is_a_parameter_in_microseconds() -> None:
    request = StreamRequest("m", {}, InferOptions(deadline=0.25))
    assert messages.stream_request(request, 0).parameters["timeout"].int64_param == 250_000


def test_a_stream_request_has_no_headers_of_its_own() -> None:
    with pytest.raises(ValueError, match="infer_stream"):
        messages.stream_request(StreamRequest("m", {}, InferOptions(headers={"a": "b"})), 0)


def in_band(status: str | None, delay: int | None) -> HeadraceError:
    response = pb.ModelStreamInferResponse(error_message="no room")
    response.infer_response.id = "7"
    if status is not None:
        response.infer_response.parameters[messages.STATUS_PARAMETER].string_param = status
    if delay is not None:
        response.infer_response.parameters[messages.RETRY_PARAMETER].int64_param = delay
    answer = messages.stream_answer(response)
    assert answer.id == "7"
    assert answer.result is None
    assert answer.error is not None
    with pytest.raises(HeadraceError, match="no room"):
        answer.unwrap()
    return answer.error


def test_an_in_band_error_has_the_class_that_the_server_names() -> None:
    error = in_band("RESOURCE_EXHAUSTED", 1500)
    assert type(error) is Overloaded
    assert error.retry_after == 1.5


@pytest.mark.parametrize("status", [None, "NO_SUCH_CODE"])
def test_an_in_band_error_of_another_server_is_of_unknown_kind(status: str | None) -> None:
    error = in_band(status, None)
    assert type(error) is HeadraceError
    assert error.code is grpc.StatusCode.UNKNOWN
    assert error.retry_after is None


def test_a_bad_answer_leaves_the_stream_alone() -> None:
    message = answer_message()
    message.raw_output_contents[0] = b"123"
    answer = messages.stream_answer(pb.ModelStreamInferResponse(infer_response=message))
    assert isinstance(answer.error, BadResponse)
    assert answer.id == "7"


def test_unwrap_gives_the_result() -> None:
    result = InferResult({}, model="m")
    assert StreamAnswer("1", result=result).unwrap() is result


def test_kept_holds_errors_and_lets_exits_pass() -> None:
    kept = messages.Kept()
    with kept:
        pass
    kept.release()
    with kept:
        raise KeyError("x")
    with pytest.raises(KeyError):
        kept.release()
    with pytest.raises(GeneratorExit), kept:
        raise GeneratorExit


@pytest.mark.parametrize("datatype", DATATYPES)
@pytest.mark.parametrize(("shape", "expected"), [((-1, 3, -1), (2, 3, 5)), ((), ()), ((0,), (0,))])
def test_random_inputs_fit_the_model(
    datatype: str, shape: tuple[int, ...], expected: tuple[int, ...]
) -> None:
    model = ModelMetadata("m", (), "", (TensorMetadata("x", datatype, shape),), ())
    inputs = random_inputs(model, rows=2, length=5, rng=np.random.default_rng(1))
    array, found = as_tensor(inputs["x"])
    assert found.name == datatype
    assert array.shape == expected
    messages.infer_request("m", inputs, InferOptions())


def test_inputs_without_names_are_refused() -> None:
    with pytest.raises(TypeError, match="inputs: expected arrays by input name, got ndarray"):
        messages.infer_request("m", np.ones(3), InferOptions())  # type: ignore[arg-type]
