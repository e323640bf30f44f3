"""sequence_id, sequence_start and sequence_end, as tritonclient sends them."""

from __future__ import annotations

import queue
from typing import Any

import grpc
import numpy as np

from conformance.cases import PATIENCE, Cases, Env, failure

case = Cases()

# y = x + 0.5 state, and y is the next state: the sum of what came, each half as heavy as the next.
MODEL = "accumulate"


def expected(values: list[float]) -> list[float]:
    found, state = [], 0.0
    for value in values:
        state = value + 0.5 * state
        found.append(state)
    return found


def ask(env: Env, value: float, sequence: int | str, **flags: bool) -> float:
    x = np.array([[value]], np.float32)
    result = env.client.infer(MODEL, env.inputs(x=x), sequence_id=sequence, **flags)
    return float(result.as_numpy("y")[0, 0])


def message(env: Env, **parameters: dict[str, Any]) -> Any:
    content = np.array([[1.0]], np.float32).tobytes()
    request = env.message(MODEL, ("x", "FP32", [1, 1], content))
    for key, value in parameters.items():
        request.parameters[key].CopyFrom(env.pb.InferParameter(**value))
    return request


@case.each({"number": 4711, "text": "line 4"})
def state_is_kept_by_id(env: Env, sequence: Any) -> None:
    values = [1.0, 2.0, 3.0, 4.0]
    found = []
    for number, value in enumerate(values):
        flags = {"sequence_start": number == 0, "sequence_end": number == 3}
        found.append(ask(env, value, sequence, **flags))
        ask(env, 100.0, "another", sequence_start=True, sequence_end=True)
    assert found == expected(values)


@case
def the_model_is_told_of_its_sequence(env: Env) -> None:
    seen, sums = [], []
    for number in range(4):
        result = env.client.infer(
            "controlled",
            env.inputs(x=np.array([[number + 1.0]], np.float32)),
            sequence_id=77,
            sequence_start=number % 3 == 0,
            sequence_end=number == 2,
        )
        seen.append(result.as_numpy("seen").tolist()[0])
        sums.append(result.as_numpy("y").tolist()[0][0])
    assert sums == [1.0, 3.0, 6.0, 4.0]
    assert seen == [[1, 1, 0, 77], [0, 1, 0, 77], [0, 1, 1, 77], [1, 1, 0, 77]]
    names = [tensor.name for tensor in env.client.get_model_metadata("controlled").inputs]
    assert names == ["x"]


@case
def states_are_not_in_the_contract(env: Env) -> None:
    metadata = env.client.get_model_metadata(MODEL)
    assert [tensor.name for tensor in metadata.inputs] == ["x"]
    assert [tensor.name for tensor in metadata.outputs] == ["y"]
    (state,) = env.client.get_model_config(MODEL).config.sequence_batching.state
    assert (state.input_name, state.output_name, list(state.dims)) == ("state", "next", [1])
    assert "sequence" in env.client.get_server_metadata().extensions


@case
def what_was_not_started_is_refused(env: Env) -> None:
    refused = failure(env.stub.ModelInfer, message(env, sequence_id={"int64_param": 99}))
    assert refused.code is grpc.StatusCode.INVALID_ARGUMENT
    assert "sequence 99 of model 'accumulate': expected sequence_start" in refused.message
    ask(env, 1.0, 98, sequence_start=True, sequence_end=True)
    refused = failure(env.stub.ModelInfer, message(env, sequence_id={"int64_param": 98}))
    assert refused.code is grpc.StatusCode.INVALID_ARGUMENT


@case
def a_call_without_a_sequence_starts_from_zeros(env: Env) -> None:
    x = np.array([[2.0]], np.float32)
    for _ in range(2):
        assert env.client.infer(MODEL, env.inputs(x=x)).as_numpy("y").tolist() == [[2.0]]


@case
def a_caller_may_keep_the_state_himself(env: Env) -> None:
    inputs = env.inputs(x=np.array([[2.0]], np.float32), state=np.array([[8.0]], np.float32))
    outputs = [env.triton.InferRequestedOutput(name) for name in ("next", "y")]
    result = env.client.infer(MODEL, inputs, outputs=outputs)
    assert result.as_numpy("y").tolist() == result.as_numpy("next").tolist() == [[6.0]]


@case
def two_sequences_on_a_stream(env: Env) -> None:
    """As in tritonclient's own example of sequences: two of them, all sent before any answer."""
    values = [11.0, 7.0, 5.0, 3.0, 2.0, 0.0, 1.0]
    results: queue.SimpleQueue[Any] = queue.SimpleQueue()
    with env.triton.InferenceServerClient(env.address) as client:
        client.start_stream(lambda result, error: results.put((result, error)))
        for number, value in enumerate(values):
            for sequence, sign in ((1000, 1), (1001, -1)):
                client.async_stream_infer(
                    MODEL,
                    env.inputs(x=np.array([[sign * value]], np.float32)),
                    request_id=f"{sequence}",
                    sequence_id=sequence,
                    sequence_start=number == 0,
                    sequence_end=number == len(values) - 1,
                )
        found: dict[str, list[float]] = {"1000": [], "1001": []}
        for _ in range(2 * len(values)):
            result, error = results.get(timeout=PATIENCE)
            assert error is None
            found[result.get_response().id].append(float(result.as_numpy("y")[0, 0]))
        client.stop_stream()
    assert found["1000"] == expected(values)
    assert found["1001"] == [-value for value in expected(values)]


@case
def wrong_kinds_of_parameters(env: Env) -> None:
    right = {"sequence_id": {"int64_param": 5}}
    for key, value in (("sequence_id", {"uint64_param": 5}), ("sequence_end", {"int64_param": 1})):
        refused = failure(env.stub.ModelInfer, message(env, **{**right, key: value}))
        assert refused.code is grpc.StatusCode.INVALID_ARGUMENT
        assert f"parameter '{key}': expected" in refused.message
