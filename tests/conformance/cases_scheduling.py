"""Full queues, deadlines, cancellation, failures: what depends on when, without a clock."""

from __future__ import annotations

import struct
import threading
from typing import Any

import grpc

from conformance.cases import PATIENCE, Cases, Env, failure, failure_of, wait_for

case = Cases()


def _y(answer: Any) -> float:
    return float(struct.unpack("<f", answer.raw_output_contents[0])[0])


def _explained(request: Any) -> Any:
    request.parameters["headrace_explain"].bool_param = True
    return request


@case
def queue_full(env: Env) -> None:
    model = "lab_bounded"  # two may wait
    with env.occupied(model):
        waiting = [env.stub.ModelInfer.future(env.lab(model, value=v)) for v in (1, 2)]
        env.until_queued(model, 2)
        found = failure(lambda: env.stub.ModelInfer(env.lab(model)))
        assert found.code == grpc.StatusCode.RESOURCE_EXHAUSTED, found
        assert found.reason == "OVERLOADED"
        assert found.retry_after is not None
        assert found.retry_after > 0
        assert "2" in found.message
    assert [_y(call.result(PATIENCE)) for call in waiting] == [3, 5]
    assert _y(env.stub.ModelInfer(env.lab(model, value=3))) == 7


@case
def deadline_passes_in_the_queue(env: Env) -> None:
    model = "lab_deadlines"
    with env.occupied(model):
        before = env.statistics(model)
        found = failure(lambda: env.stub.ModelInfer(env.lab(model), timeout=0.2))
        assert found.code == grpc.StatusCode.DEADLINE_EXCEEDED
        failed = before.inference_stats.fail.count + 1
        wait_for(lambda: env.statistics(model).inference_stats.fail.count == failed, "its end")
    # Now the executor is free. What has expired must not be what it takes.
    assert _y(env.stub.ModelInfer(env.lab(model, value=4))) == 9
    after = env.statistics(model)
    assert after.inference_count == before.inference_count + 1
    assert after.execution_count == before.execution_count + 1


@case
def timeout_parameter_passes_in_the_queue(env: Env) -> None:
    """Triton's timeout counts for the queue alone; nothing but the server knows of it."""
    model = "lab_deadlines"
    request = env.lab(model)
    request.parameters["timeout"].int64_param = 50_000
    with env.occupied(model):
        before = env.statistics(model)
        found = failure(lambda: env.stub.ModelInfer(request))
        assert found.code == grpc.StatusCode.DEADLINE_EXCEEDED
        assert found.reason == "EXPIRED_IN_QUEUE"
        assert "ms in the queue" in found.message
    wait_for(lambda: env.metric("headrace_executors_busy", model) == 0, "idle")
    assert env.statistics(model).execution_count == before.execution_count
    # With room it is in time.
    request.parameters["timeout"].int64_param = 20_000_000
    assert _y(env.stub.ModelInfer(request)) == 3


@case
def timeout_of_tritonclient(env: Env) -> None:
    import numpy as np
    from tritonclient.utils import InferenceServerException

    zero = np.zeros(1, np.int64)
    inputs = env.inputs(x=np.ones((1, 1), np.float32), steps=zero, index=zero)
    with env.occupied("lab_deadlines"):
        for how in ({"timeout": 50_000}, {"client_timeout": 0.05}):
            try:
                env.client.infer("lab_deadlines", inputs, **how)
            except InferenceServerException as error:
                assert error.status() == "StatusCode.DEADLINE_EXCEEDED", how
            else:
                raise AssertionError(f"this was answered: {how}")


@case
def cancelled_in_the_queue(env: Env) -> None:
    model = "lab"
    with env.occupied(model):
        before = env.statistics(model)
        leaving = env.stub.ModelInfer.future(env.lab(model))
        env.until_queued(model, 1)
        assert leaving.cancel()
        env.until_queued(model, 0)
        assert leaving.code() == grpc.StatusCode.CANCELLED
    wait_for(lambda: env.metric("headrace_executors_busy", model) == 0, "idle")
    assert env.statistics(model).execution_count == before.execution_count


@case
def cancelled_while_it_runs(env: Env) -> None:
    """Nobody waits for the batch any more: it is stopped long before its end, and others run."""
    with env.occupied("lab"):
        pass
    wait_for(lambda: env.metric("headrace_executors_busy", "lab") == 0, "idle")
    assert _y(env.stub.ModelInfer(env.lab("lab", value=5))) == 11


@case
def a_member_that_leaves_does_not_stop_its_batch(env: Env) -> None:
    model = "lab_leaving"
    with env.occupied(model):
        # Long enough to be cancelled while it runs, and short enough to be waited for.
        staying = env.stub.ModelInfer.future(_explained(env.lab(model, steps=60_000, value=6)))
        env.until_queued(model, 1)
        leaving = env.stub.ModelInfer.future(env.lab(model))
        env.until_queued(model, 2)
    wait_for(lambda: env.metric("headrace_queue_requests", model) == 0, "dispatch")
    leaving.cancel()
    answer = staying.result(PATIENCE)
    assert _y(answer) == 13
    assert answer.parameters["headrace_batch_requests"].int64_param == 2


