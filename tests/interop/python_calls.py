"""Interop cases of the Python client: everything but sensor streams."""

from __future__ import annotations

import asyncio
import functools
from typing import Any

import ml_dtypes
import numpy as np

from headrace.client import (
    AsyncClient,
    DeadlineExceeded,
    HeadraceError,
    InferenceFailed,
    InferOptions,
    InferResult,
    InvalidInput,
    ModelNotFound,
    Overloaded,
    RetryPolicy,
    StreamRequest,
    Unavailable,
)
from interop.python_cases import NEVER_AGAIN, Cases, Env, equal, lab, refused

case = Cases()

ENDLESS = 50_000_000
CROWD, CROWD_STEPS = 20, 5_000
ONE = np.ones((1, 2), np.float32)

# The least and the greatest, and some that would not survive a wrong width, sign or byte order.
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
    "FP16": np.array([[-1.5, 2.0**-24], [65504, np.inf]], np.float16),
    "BF16": np.array([[-1.5, 1e-30], [3e38, np.inf]], ml_dtypes.bfloat16),
    "FP32": np.array([[-1.5, 2.0**-149], [np.nan, np.inf]], np.float32),
    "FP64": np.array([[-1.5, 5e-324], [1e300, -np.inf]], np.float64),
    "BYTES": np.array([[b"", "zwölf".encode()], [b"\0a", b"one"]], object),
}


async def _datatype(env: Env, client: AsyncClient, name: str) -> None:
    result = await client.infer(f"identity_{name}", {"x": VALUES[name]})
    equal(result["y"], VALUES[name])


for _name in VALUES:
    case.named[f"datatype_{_name}"] = functools.partial(_datatype, name=_name)


@case
async def scalar(env: Env, client: AsyncClient) -> None:
    value = np.array(2.5, np.float32)
    equal((await client.infer("scalar", {"x": value}))["y"], value)


@case
async def no_rows(env: Env, client: AsyncClient) -> None:
    value = np.zeros((0, 3), np.float32)
    equal((await client.infer("identity_FP32", {"x": value}))["y"], value)


@case
async def big_message(env: Env, client: AsyncClient) -> None:
    value = np.arange(4 << 20, dtype=np.float32).reshape(4, -1)
    equal((await client.infer("identity_FP32", {"x": value}))["y"], value)


@case
async def message_too_big(env: Env, client: AsyncClient) -> None:
    value = np.zeros((33, 1 << 18), np.float32)
    error = await refused(client.infer("identity_FP32", {"x": value}), Overloaded, "")
    assert error.retry_after is None


@case
async def several_outputs(env: Env, client: AsyncClient) -> None:
    inputs = {"a": 3 * ONE, "b": ONE}
    result = await client.infer("arithmetic", inputs)
    assert list(result) == ["total", "difference", "doubled"]
    for name, factor in (("total", 4), ("difference", 2), ("doubled", 6)):
        equal(result[name], factor * ONE)
    some = await client.infer("arithmetic", inputs, outputs=["difference", "total"])
    assert list(some) == ["difference", "total"]
    equal(some["difference"], 2 * ONE)


@case
async def request_id(env: Env, client: AsyncClient) -> None:
    result = await client.infer("double", {"x": ONE}, request_id="mine")
    assert (result.id, result.model, result.version) == ("mine", "double", "1")


@case
async def parameters(env: Env, client: AsyncClient) -> None:
    result = await client.infer("double", {"x": ONE}, parameters={"headrace_explain": True})
    assert result.parameters["headrace_batch_requests"] == 1, result.parameters


@case
async def version(env: Env, client: AsyncClient) -> None:
    equal((await client.infer("versions", {"x": ONE}, version="1"))["y"], ONE)
    result = await client.infer("versions", {"x": ONE})
    equal(result["y"], 3 * ONE)
    assert result.version == "3"
    call = client.infer("versions", {"x": ONE}, version="2")
    await refused(call, ModelNotFound, "MODEL_NOT_FOUND", "'2'")


@case
async def metadata(env: Env, client: AsyncClient) -> None:
    async def call(caller: str) -> InferResult:
        return await client.infer("double", {"x": ONE}, headers={"headrace-caller": caller})

    await refused(call("c" * 1000), InvalidInput, "INVALID_INPUT", "headrace-caller", "1000")
    equal((await call("c" * 10))["y"], 2 * ONE)


@case
async def error_unknown_model(env: Env, client: AsyncClient) -> None:
    call = client.infer("nothing", {"x": ONE})
    await refused(call, ModelNotFound, "MODEL_NOT_FOUND", "'nothing'")


@case
async def error_unknown_input(env: Env, client: AsyncClient) -> None:
    await refused(client.infer("double", {"z": ONE}), InvalidInput, "INVALID_INPUT", "'z'")


@case
async def error_missing_input(env: Env, client: AsyncClient) -> None:
    await refused(client.infer("arithmetic", {"a": ONE}), InvalidInput, "INVALID_INPUT", "'b'")


@case
async def error_wrong_datatype(env: Env, client: AsyncClient) -> None:
    call = client.infer("double", {"x": np.ones((1, 2))})
    await refused(call, InvalidInput, "INVALID_INPUT", "'x'", "FP32", "FP64")


@case
async def error_wrong_shape(env: Env, client: AsyncClient) -> None:
    call = client.infer("double", {"x": np.ones(2, np.float32)})
    await refused(call, InvalidInput, "INVALID_INPUT", "'x'", "[-1, -1]", "[2]")


