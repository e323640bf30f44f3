"""ModelStreamInfer: many in flight, answers as they complete, errors in band."""

from __future__ import annotations

import asyncio
import queue
import struct
from collections.abc import AsyncIterator
from typing import Any

import grpc
import numpy as np

from conformance.cases import PATIENCE, Cases, Env, failure_of, wait_for

case = Cases()

STRICT = (("triton_grpc_error", "true"),)


def _identity(env: Env, number: int, model: str = "identity_INT64") -> Any:
    content = struct.pack("<q", number)
    return env.message(model, ("x", "INT64", [1, 1], content), id=f"request {number}")


def _status(answer: Any) -> str:
    return str(answer.infer_response.parameters["headrace_status"].string_param)


class Stream:
    """A stream whose requests are sent one at a time, when the case says so."""

    def __init__(self, env: Env, metadata: tuple[tuple[str, str], ...] = ()) -> None:
        self._requests: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self.call = env.stub.ModelStreamInfer(
            iter(self._requests.get, None), metadata=metadata, timeout=PATIENCE
        )

    def send(self, *requests: Any) -> None:
        for request in requests:
            self._requests.put(request)

    def end(self) -> None:
        """Nothing more will be sent."""
        self._requests.put(None)


@case
def a_stream_of_tritonclient(env: Env) -> None:
    results: queue.SimpleQueue[Any] = queue.SimpleQueue()
    numbers = range(200)
    with env.triton.InferenceServerClient(env.address) as client:
        client.start_stream(lambda result, error: results.put((result, error)))
        for number in numbers:
            value = np.array([[number]], np.int64)
            client.async_stream_infer("identity_INT64", env.inputs(x=value), request_id=str(number))
        answers = [results.get(timeout=PATIENCE) for _ in numbers]
        client.stop_stream()
    assert all(error is None for _, error in answers)
    found = {result.get_response().id: int(result.as_numpy("y")[0, 0]) for result, _ in answers}
    assert found == {str(number): number for number in numbers}


@case
async def a_stream_of_tritonclient_with_asyncio(env: Env) -> None:
    async def requests() -> AsyncIterator[dict[str, Any]]:
        for number in range(100):
            value = np.array([[number]], np.int64)
            yield {
                "model_name": "identity_INT64",
                "inputs": env.inputs(aio=True, x=value),
                "request_id": str(number),
            }

    found = {}
    async with env.triton_aio.InferenceServerClient(env.address) as client:
        async for result, error in client.stream_infer(requests()):
            assert error is None
            found[result.get_response().id] = int(result.as_numpy("y")[0, 0])
    assert found == {str(number): number for number in range(100)}


@case
async def many_streams_at_once(env: Env) -> None:
    async def one(client: Any, stream: int) -> None:
        async def requests() -> AsyncIterator[dict[str, Any]]:
            for number in range(20):
                value = np.array([[stream * 1000 + number]], np.int64)
                inputs = env.inputs(aio=True, x=value)
                yield {"model_name": "identity_INT64", "inputs": inputs, "request_id": str(number)}

        found = {}
        async for result, error in client.stream_infer(requests()):
            assert error is None
            found[result.get_response().id] = int(result.as_numpy("y")[0, 0])
        assert found == {str(number): stream * 1000 + number for number in range(20)}

    async with env.triton_aio.InferenceServerClient(env.address) as client:
        await asyncio.gather(*(one(client, stream) for stream in range(10)))


@case
def more_in_flight_than_the_window(env: Env) -> None:
    """The sender is held back, not refused; nothing is lost."""
    count = 3000
    requests = (_identity(env, number) for number in range(count))
    answers = list(env.stub.ModelStreamInfer(requests, timeout=PATIENCE))
    assert {a.infer_response.id for a in answers} == {f"request {n}" for n in range(count)}
    assert not any(answer.error_message for answer in answers)


@case
def answers_come_as_they_complete(env: Env) -> None:
    """Requests to an idle model pass those that wait for a busy one."""
    with env.occupied("lab") as blocker:
        stream = Stream(env)
        stream.send(env.lab("lab", id="slow"), _identity(env, 1), _identity(env, 2))
        first = [next(stream.call).infer_response.id for _ in range(2)]
        assert sorted(first) == ["request 1", "request 2"]
        blocker.cancel()
        assert next(stream.call).infer_response.id == "slow"
        stream.end()
        assert list(stream.call) == []


@case
def every_answer_is_final(env: Env) -> None:
    requests = [_identity(env, 1), _identity(env, 2, model="nothing")]
    for answer in env.stub.ModelStreamInfer(iter(requests)):
        assert answer.infer_response.parameters["triton_final_response"].bool_param


