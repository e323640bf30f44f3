"""What is wrong with a request, told by status, reason and a sentence that names the tensor."""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import grpc
import numpy as np

from conformance.cases import Cases, Env, equal, failure

case = Cases()

ONE = struct.pack("<f", 1)
TWO = ONE * 2


@dataclass(frozen=True)
class Wrong:
    """A request that must be refused, and the words its message must have."""

    build: Callable[[Env], Any]
    words: tuple[str, ...]
    code: grpc.StatusCode = grpc.StatusCode.INVALID_ARGUMENT
    reason: str = "INVALID_INPUT"


def _x(shape: list[int], content: Any, datatype: str = "FP32") -> Callable[[Env], Any]:
    return lambda env: env.message("identity_FP32", ("x", datatype, shape, content))


def _string(content: bytes, shape: tuple[int, ...] = (1, 1)) -> Callable[[Env], Any]:
    return lambda env: env.message("identity_BYTES", ("x", "BYTES", shape, content))


def _parameter(name: str, **value: Any) -> Callable[[Env], Any]:
    def build(env: Env) -> Any:
        request = env.message("identity_FP32", ("x", "FP32", [1, 1], ONE))
        for kind, content in value.items():
            setattr(request.parameters[name], kind, content)
        return request

    return build


def _output(*names: str, model: str = "identity_FP32", **parameters: int) -> Callable[[Env], Any]:
    def build(env: Env) -> Any:
        request = env.message(model, ("x", "FP32", [1, 1], ONE))
        for name in names:
            output = request.outputs.add(name=name)
            for key, value in parameters.items():
                output.parameters[key].int64_param = value
        return request

    return build


def _mixed(env: Env) -> Any:
    request = env.message("arithmetic", ("a", "FP32", [1, 1], ONE))
    other = request.inputs.add(name="b", datatype="FP32", shape=[1, 1])
    other.contents.fp32_contents.append(1)
    return request


def _raw_and_typed_of_one_tensor(env: Env) -> Any:
    request = env.message("identity_FP32", ("x", "FP32", [1, 1], ONE))
    request.inputs[0].contents.fp32_contents.append(1)
    return request


def _too_many_raw(env: Env) -> Any:
    request = env.message("identity_FP32", ("x", "FP32", [1, 1], ONE))
    request.raw_input_contents.append(ONE)
    return request


NOT_FOUND: dict[str, Any] = {"code": grpc.StatusCode.NOT_FOUND, "reason": "MODEL_NOT_FOUND"}