@case
async def error_of_the_model(env: Env, client: AsyncClient) -> None:
    await refused(client.infer("lab", lab(index=99)), InferenceFailed, "EXECUTION_FAILED")


@case
async def no_server(env: Env, client: AsyncClient) -> None:
    policy = RetryPolicy(max_attempts=3, initial_backoff=0.01)
    async with AsyncClient("127.0.0.1:1", retry=policy) as nobody:
        await refused(nobody.server_live(), Unavailable, "")


@case
async def deadline(env: Env, client: AsyncClient) -> None:
    try:
        await client.infer("lab_deadline", lab(ENDLESS), deadline=0.3)
    except DeadlineExceeded:
        equal((await client.infer("lab_deadline", lab()))["y"], np.array([[3]], np.float32))
    else:
        raise AssertionError("this was answered")


@case
async def cancel(env: Env, client: AsyncClient) -> None:
    call = asyncio.create_task(client.infer("lab_cancel", lab(ENDLESS)))
    await asyncio.sleep(0.3)
    assert call.cancel()
    (outcome,) = await asyncio.gather(call, return_exceptions=True)
    assert isinstance(outcome, asyncio.CancelledError), outcome
    equal((await client.infer("lab_cancel", lab()))["y"], np.array([[3]], np.float32))


async def _crowd(env: Env, policy: RetryPolicy) -> list[InferResult | HeadraceError]:
    """How a crowd at once fares with a model for which two may wait. Who is answered is right."""

    async def call(number: int) -> InferResult | HeadraceError:
        try:
            result = await client.infer("lab_bounded", lab(CROWD_STEPS, value=number))
        except HeadraceError as error:
            return error
        equal(result["y"], np.array([[2 * number + 1]], np.float32))
        return result

    async with env.client(retry=policy) as client:
        return list(await asyncio.gather(*(call(number) for number in range(CROWD))))


@case
async def overload_refused(env: Env, client: AsyncClient) -> None:
    outcomes = await _crowd(env, NEVER_AGAIN)
    errors = [outcome for outcome in outcomes if isinstance(outcome, HeadraceError)]
    assert 0 < len(errors) < CROWD, outcomes
    for error in errors:
        assert isinstance(error, Overloaded), error
        assert error.reason == "OVERLOADED"
        assert error.retry_after is not None
        assert error.retry_after > 0


@case
async def overload_retried(env: Env, client: AsyncClient) -> None:
    (before,) = await client.model_statistics("lab_bounded")
    outcomes = await _crowd(env, RetryPolicy(max_attempts=200))
    assert all(isinstance(outcome, InferResult) for outcome in outcomes), outcomes
    (after,) = await client.model_statistics("lab_bounded")
    assert after.inference_stats.fail.count > before.inference_stats.fail.count


@case
async def server_state(env: Env, client: AsyncClient) -> None:
    assert await client.server_live()
    assert await client.server_ready()
    assert await client.model_ready("identity_FP32")
    assert not await client.model_ready("nothing")


@case
async def server_metadata(env: Env, client: AsyncClient) -> None:
    said = await client.server_metadata()
    assert said.name == "headrace"
    assert said.version
    assert "statistics" in said.extensions


@case
async def model_metadata(env: Env, client: AsyncClient) -> None:
    said = await client.model_metadata("arithmetic")
    inputs = [(tensor.name, tensor.datatype, tensor.shape) for tensor in said.inputs]
    assert inputs == [("a", "FP32", (-1, -1)), ("b", "FP32", (-1, -1))]
    assert [tensor.name for tensor in said.outputs] == ["total", "difference", "doubled"]


@case
async def repository(env: Env, client: AsyncClient) -> None:
    index = await client.repository_index()
    versions = {m.version: m.state for m in index if m.name == "versions"}
    assert versions == {"1": "READY", "3": "READY"}
    value = np.array(1, np.float32)
    await client.unload_model("scalar")
    async with env.client(retry=NEVER_AGAIN) as once:
        await refused(once.infer("scalar", {"x": value}), Unavailable, "MODEL_UNAVAILABLE")
    await client.load_model("scalar")
    equal((await client.infer("scalar", {"x": value}))["y"], value)


@case
async def statistics(env: Env, client: AsyncClient) -> None:
    async def rows() -> int:
        return sum(m.inference_count for m in await client.model_statistics("versions"))

    before = await rows()
    await client.infer("versions", {"x": np.ones((3, 2), np.float32)})
    assert await rows() == before + 3


@case
async def stream_requests(env: Env, client: AsyncClient) -> None:
    requests = [
        StreamRequest("double", {"x": number * ONE}, InferOptions(request_id=f"r{number}"))
        for number in range(50)
    ]
    answers = {a.id: a.unwrap() async for a in client.infer_stream(requests)}
    assert len(answers) == len(requests)
    for number in range(50):
        equal(answers[f"r{number}"]["y"], 2 * number * ONE)


@case
async def stream_errors(env: Env, client: AsyncClient) -> None:
    requests = [StreamRequest(name, {"x": ONE}) for name in ("double", "nothing", "double")]
    answers = {answer.id: answer async for answer in client.infer_stream(requests)}
    assert isinstance(answers["#1"].error, ModelNotFound), answers
    for name in ("#0", "#2"):
        equal(answers[name].unwrap()["y"], 2 * ONE)