@case
def errors_in_band(env: Env) -> None:
    """Each by its id, and the stream goes on."""
    stream = Stream(env)
    stream.send(_identity(env, 1, model="nothing"))
    answer = next(stream.call)
    assert answer.infer_response.id == "request 1"
    assert answer.infer_response.model_name == "nothing"
    assert "'nothing'" in answer.error_message
    assert _status(answer) == "NOT_FOUND"
    wrong = env.message("identity_INT64", ("x", "INT32", [1, 1], b"1234"), id="wrong")
    stream.send(wrong)
    answer = next(stream.call)
    assert (answer.infer_response.id, _status(answer)) == ("wrong", "INVALID_ARGUMENT")
    stream.send(env.lab("lab", index=99, id="fails"))
    answer = next(stream.call)
    assert (answer.infer_response.id, _status(answer)) == ("fails", "INTERNAL")
    stream.send(_identity(env, 5))
    answer = next(stream.call)
    assert (answer.infer_response.id, answer.error_message) == ("request 5", "")
    stream.end()
    assert list(stream.call) == []
    assert stream.call.code() == grpc.StatusCode.OK


@case
def overload_in_band_says_when_to_come_back(env: Env) -> None:
    model = "lab_bounded"
    with env.occupied(model):
        stream = Stream(env)
        stream.send(*(env.lab(model, value=n, id=str(n)) for n in range(4)))
        refused = [next(stream.call) for _ in range(2)]
    for answer in refused:
        assert answer.infer_response.id in ("2", "3")
        assert _status(answer) == "RESOURCE_EXHAUSTED"
        parameters = answer.infer_response.parameters
        assert parameters["headrace_error_reason"].string_param == "OVERLOADED"
        assert parameters["headrace_retry_after_ms"].int64_param > 0
    stream.end()
    answered = list(stream.call)
    assert sorted(answer.infer_response.id for answer in answered) == ["0", "1"]
    assert not any(answer.error_message for answer in answered)


@case
def timeout_parameter_in_band(env: Env) -> None:
    request = env.lab("lab_deadlines", id="late")
    request.parameters["timeout"].int64_param = 50_000
    with env.occupied("lab_deadlines"):
        (answer,) = env.stub.ModelStreamInfer(iter([request]))
    assert (answer.infer_response.id, _status(answer)) == ("late", "DEADLINE_EXCEEDED")


@case
def triton_grpc_error_ends_the_stream(env: Env) -> None:
    stream = Stream(env, STRICT)
    stream.send(_identity(env, 1))
    assert next(stream.call).infer_response.id == "request 1"
    stream.send(_identity(env, 2, model="nothing"))
    try:
        next(stream.call)
    except grpc.RpcError as error:
        found = failure_of(error)
        assert (found.code, found.reason) == (grpc.StatusCode.NOT_FOUND, "MODEL_NOT_FOUND")
        assert "'nothing'" in found.message
    else:
        raise AssertionError("this was answered")
    finally:
        stream.end()


@case
def triton_grpc_error_after_the_last_request(env: Env) -> None:
    """The caller has said that no more will come before the error is known."""
    model = "lab_neighbours"
    with env.occupied(model):
        call = env.stub.ModelStreamInfer(
            iter([env.lab(model, index=99, id="fails")]), metadata=STRICT, timeout=PATIENCE
        )
        env.until_queued(model, 1)
    try:
        answers = list(call)
    except grpc.RpcError as error:
        assert error.code() == grpc.StatusCode.INTERNAL, error
        assert "out of data bounds" in (error.details() or "")
    else:
        raise AssertionError(f"the error was lost: {answers}")


@case
def a_broken_stream_withdraws_what_waits(env: Env) -> None:
    model = "lab"
    with env.occupied(model):
        before = env.statistics(model)
        stream = Stream(env)
        stream.send(*(env.lab(model, id=str(number)) for number in range(10)))
        env.until_queued(model, 10)
        stream.call.cancel()
        stream.end()
        env.until_queued(model, 0)
        failed = before.inference_stats.fail.count + 10
        wait_for(lambda: env.statistics(model).inference_stats.fail.count == failed, "their end")


@case
def the_deadline_of_a_stream_is_that_of_its_requests(env: Env) -> None:
    model = "lab_deadlines"
    with env.occupied(model):
        before = env.statistics(model)
        call = env.stub.ModelStreamInfer(iter([env.lab(model)]), timeout=0.2)
        try:
            answers = list(call)
        except grpc.RpcError as error:
            assert error.code() == grpc.StatusCode.DEADLINE_EXCEEDED, error
        else:
            # The server may be the first to notice; then it says so in band.
            assert [_status(answer) for answer in answers] == ["DEADLINE_EXCEEDED"]
        env.until_queued(model, 0)
    wait_for(lambda: env.metric("headrace_executors_busy", model) == 0, "idle")
    assert env.statistics(model).execution_count == before.execution_count


@case
def an_empty_stream(env: Env) -> None:
    assert list(env.stub.ModelStreamInfer(iter([]), timeout=PATIENCE)) == []