WRONG = {
    "unknown_model": Wrong(
        lambda env: env.message("nothing", ("x", "FP32", [1, 1], ONE)), ("'nothing'",), **NOT_FOUND
    ),
    "empty_model_name": Wrong(
        lambda env: env.message("", ("x", "FP32", [1, 1], ONE)), ("model",), **NOT_FOUND
    ),
    "unknown_version": Wrong(
        lambda env: env.message("identity_FP32", ("x", "FP32", [1, 1], ONE), model_version="7"),
        ("'identity_FP32'", "'7'"),
        **NOT_FOUND,
    ),
    "version_that_is_no_number": Wrong(
        lambda env: env.message(
            "identity_FP32", ("x", "FP32", [1, 1], ONE), model_version="latest"
        ),
        ("'latest'",),
        **NOT_FOUND,
    ),
    "unknown_input": Wrong(
        lambda env: env.message(
            "identity_FP32", ("x", "FP32", [1, 1], ONE), ("z", "FP32", [1, 1], ONE)
        ),
        ("'z'", "'x'"),
    ),
    "missing_input": Wrong(
        lambda env: env.message("arithmetic", ("a", "FP32", [1, 1], ONE)), ("'b'", "'a'")
    ),
    "no_inputs": Wrong(lambda env: env.message("identity_FP32"), ("'x'", "no input")),
    "input_given_twice": Wrong(
        lambda env: env.message(
            "identity_FP32", ("x", "FP32", [1, 1], ONE), ("x", "FP32", [1, 1], ONE)
        ),
        ("'x'", "more than once"),
    ),
    "unknown_output": Wrong(_output("z"), ("'z'", "'y'")),
    "output_asked_for_twice": Wrong(_output("y", "y"), ("'y'", "more than once")),
    "wrong_datatype": Wrong(_x([1, 1], ONE, "INT32"), ("'x'", "FP32", "INT32")),
    "unknown_datatype": Wrong(_x([1, 1], ONE, "FP31"), ("'x'", "FP31")),
    "empty_datatype": Wrong(_x([1, 1], ONE, ""), ("'x'",)),
    "wrong_rank": Wrong(_x([1], ONE), ("'x'", "[-1, -1]", "[1]")),
    "wrong_dimension": Wrong(
        lambda env: env.message("fixed_mixed", ("x", "FP32", [3, 2], ONE * 6)),
        ("'x'", "[3, 4]", "[3, 2]"),
    ),
    "more_rows_than_the_graph_has": Wrong(
        lambda env: env.message("fixed_batch", ("x", "FP32", [5, 2], ONE * 10)),
        ("at most 4 rows", "5"),
    ),
    "rows_that_differ": Wrong(
        lambda env: env.message(
            "arithmetic", ("a", "FP32", [1, 1], ONE), ("b", "FP32", [2, 1], TWO)
        ),
        ("'b'", "1", "2"),
    ),
    "more_rows_than_max_batch_size": Wrong(
        lambda env: env.message("classes", ("x", "FP32", [9, 4], ONE * 36)), ("8", "9")
    ),
    "too_few_bytes": Wrong(_x([1, 2], ONE), ("'x'", "8", "4")),
    "too_many_bytes": Wrong(_x([1, 1], TWO), ("'x'", "4", "8")),
    "a_byte_too_many": Wrong(_x([1, 1], ONE + b"\0"), ("'x'", "4", "5")),
    "too_few_typed": Wrong(_x([1, 2], {"fp32_contents": [1]}), ("'x'", "2", "1")),
    "too_many_typed": Wrong(_x([1, 1], {"fp32_contents": [1, 2]}), ("'x'", "1", "2")),
    "wrong_typed_field": Wrong(
        _x([1, 1], {"fp64_contents": [1]}), ("'x'", "fp32_contents", "fp64_contents")
    ),
    "typed_out_of_range": Wrong(
        lambda env: env.message("identity_UINT8", ("x", "UINT8", [1, 1], {"uint_contents": [256]})),
        ("'x'", "UINT8"),
    ),
    "typed_for_fp16": Wrong(
        lambda env: env.message("identity_FP16", ("x", "FP16", [1, 1], {"fp32_contents": [1]})),
        ("'x'", "FP16"),
    ),
    "raw_and_typed_of_two_tensors": Wrong(_mixed, ("raw_input_contents",)),
    "raw_and_typed_of_one_tensor": Wrong(
        _raw_and_typed_of_one_tensor, ("'x'", "raw_input_contents")
    ),
    "more_raw_than_inputs": Wrong(_too_many_raw, ("raw_input_contents", "1", "2")),
    "no_data": Wrong(_x([1, 1], None), ("'x'",)),
    "negative_dimension": Wrong(_x([-1, 1], ONE), ("'x'", "[-1, 1]")),
    "two_negative_dimensions": Wrong(_x([-1, -1], ONE), ("'x'", "[-1, -1]")),
    "huge_dimension": Wrong(_x([2**62, 1], ONE), ("'x'", str(2**62))),
    # Their product is 0 in 64 bits.
    "dimensions_that_overflow": Wrong(_x([2**32, 2**32], b""), ("'x'",)),
    "huge_dimensions_beside_a_zero": Wrong(_x([2**62, 0], b""), ("'x'",)),
    "huge_bytes_dimension": Wrong(_string(b"", (2**40, 1)), ("'x'",)),
    "more_dimensions_than_numpy_has": Wrong(_x([1] * 100, ONE), ("'x'",)),
    # The message repeats the shape; it must still fit where status messages travel.
    "more_dimensions_than_fit_a_header": Wrong(_x([1] * 20_000, ONE), ("'x'",)),
    "name_that_does_not_fit_a_header": Wrong(
        lambda env: env.message("identity_FP32", ("x" * 50_000, "FP32", [1, 1], ONE)), ("unknown",)
    ),
    "string_length_cut_off": Wrong(_string(b"\1\0"), ("'x'",)),
    "string_longer_than_the_data": Wrong(_string(struct.pack("<I", 9) + b"abc"), ("'x'", "9")),
    "bytes_after_the_last_string": Wrong(_string(struct.pack("<I", 1) + b"abc"), ("'x'", "2")),
    "string_that_is_not_utf8": Wrong(_string(struct.pack("<I", 1) + b"\xff"), ("'x'", "UTF-8")),
    "reserved_parameter": Wrong(
        _parameter("triton_secret", string_param="x"), ("'triton_secret'",)
    ),
    "timeout_of_the_wrong_kind": Wrong(
        _parameter("timeout", string_param="soon"), ("'timeout'", "int64_param", "string_param")
    ),
    "negative_timeout": Wrong(_parameter("timeout", int64_param=-1), ("'timeout'", "-1")),
    "priority_of_the_wrong_kind": Wrong(
        _parameter("priority", bool_param=True), ("'priority'", "bool_param")
    ),
    "no_classes": Wrong(_output("y", classification=0), ("'y'", "classification")),
}


