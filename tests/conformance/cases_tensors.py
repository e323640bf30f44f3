"""Tensors of every datatype and shape, there and back."""

from __future__ import annotations

import struct
from typing import Any

import numpy as np

from conformance.cases import Cases, Env, equal

case = Cases()

# Rows that would not survive a wrong width, sign or byte order.
VALUES: dict[str, Any] = {
    "BOOL": np.array([[True, False], [False, True]]),
    "UINT8": np.array([[0, 1], [128, 255]], np.uint8),
    "UINT16": np.array([[0, 258], [32768, 65535]], np.uint16),
    "UINT32": np.array([[0, 66051], [2**31, 2**32 - 1]], np.uint32),
    "UINT64": np.array([[0, 2**40 + 3], [2**63, 2**64 - 1]], np.uint64),
    "INT8": np.array([[0, -1], [-128, 127]], np.int8),
    "INT16": np.array([[0, -2], [-32768, 32767]], np.int16),
    "INT32": np.array([[0, -66051], [-(2**31), 2**31 - 1]], np.int32),
    "INT64": np.array([[0, -(2**40)], [-(2**63), 2**63 - 1]], np.int64),
    "FP16": np.array([[0, -1.5], [6.1e-5, 65504]], np.float16),
    "FP32": np.array([[0, -1.5], [1e-38, np.inf]], np.float32),
    "FP64": np.array([[0, -1.5], [5e-324, 1e300]], np.float64),
    "BYTES": np.array([[b"", b"one"], ["zwölf".encode(), b"with\nlines " * 500]], dtype=object),
}
CONTENTS = {
    "BOOL": "bool_contents",
    "UINT8": "uint_contents",
    "UINT16": "uint_contents",
    "UINT32": "uint_contents",
    "UINT64": "uint64_contents",
    "INT8": "int_contents",
    "INT16": "int_contents",
    "INT32": "int_contents",
    "INT64": "int64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
    "BYTES": "bytes_contents",
}
ALL = {name: name for name in [*VALUES, "BF16"]}


def _value(datatype: str) -> Any:
    if datatype == "BF16":
        import ml_dtypes

        return np.array([[0, -1.5], [3.0e38, 1e-30]], dtype=ml_dtypes.bfloat16)
    return VALUES[datatype]


@case.each(ALL)
def raw(env: Env, datatype: str) -> None:
    value = _value(datatype)
    result = env.client.infer(f"identity_{datatype}", env.inputs(x=value))
    equal(result.as_numpy("y"), value)
    (output,) = result.get_response().outputs
    assert (output.name, output.datatype, list(output.shape)) == ("y", datatype, [2, 2])


@case.each(ALL)
async def raw_with_asyncio(env: Env, datatype: str) -> None:
    value = _value(datatype)
    async with env.triton_aio.InferenceServerClient(env.address) as client:
        result = await client.infer(f"identity_{datatype}", env.inputs(aio=True, x=value))
        equal(result.as_numpy("y"), value)


@case.each({name: name for name in CONTENTS})
def typed(env: Env, datatype: str) -> None:
    value = VALUES[datatype]
    content = {CONTENTS[datatype]: value.ravel().tolist()}
    answer = env.stub.ModelInfer(
        env.message(f"identity_{datatype}", ("x", datatype, value.shape, content))
    )
    equal(env.triton.InferResult(answer).as_numpy("y"), value)
    assert not answer.outputs[0].HasField("contents")


@case.each(ALL)
def zero_rows(env: Env, datatype: str) -> None:
    empty = _value(datatype)[:0]
    result = env.client.infer(f"identity_{datatype}", env.inputs(x=empty))
    equal(result.as_numpy("y"), empty)


@case.each(ALL)
def zero_columns(env: Env, datatype: str) -> None:
    empty = _value(datatype)[:, :0]
    result = env.client.infer(f"identity_{datatype}", env.inputs(x=empty))
    equal(result.as_numpy("y"), empty)


@case.each({name: name for name in CONTENTS})
def zero_columns_typed(env: Env, datatype: str) -> None:
    answer = env.stub.ModelInfer(
        env.message(f"identity_{datatype}", ("x", datatype, [2, 0], {CONTENTS[datatype]: []}))
    )
    assert list(answer.outputs[0].shape) == [2, 0]
    assert list(answer.raw_output_contents) == [b""]


@case
def scalar_raw(env: Env) -> None:
    value = np.array(2.5, np.float32)
    equal(env.client.infer("scalar", env.inputs(x=value)).as_numpy("y"), value)


@case
def scalar_typed(env: Env) -> None:
    request = env.message("scalar", ("x", "FP32", [], {"fp32_contents": [2.5]}))
    answer = env.stub.ModelInfer(request)
    assert list(answer.outputs[0].shape) == []
    assert list(answer.raw_output_contents) == [struct.pack("<f", 2.5)]


@case
def no_batch_axis(env: Env) -> None:
    value = np.array([1, 2, 3], np.float32)
    equal(env.client.infer("no_batch_axis", env.inputs(x=value)).as_numpy("y"), value)


@case
def fixed_batch(env: Env) -> None:
    for rows in (4, 3, 1, 0):
        value = np.arange(2 * rows, dtype=np.float32).reshape(rows, 2)
        equal(env.client.infer("fixed_batch", env.inputs(x=value)).as_numpy("y"), value)


