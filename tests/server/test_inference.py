"""A request against a model's contract: what fits becomes work, the rest is refused by name."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, cast

import numpy as np
import pytest

from headrace.batcher.errors import ExecutionFailed
from headrace.inference.tensors import Array
from headrace.server.contract import InputTensor
from headrace.server.errors import DeadlineExceeded, InvalidInput
from headrace.server.exchange import InferenceRequest, InferenceResult
from headrace.server.executors.payload import Key
from headrace.server.inference import _prepare, infer
from headrace.server.models.options import TensorDeclaration
from headrace.server.models.registry import Registry
from headrace.server.models.served import ServedModel
from server import graphs
from server.conftest import Load


class OneModel:
    """A registry of one model, whatever name is asked for."""

    def __init__(self, model: ServedModel) -> None:
        self.model = model

    def get(self, name: str, version: str = "") -> ServedModel:
        return self.model


def floats(name: str, *shape: int) -> InputTensor:
    count = math.prod(shape)
    return InputTensor(name, "FP32", np.arange(count, dtype=np.float32).reshape(shape))


def strings(*values: bytes) -> InputTensor:
    return InputTensor("x", "BYTES", np.array(values, object))


def ask(*inputs: InputTensor, **more: Any) -> InferenceRequest:
    return InferenceRequest("m", "", inputs, **{"arrival": 100.0, **more})


async def answer(model: ServedModel, *inputs: InputTensor, **more: Any) -> InferenceResult:
    return await infer(cast(Registry, OneModel(model)), ask(*inputs, **more))


async def outputs(model: ServedModel, *inputs: InputTensor, **more: Any) -> dict[str, Array]:
    result = await answer(model, *inputs, **more)
    return {spec.name: array for spec, array in result.outputs}


def refusal(model: ServedModel, request: InferenceRequest) -> str:
    with pytest.raises(InvalidInput) as caught:
        _prepare(model, request)
    return str(caught.value)


async def test_an_answer_has_the_outputs_asked_for_in_that_order(load: Load) -> None:
    model = await load(graphs.two_by_two())
    a, b = floats("a", 3, 2), floats("b", 3, 2)
    result = await answer(model, a, b)
    assert [spec.name for spec, _ in result.outputs] == ["total", "difference"]
    assert result.answer.batch.rows == 3
    assert result.model is model
    chosen = await answer(model, b, a, outputs=["difference", "total"])
    assert [spec.name for spec, _ in chosen.outputs] == ["difference", "total"]
    only = await outputs(model, a, b, outputs=["total"])
    assert only["total"].tolist() == (2 * a.array).tolist()
    assert list(only) == ["total"]


@pytest.mark.parametrize(
    ("request_", "said"),
    [
        (ask(), "input 'a' of model 'm' is missing, got no input"),
        (ask(floats("a", 1, 2)), "input 'b' of model 'm' is missing, got 'a'"),
        (
            ask(floats("a", 1, 2), floats("b", 1, 2), floats("c", 1)),
            "unknown input 'c' for model 'm', expected 'a', 'b'",
        ),
        (
            ask(floats("a", 1, 2), floats("b", 1, 2), floats("a", 1, 2)),
            "input 'a' is given more than once for model 'm'",
        ),
        (
            ask(InputTensor("a", "FP64", np.zeros((1, 2))), floats("b", 1, 2)),
            "input 'a' of model 'm': expected datatype FP32 (float32), got FP64 (float64)",
        ),
        (
            ask(floats("a", 1, 2), floats("b", 1, 3)),
            "input 'b' of model 'm': expected shape [-1, 2] (-1: any), got [1, 3]",
        ),
        (
            ask(floats("a", 2), floats("b", 1, 2)),
            "input 'a' of model 'm': expected shape [-1, 2] (-1: any), got [2]; one row of that is "
            "[1, 2]",
        ),
        (
            ask(floats("a", 1, 2), floats("b", 3, 2)),
            "input 'b' of model 'm': expected 1 rows, as input 'a' has, got 3",
        ),
        (
            ask(floats("a", 5, 2), floats("b", 5, 2)),
            "model 'm': expected at most 4 rows (max_batch_size), got 5",
        ),
        (
            ask(floats("a", 1, 2), floats("b", 1, 2), outputs=["sum"]),
            "unknown output 'sum' for model 'm', expected 'total', 'difference'",
        ),
        (
            ask(floats("a", 1, 2), floats("b", 1, 2), outputs=["total", "total"]),
            "output 'total' is asked for more than once",
        ),
    ],
)
async def test_what_does_not_fit_is_named(
    load: Load, request_: InferenceRequest, said: str
) -> None:
    assert refusal(await load(graphs.two_by_two(), max_batch_size=4), request_) == said


async def test_only_a_configured_batch_size_limits_a_request(load: Load) -> None:
    model = await load(graphs.plus(1.0))
    many = model.spec.max_batch_size + 1
    assert (await outputs(model, floats("x", many, 3)))["y"].shape == (many, 3)


async def test_requests_of_one_key_can_share_a_batch_and_others_cannot(load: Load) -> None:
    model = await load(graphs.plus(1.0, ("batch", "n")))
    first = _prepare(model, ask(floats("x", 2, 3)))
    assert (first.rows, first.nbytes, first.solo) == (2, 24, False)
    assert _prepare(model, ask(floats("x", 1, 3))).key == first.key
    assert _prepare(model, ask(floats("x", 2, 4))).key != first.key


async def test_other_outputs_are_another_key(load: Load) -> None:
    model = await load(graphs.two_by_two())
    pair = (floats("a", 1, 2), floats("b", 1, 2))
    every, swapped = _prepare(model, ask(*pair)), _prepare(model, ask(*reversed(pair)))
    assert every.key == swapped.key
    assert _prepare(model, ask(*pair, outputs=["total"])).key != every.key


async def test_rows_that_hold_nothing_are_counted_too(load: Load) -> None:
    model = await load(graphs.plus(1.0, ("batch", "n")))
    said = refusal(model, ask(floats("x", 2**20 + 1, 0)))
    assert said == (
        "model 'm': expected at most 1048576 rows unless max_batch_size says more, got 1048577"
    )


async def test_requests_without_rows_run_alone(load: Load) -> None:
    model = await load(graphs.plus(1.0))
    work = _prepare(model, ask(floats("x", 0, 3)))
    assert (work.solo, work.rows) == (True, 1)
    assert (await outputs(model, floats("x", 0, 3)))["y"].shape == (0, 3)


async def test_what_no_rows_take_says_nothing_of_rows(load: Load) -> None:
    model = await load(graphs.plus(1.0))
    key = _prepare(model, ask(floats("x", 1, 3))).key
    await outputs(model, floats("x", 1, 3))
    costs = model.runner.state.cost
    table = costs.table("cpu", key, 12.0)
    known = table.observations
    for _ in range(20):
        await outputs(model, floats("x", 0, 3))
    assert table.observations == known
    # Both borrowed at one moment: by how much runs are stretched changes with every run.
    small, like_rows = (costs.table("cpu", ("never seen", n), n).seconds(1) for n in (1.0, 12.0))
    assert small == pytest.approx(like_rows * (1 / 12) ** 0.8), (
        "it borrows from rows, though none is nearer in size"
    )


async def test_a_request_may_ask_to_run_alone_and_takes_its_callers_share(load: Load) -> None:
    model = await load(graphs.plus(1.0))
    asked = replace(ask(floats("x", 2, 3)), solo=True, caller="me")
    work = _prepare(model, asked)
    assert (work.solo, work.caller) == (True, "me")


async def test_an_unbatched_model_runs_requests_alone(load: Load) -> None:
    model = await load(graphs.plus(1.0), max_batch_size=0)
    work = _prepare(model, ask(floats("x", 5, 3)))
    assert (work.solo, work.rows) == (True, 1)
    assert (await outputs(model, floats("x", 5, 3)))["y"][4, 2] == 15.0


async def test_an_optional_input_may_be_left_out_and_makes_a_request_run_alone(
    load: Load,
) -> None:
    model = await load(graphs.scaled())
    x, scale = floats("x", 2, 2), InputTensor("scale", "FP32", np.array([10], np.float32))
    assert (await outputs(model, x))["y"].tolist() == [[0, 2], [4, 6]]
    assert (await outputs(model, scale, x))["y"].tolist() == [[0, 10], [20, 30]]
    assert not _prepare(model, ask(x)).solo
    assert _prepare(model, ask(x, scale)).solo


def reshaped(dims: Sequence[int], reshape: Sequence[int]) -> dict[str, Any]:
    return {
        "inputs": (TensorDeclaration("x", "FP32", tuple(dims), tuple(reshape)),),
        "outputs": (TensorDeclaration("y", "FP32", tuple(dims), tuple(reshape)),),
    }


@pytest.mark.parametrize("rows", [1, 3])
async def test_a_reshape_is_the_callers_shape_outside_and_the_graphs_inside(
    load: Load, rows: int
) -> None:
    model = await load(graphs.plus(1.0, ("batch", 2, 3)), **reshaped([6], [2, 3]))
    assert model.spec.batched
    x = floats("x", rows, 6)
    y = (await outputs(model, x))["y"]
    assert y.tolist() == (x.array + 1).tolist()
    assert "expected shape [-1, 6]" in refusal(model, ask(floats("x", rows, 2, 3)))


async def test_a_reshape_to_a_scalar_per_row(load: Load) -> None:
    model = await load(graphs.plus(1.0, ("batch",)), **reshaped([1], []))
    assert (await outputs(model, floats("x", 2, 1)))["y"].tolist() == [[1], [2]]


async def test_a_reshape_of_an_unbatched_model(load: Load) -> None:
    model = await load(graphs.plus(1.0, (2, 3)), max_batch_size=0, **reshaped([3, 2], [2, 3]))
    assert (await outputs(model, floats("x", 3, 2)))["y"].tolist() == [[1, 2], [3, 4], [5, 6]]


async def test_a_reshape_of_a_model_that_turns_out_to_mix_rows(load: Load) -> None:
    model = await load(graphs.centred(), **reshaped([3, 1], [3]))
    assert not model.spec.batched
    y = (await outputs(model, floats("x", 2, 3, 1)))["y"]
    assert y.tolist() == [[[-1.5]] * 3, [[1.5]] * 3]


async def test_a_reshape_that_the_elements_do_not_fit_is_the_callers_error(load: Load) -> None:
    model = await load(graphs.plus(1.0, ("batch", 2, "n")), **reshaped([-1], [2, -1]))
    assert (await outputs(model, floats("x", 1, 4)))["y"].tolist() == [[1, 2, 3, 4]]
    said = refusal(model, ask(floats("x", 1, 5)))
    assert said.startswith("input 'x' of model 'm': ")
    assert "[1, 5]" in said
    assert "[1, 2, -1]" in said


async def test_text_reaches_the_model_and_comes_back(load: Load) -> None:
    model = await load(graphs.identity(("batch",), "BYTES"))
    sent = strings("ß".encode(), b"", b"a\0b")
    assert (await outputs(model, sent))["y"].tolist() == ["ß", "", "a\0b"]


async def test_text_that_is_not_utf8_is_refused_by_element(load: Load) -> None:
    model = await load(graphs.identity(("batch",), "BYTES"))
    assert refusal(model, ask(strings(b"fine", b"ab\xff"))) == (
        "input 'x' of model 'm': expected UTF-8, element 1 is not: invalid start byte at byte 2"
    )


async def test_waiting_text_counts_with_its_length(load: Load) -> None:
    model = await load(graphs.identity(("batch",), "BYTES"))
    assert _prepare(model, ask(strings(b"a" * 1000, b"b" * 500))).nbytes >= 1500


async def deadline(load: Load, request: InferenceRequest, **options: Any) -> float:
    return _prepare(await load(graphs.plus(1.0), **options), request).deadline


X = floats("x", 1, 3)


@pytest.mark.parametrize(
    ("given", "options", "expected"),
    [
        ({}, {}, math.inf),
        ({"remaining": 2.0}, {}, 102.0),
        ({"timeout": 0.5}, {}, 100.5),
        ({"timeout": 0.5, "remaining": 0.25}, {}, 100.25),
        ({"timeout": 0.5, "remaining": 2.0}, {}, 100.5),
        # an objective for those who bring no deadline ...
        ({}, {"latency_objective": 0.2}, 100.2),
        ({"remaining": 0.25}, {"latency_objective": 0.2}, 100.25),
        ({"timeout": 0.5}, {"latency_objective": 0.2}, 100.5),
        # the model's own timeout, which callers may not change ...
        ({}, {"timeout": 1.0}, 101.0),
        ({"timeout": 0.5}, {"timeout": 1.0}, 101.0),
        ({"timeout": 5.0}, {"timeout": 1.0}, 101.0),
        ({"remaining": 0.25}, {"timeout": 1.0}, 100.25),
        # ... unless it lets them, and then only to less
        ({}, {"timeout": 1.0, "override_timeout": True}, 101.0),
        ({"timeout": 0.5}, {"timeout": 1.0, "override_timeout": True}, 100.5),
        ({"timeout": 5.0}, {"timeout": 1.0, "override_timeout": True}, 101.0),
    ],
)
async def test_the_deadline(
    load: Load, given: dict[str, float], options: dict[str, Any], expected: float
) -> None:
    assert await deadline(load, ask(X, **given), **options) == expected


@pytest.mark.parametrize("remaining", [0.0, -1.0])
async def test_a_deadline_that_has_passed_is_said_before_anything_else(
    load: Load, remaining: float
) -> None:
    model = await load(graphs.plus(1.0))
    with pytest.raises(DeadlineExceeded):
        _prepare(model, ask(remaining=remaining))
    assert model.statistics.success.count == 0


@pytest.mark.parametrize(
    ("asked", "default", "expected"), [(0, None, 1), (0, 4, 4), (2, 4, 2), (10**9, None, 100)]
)
async def test_the_priority(load: Load, asked: int, default: int | None, expected: int) -> None:
    model = await load(graphs.plus(1.0), default_priority=default)
    assert _prepare(model, ask(X, priority=asked)).priority == expected


async def test_the_models_own_failure_carries_its_words(load: Load) -> None:
    model = await load(graphs.reshaping([-1, 7]))
    with pytest.raises(ExecutionFailed, match="Reshape"):
        await answer(model, floats("x", 1, 3))


async def test_requests_together_are_each_given_their_own_rows(load: Load) -> None:
    model = await load(graphs.plus(1.0), max_delay=0.0)  # whatever batches cost
    sent = [InputTensor("x", "FP32", np.full((1 + n % 3, 3), n, np.float32)) for n in range(20)]
    results = await asyncio.gather(*(answer(model, tensor) for tensor in sent))
    for tensor, result in zip(sent, results, strict=True):
        assert np.array_equal(result.outputs[0][1], tensor.array + 1)
    assert max(len(result.answer.batch.requests) for result in results) > 1


async def test_cancelling_withdraws_from_the_queue(load: Load) -> None:
    model = await load(graphs.plus(1.0))
    waiting = asyncio.ensure_future(answer(model, X))
    await asyncio.sleep(0)
    assert model.runner.state.queued_requests == 1
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert model.runner.state.queued_requests == 0


async def test_a_request_is_padded_to_its_bucket_and_answered_as_if_alone(load: Load) -> None:
    # Batches of whatever is there: what they cost is not the matter here.
    model = await load(graphs.identity(("batch", "n")), max_delay=0.0)
    assert model.lengths is not None
    model.lengths.buckets.boundaries = [8]
    work = _prepare(model, ask(floats("x", 2, 3)))
    assert isinstance(work.key, Key)
    assert (work.key.inputs, work.payload.length) == ((("x", "FP32", (8,)),), 3)
    assert work.nbytes == 2 * 3 * 4
    results = await asyncio.gather(*(answer(model, floats("x", 2, n)) for n in (3, 8, 5, 9)))
    assert [result.padded_to for result in results] == [8, 0, 8, 0]
    assert {len(result.answer.batch.requests) for result in results} == {3, 1}
    for result, n in zip(results, (3, 8, 5, 9), strict=True):
        assert result.outputs[0][1].tolist() == floats("x", 2, n).array.tolist()


async def test_text_is_padded_too(load: Load) -> None:
    model = await load(graphs.identity(("batch", "n"), "BYTES"), max_delay=0.0)
    assert model.lengths is not None
    model.lengths.buckets.boundaries = [4]
    sent = [np.array([["ß".encode(), b"a"]], object), np.array([[b"c"] * 4], object)]
    results = await asyncio.gather(*(answer(model, InputTensor("x", "BYTES", x)) for x in sent))
    found = [result.outputs[0][1].tolist() for result in results]
    assert found == [[["ß", "a"]], [["c"] * 4]]
    assert len(results[0].answer.batch.requests) == 2


async def test_what_runs_alone_is_not_padded(load: Load) -> None:
    model = await load(graphs.identity(("batch", "n")))
    assert model.lengths is not None
    model.lengths.buckets.boundaries = [8]
    work = _prepare(model, ask(floats("x", 0, 3)))
    assert (work.solo, work.payload.length) == (True, 0)
    assert isinstance(work.key, Key)
    assert work.key.inputs == (("x", "FP32", (3,)),)


async def test_members_of_a_padded_batch_that_failed_run_as_they_came(load: Load) -> None:
    model = await load(graphs.identity(("batch", "n")))
    assert model.lengths is not None
    model.lengths.buckets.boundaries = [8]
    sent = [floats("x", 1, n) for n in (3, 5)]
    works = [_prepare(model, ask(tensor)) for tensor in sent]
    for work in works:
        work.solo = True  # as the scheduler has it after a batch has failed
    answers = await asyncio.gather(*(model.runner.submit(work) for work in works))
    assert [a.result[0].tolist() for a in answers] == [t.array.tolist() for t in sent]