@case.each(WRONG)
def refused(env: Env, wrong: Wrong) -> None:
    found = failure(lambda: env.stub.ModelInfer(wrong.build(env), timeout=20))
    assert found.code == wrong.code, found
    assert found.reason == wrong.reason, found
    missing = [word for word in wrong.words if word not in found.message]
    assert not missing, (missing, found.message)
    assert found.retry_after is None


@case
def strings_cannot_be_classified(env: Env) -> None:
    request = env.message("identity_BYTES", ("x", "BYTES", [1, 1], struct.pack("<I", 0)))
    request.outputs.add(name="y").parameters["classification"].int64_param = 1
    found = failure(lambda: env.stub.ModelInfer(request))
    assert found.code == grpc.StatusCode.INVALID_ARGUMENT
    assert "'y'" in found.message


@case
def shared_memory_of_a_tensor(env: Env) -> None:
    request = env.message("identity_FP32", ("x", "FP32", [1, 1], None))
    request.inputs[0].parameters["shared_memory_region"].string_param = "region"
    found = failure(lambda: env.stub.ModelInfer(request))
    assert found.code == grpc.StatusCode.UNIMPLEMENTED
    assert "shared memory" in found.message


@case
def not_a_message(env: Env) -> None:
    """Bytes that are no protobuf, in every kind of call."""
    service = "/inference.GRPCInferenceService"
    for garbage in (b"\xff" * 10, b"\xff" * 100_000, b"\x3a\xff\xff\xff\xff\x0f" + b"x" * 40_000):
        for method in ("ModelInfer", "ModelMetadata"):
            found = failure(
                lambda m=method, g=garbage: env.channel.unary_unary(f"{service}/{m}")(g)
            )
            assert found.code == grpc.StatusCode.INVALID_ARGUMENT, found
            assert found.reason == "INVALID_INPUT"
        stream: Any = env.channel.stream_stream(
            f"{service}/ModelStreamInfer",
            response_deserializer=env.pb.ModelStreamInferResponse.FromString,
        )
        good = env.message("identity_FP32", ("x", "FP32", [1, 1], ONE), id="good")
        answers = list(stream(iter([garbage, good.SerializeToString()]), timeout=20))
        found_ids = {answer.infer_response.id: answer.error_message for answer in answers}
        assert set(found_ids) == {"", "good"}
        assert "cannot be parsed" in found_ids[""]
        assert found_ids["good"] == ""


@case
def sizes_that_do_not_exist_are_not_counted(env: Env) -> None:
    """Rows of nothing can be very many. The counts must stay what the protocol can carry."""
    request = env.message("identity_BOOL", ("x", "BOOL", [2**62, 0], b""))
    for _ in range(5):
        try:
            env.stub.ModelInfer(request)
        except grpc.RpcError as error:
            assert error.code() == grpc.StatusCode.INVALID_ARGUMENT, error
    assert env.statistics("identity_BOOL").name == "identity_BOOL"


@case
def the_client_raises_its_own_exception(env: Env) -> None:
    from tritonclient.utils import InferenceServerException

    try:
        env.client.infer("nothing", env.inputs(x=np.ones((1, 1), np.float32)))
    except InferenceServerException as error:
        assert error.status() == "StatusCode.NOT_FOUND"
        assert "'nothing'" in error.message()
    else:
        raise AssertionError("this was answered")


@case
def an_error_harms_nobody_else(env: Env) -> None:
    good = np.array([[1, 2]], np.float32)
    for wrong in WRONG.values():
        failure(env.stub.ModelInfer, wrong.build(env))
        equal(env.client.infer("identity_FP32", env.inputs(x=good)).as_numpy("y"), good)