@case
def large_tensor(env: Env) -> None:
    """Above the size from which tensors are viewed where they lie in the message."""
    value = np.random.default_rng(1).standard_normal((3, 200_000)).astype(np.float32)
    equal(env.client.infer("identity_FP32", env.inputs(x=value)).as_numpy("y"), value)


@case
def large_tensor_that_is_not_aligned(env: Env) -> None:
    """A view into a message begins at any address; the model must not mind."""
    value = np.random.default_rng(2).standard_normal((1, 20_000))
    for padding in range(8):
        tensors = env.inputs(x=value)
        result = env.client.infer("identity_FP64", tensors, request_id="x" * padding)
        equal(result.as_numpy("y"), value)


@case
def several_inputs_and_outputs(env: Env) -> None:
    a = np.array([[1, 2], [3, 4]], np.float32)
    b = np.array([[10, 20], [30, 40]], np.float32)
    # The order of inputs in the message is the caller's business.
    for tensors in (env.inputs(a=a, b=b), env.inputs(b=b, a=a)):
        result = env.client.infer("arithmetic", tensors)
        names = [output.name for output in result.get_response().outputs]
        assert names == ["total", "difference", "doubled"]
        equal(result.as_numpy("total"), a + b)
        equal(result.as_numpy("difference"), a - b)
        equal(result.as_numpy("doubled"), a + a)


@case
def subset_of_outputs_in_the_order_asked_for(env: Env) -> None:
    a, b = np.ones((1, 2), np.float32), np.full((1, 2), 5, np.float32)
    wanted = [env.triton.InferRequestedOutput(name) for name in ("doubled", "total")]
    result = env.client.infer("arithmetic", env.inputs(a=a, b=b), outputs=wanted)
    assert [output.name for output in result.get_response().outputs] == ["doubled", "total"]
    equal(result.as_numpy("doubled"), a + a)
    equal(result.as_numpy("total"), a + b)
    assert result.as_numpy("difference") is None


@case
def optional_input_left_out_and_given(env: Env) -> None:
    x = np.array([[1, 2], [3, 4]], np.float32)
    equal(env.client.infer("optional", env.inputs(x=x)).as_numpy("y"), x * 3)
    scale = np.array([7], np.float32)
    equal(env.client.infer("optional", env.inputs(x=x, scale=scale)).as_numpy("y"), x * 7)


@case
def strings_computed_by_the_model(env: Env) -> None:
    value = np.array([["a", "ü"], ["", "日本"]], dtype=object)
    result = env.client.infer("shout", env.inputs(x=value)).as_numpy("y")
    assert [text.decode() for text in result.ravel()] == ["a!", "ü!", "!", "日本!"]


@case
def strings_with_a_nul_byte(env: Env) -> None:
    value = np.array([[b"before\0after"]], dtype=object)
    equal(env.client.infer("identity_BYTES", env.inputs(x=value)).as_numpy("y"), value)


@case
def classification(env: Env) -> None:
    scores = np.array([[0.1, 0.7, 0.2, 0], [3, 1, 2, 0]], np.float32)
    wanted = [env.triton.InferRequestedOutput("y", class_count=2)]
    result = env.client.infer("classes", env.inputs(x=scores), outputs=wanted)
    (output,) = result.get_response().outputs
    assert (output.datatype, list(output.shape)) == ("BYTES", [2, 2])
    assert result.as_numpy("y").tolist() == [
        [b"0.700000:1:dog", b"0.200000:2:bird"],
        [b"3.000000:0:cat", b"2.000000:2:bird"],
    ]


@case
def classification_of_more_classes_than_there_are(env: Env) -> None:
    scores = np.array([[1, 4, 2, 3]], np.float32)
    wanted = [env.triton.InferRequestedOutput("y", class_count=9)]
    result = env.client.infer("identity_FP32", env.inputs(x=scores), outputs=wanted)
    assert result.as_numpy("y").tolist() == [
        [b"4.000000:1", b"3.000000:3", b"2.000000:2", b"1.000000:0"]
    ]


@case
def classification_without_a_batch_axis(env: Env) -> None:
    wanted = [env.triton.InferRequestedOutput("y", class_count=1)]
    value = np.array([5, 9, 7], np.float32)
    result = env.client.infer("no_batch_axis", env.inputs(x=value), outputs=wanted)
    assert result.as_numpy("y").tolist() == [b"9.000000:1"]


@case
def classification_of_no_rows(env: Env) -> None:
    wanted = [env.triton.InferRequestedOutput("y", class_count=2)]
    empty = np.zeros((0, 4), np.float32)
    result = env.client.infer("classes", env.inputs(x=empty), outputs=wanted)
    assert list(result.get_response().outputs[0].shape) == [0, 2]


@case
def request_id_and_parameters_come_back(env: Env) -> None:
    x = np.ones((1, 1), np.float32)
    result = env.client.infer(
        "identity_FP32",
        env.inputs(x=x),
        request_id="the id",
        parameters={"headrace_explain": True, "custom": "ignored"},
    )
    response = result.get_response()
    assert (response.model_name, response.model_version) == ("identity_FP32", "1")
    assert response.id == "the id"
    said = {
        name: getattr(value, value.WhichOneof("parameter_choice"))
        for name, value in response.parameters.items()
    }
    assert said["headrace_batch_size"] == said["headrace_batch_requests"] == 1
    assert said["headrace_reason"] == "executor idle"
    assert said["headrace_queue_us"] >= 0
    assert said["headrace_compute_us"] > 0
    assert said["headrace_executor"].startswith("identity_FP32/1/")