@case
def a_failing_member_fails_alone(env: Env) -> None:
    """Good and bad rows wait together in one batch. It fails; its halves are run again apart."""
    model = "lab_failing"
    before = env.statistics(model)
    with env.occupied(model):
        calls = []
        for number, index in enumerate((1, 2, 99, 3)):
            request = _explained(env.lab(model, index=index, value=number))
            calls.append(env.stub.ModelInfer.future(request))
            env.until_queued(model, number + 1)
    outcomes = [call.exception(PATIENCE) for call in calls]
    assert [outcome is None for outcome in outcomes] == [True, True, False, True]
    found = failure_of(outcomes[2])
    assert (found.code, found.reason) == (grpc.StatusCode.INTERNAL, "EXECUTION_FAILED")
    assert "indices element out of data bounds" in found.message
    for number in (0, 1, 3):
        answer = calls[number].result()
        assert _y(answer) == 2 * number + 1
        reason = "solo" if number == 3 else "half of a batch that failed"
        assert answer.parameters["headrace_reason"].string_param == reason
        assert answer.parameters["headrace_batch_requests"].int64_param <= (1 if number == 3 else 2)
    after = env.statistics(model)
    assert after.inference_count == before.inference_count + 3
    assert after.execution_count - before.execution_count in (
        2,
        3,
    )  # a good half is one run, or two
    # The bad one, and the one that kept the executor.
    assert after.inference_stats.fail.count == before.inference_stats.fail.count + 2


@case
def waiting_requests_share_a_batch(env: Env) -> None:
    model = "lab_sharing"
    with env.occupied(model):
        calls = []
        for number in range(5):
            calls.append(env.stub.ModelInfer.future(_explained(env.lab(model, value=number))))
            env.until_queued(model, number + 1)
    answers = [call.result(PATIENCE) for call in calls]
    assert [_y(answer) for answer in answers] == [1, 3, 5, 7, 9]
    sizes = {answer.parameters["headrace_batch_requests"].int64_param for answer in answers}
    assert max(sizes) > 1, sizes  # five where this machine is calm


@case
def higher_priority_overtakes(env: Env) -> None:
    """Shapes differ, so they cannot share a batch: the order of the runs shows."""
    model = "lab"
    done: list[str] = []
    lock = threading.Lock()

    def note(name: str) -> Any:
        def add(_: Any) -> None:
            with lock:
                done.append(name)

        return add

    with env.occupied(model):
        calls = []
        for name, width, priority in (("low", 1, 5), ("default", 2, 0), ("high", 3, 1)):
            request = env.message(
                model,
                ("x", "FP32", [1, width], b"\0\0\0\0" * width),
                ("steps", "INT64", [1], struct.pack("<q", 20_000)),
                ("index", "INT64", [1], struct.pack("<q", 0)),
            )
            request.parameters["priority"].int64_param = priority
            call = env.stub.ModelInfer.future(request)
            call.add_done_callback(note(name))
            calls.append(call)
            env.until_queued(model, len(calls))
    for call in calls:
        call.result(PATIENCE)
    wait_for(lambda: len(done) == 3, "three answers")
    # 0 leaves the level to the model, which has none: the highest. So arrival decides there.
    assert done == ["default", "high", "low"]


@case
def unloading_answers_what_was_accepted(env: Env) -> None:
    model = "lab_unloaded"
    with env.occupied(model) as blocker:
        accepted = env.stub.ModelInfer.future(env.lab(model, value=7))
        env.until_queued(model, 1)
        unload = env.stub.RepositoryModelUnload.future(
            env.pb.RepositoryModelUnloadRequest(model_name=model)
        )
        wait_for(lambda: not env.client.is_model_ready(model), "UNLOADING")
        states = {m.name: m.state for m in env.client.get_model_repository_index().models}
        assert states[model] == "UNLOADING"
        found = failure(lambda: env.stub.ModelInfer(env.lab(model)))
        assert (found.code, found.reason) == (grpc.StatusCode.UNAVAILABLE, "MODEL_UNAVAILABLE")
        assert "UNLOADING" in found.message
        assert not unload.done()
        blocker.cancel()
        assert _y(accepted.result(PATIENCE)) == 15
    unload.result(PATIENCE)
    found = failure(lambda: env.stub.ModelInfer(env.lab(model)))
    assert found.code == grpc.StatusCode.UNAVAILABLE
    env.client.load_model(model)
    assert _y(env.stub.ModelInfer(env.lab(model, value=8))) == 17


@case
def an_unload_goes_on_when_its_caller_leaves(env: Env) -> None:
    model = "lab_unloaded"

    def state() -> str:
        models = env.client.get_model_repository_index().models
        return {m.name: str(m.state) for m in models}[model]

    with env.occupied(model):
        unload = env.stub.RepositoryModelUnload.future(
            env.pb.RepositoryModelUnloadRequest(model_name=model)
        )
        wait_for(lambda: state() == "UNLOADING", "UNLOADING")
        assert unload.cancel()
    wait_for(lambda: state() == "UNAVAILABLE", "UNAVAILABLE")
    env.client.load_model(model)
    assert _y(env.stub.ModelInfer(env.lab(model, value=9))) == 19
