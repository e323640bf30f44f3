"""Answers of batches formed of mixed callers equal those of ONNX Runtime called directly."""

from __future__ import annotations

import asyncio
import pathlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest

from headrace.client import AsyncClient, InferResult
from support import models, server

Inputs = dict[str, Any]
CALLERS = 200
EXPLAIN = {"headrace_explain": True}


def _floats(*shape: Any, rng: np.random.Generator) -> Any:
    return rng.standard_normal(shape).astype(np.float32)


def _projection(rng: np.random.Generator) -> Inputs:
    return {"x": _floats(rng.integers(1, 6), 8, rng=rng)}


def _sequence(rng: np.random.Generator) -> Inputs:
    return {"x": _floats(rng.integers(1, 4), rng.choice([0, 1, 3, 7]), 5, rng=rng)}


def _arithmetic(rng: np.random.Generator) -> Inputs:
    shape = (int(rng.integers(1, 12)), int(rng.integers(1, 4)))
    return {"a": _floats(*shape, rng=rng), "b": _floats(*shape, rng=rng)}


def _strings(rng: np.random.Generator) -> Inputs:
    words = np.array([f"word {number}" for number in rng.integers(0, 10**9, 3 * 4)], dtype=object)
    return {"x": words[: 3 * (rows := int(rng.integers(1, 5)))].reshape(rows, 3)}


def _bfloat16(rng: np.random.Generator) -> Inputs:
    import ml_dtypes

    return {"x": _floats(rng.integers(1, 4), 3, rng=rng).astype(ml_dtypes.bfloat16)}


def _fixed(rng: np.random.Generator) -> Inputs:
    return {"x": _floats(rng.integers(1, 5), 8, rng=rng)}


def _fixed_mixing(rng: np.random.Generator) -> Inputs:
    return {"x": _floats(3, 4, rng=rng)}


def _mixing(rng: np.random.Generator) -> Inputs:
    return {"x": _floats(rng.integers(1, 6), 4, rng=rng)}


def _quantized(rng: np.random.Generator) -> Inputs:
    return {"x": _floats(rng.integers(1, 6), 4, rng=rng)}


def _nonzero(rng: np.random.Generator) -> Inputs:
    return {"x": _floats(rng.integers(1, 6), 4, rng=rng) * (rng.random((1, 4)) < 0.5)}


def _optional(rng: np.random.Generator) -> Inputs:
    given: Inputs = {"x": _floats(rng.integers(1, 4), 2, rng=rng)}
    if rng.random() < 0.5:
        given["scale"] = _floats(1, rng=rng)
    return given


@dataclass(frozen=True)
class Kind:
    """A model, the inputs that its callers draw, and whether requests may share a run."""

    build: Callable[[], Any]
    draw: Callable[[np.random.Generator], Inputs]
    batches: bool = True
    # A matrix product of many rows may add in another order than that of few.
    tolerance: float = 0.0


KINDS = {
    "projection": Kind(models.projection, _projection, tolerance=1e-5),
    "sequence": Kind(models.sequence_model, _sequence, tolerance=1e-6),
    "arithmetic": Kind(models.arithmetic, _arithmetic),
    "shout": Kind(models.shout, _strings),
    "identity_bf16": Kind(lambda: models.identity("BF16"), _bfloat16),
    "optional": Kind(models.optional_input, _optional),
    "fixed": Kind(lambda: models.projection(rows=6), _fixed, tolerance=1e-5),
    "fixed_mixing": Kind(lambda: models.mixes_rows(3), _fixed_mixing, batches=False),
    "quantized": Kind(models.quantized, _quantized, batches=False),
    "nonzero": Kind(models.nonzero, _nonzero, batches=False),
    "mixes_rows": Kind(models.mixes_rows, _mixing, batches=False),
}


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[server.RunningServer]:
    folder = tmp_path_factory.mktemp("answers")
    for name, kind in KINDS.items():
        model = models.slowed(kind.build()) if kind.batches else kind.build()
        models.write(folder / "models", name, model)
    with server.serving(folder / "log", folder / "models") as found:
        yield found


class Reference:
    """ONNX Runtime, called directly with one request's inputs."""

    def __init__(self, name: str) -> None:
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        options.log_severity_level = 4
        self._name = name
        data = KINDS[name].build().SerializeToString()
        self._session = ort.InferenceSession(data, options, providers=["CPUExecutionProvider"])

    def __call__(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        if self._name == "identity_bf16":  # the Python interface takes no arrays of this type
            return {"y": inputs["x"]}
        names = [node.name for node in self._session.get_outputs()]
        if self._name == "fixed":
            return {"y": self._filled(inputs["x"])}
        return dict(zip(names, self._session.run(names, dict(inputs)), strict=True))

    def _filled(self, x: Any) -> Any:
        """The graph takes six rows: those that nobody sent are zeros here."""
        whole = np.zeros((6, 8), np.float32)
        whole[: len(x)] = x
        return self._session.run(["y"], {"x": whole})[0][: len(x)]


@pytest.mark.parametrize("name", KINDS)
async def test_answers_equal_onnx_runtime(running: server.RunningServer, name: str) -> None:
    kind, reference = KINDS[name], Reference(name)
    rng = np.random.default_rng(7)
    drawn = [kind.draw(rng) for _ in range(CALLERS)]
    async with AsyncClient(running.grpc) as client:
        (before,) = await client.model_statistics(name)

        async def ask(number: int, inputs: Inputs) -> InferResult:
            return await client.infer(name, inputs, parameters=EXPLAIN, request_id=f"{number}")

        results = await asyncio.gather(*(ask(n, inputs) for n, inputs in enumerate(drawn)))
        (after,) = await client.model_statistics(name)
    for number, (inputs, result) in enumerate(zip(drawn, results, strict=True)):
        assert result.id == str(number)
        expected = reference(inputs)
        assert set(result) == set(expected)
        for output, array in expected.items():
            _assert_close(result[output], array, kind.tolerance)
    shared = [int(result.parameters["headrace_batch_requests"]) for result in results]
    if kind.batches:
        assert max(shared) > 1, "nothing was batched, so nothing was shown"
        assert after.execution_count - before.execution_count < CALLERS
    else:
        assert set(shared) == {1}
        assert after.execution_count - before.execution_count == CALLERS
    rows = sum(len(next(iter(inputs.values()))) for inputs in drawn) if kind.batches else CALLERS
    assert after.inference_count - before.inference_count == rows
    answered = after.inference_stats.success.count - before.inference_stats.success.count
    assert answered == CALLERS


def _assert_close(actual: Any, expected: Any, tolerance: float) -> None:
    if expected.dtype == object:  # ONNX Runtime gives text, the protocol bytes
        expected = np.vectorize(str.encode, otypes=[object])(expected)
    assert (actual.shape, actual.dtype) == (expected.shape, expected.dtype)
    if tolerance:
        np.testing.assert_allclose(actual, expected, rtol=tolerance, atol=tolerance)
    else:
        np.testing.assert_array_equal(actual, expected)


async def test_lengths_do_not_flush_each_other(running: server.RunningServer) -> None:
    """Requests of other lengths that wait beside each other leave each length its company."""
    async with AsyncClient(running.grpc) as client:

        async def ask(length: int) -> tuple[int, int]:
            x = np.full((1, length, 5), length, np.float32)
            result = await client.infer("sequence", {"x": x}, parameters=EXPLAIN)
            assert result["y"].shape == (1, length, 5)
            return length, int(result.parameters["headrace_batch_requests"])

        found = await asyncio.gather(*(ask(1 + number % 4) for number in range(CALLERS)))
    for length in range(1, 5):
        assert max(size for asked, size in found if asked == length) > 1


async def test_outputs_asked_for_are_part_of_the_key(running: server.RunningServer) -> None:
    rng = np.random.default_rng(3)
    choices: list[list[str] | None] = [None, ["total"], ["doubled", "total"], ["difference"]]
    async with AsyncClient(running.grpc) as client:

        async def ask(number: int) -> None:
            inputs = {"a": _floats(1, 2, rng=rng), "b": _floats(1, 2, rng=rng)}
            wanted = choices[number % len(choices)]
            result = await client.infer("arithmetic", inputs, outputs=wanted)
            assert list(result) == (wanted or ["total", "difference", "doubled"])
            a, b = inputs["a"], inputs["b"]
            answers = {"total": a + b, "difference": a - b, "doubled": a + a}
            for name, array in result.items():
                np.testing.assert_array_equal(array, answers[name])

        await asyncio.gather(*(ask(number) for number in range(CALLERS)))


def test_a_batch_stays_within_its_cap(tmp_path: pathlib.Path) -> None:
    """A request of more rows than the cap runs alone; no company makes a batch larger than it."""
    config = "instance_group [{ count: 1 }]\n"
    models.write(tmp_path / "models", "m", models.slowed(models.scaled()), config=config)

    async def main(address: str) -> tuple[int, list[int], list[InferResult]]:
        async with AsyncClient(address) as client:
            cap = (await client.model_config("m")).max_batch_size
            rng = np.random.default_rng(5)
            sizes = [int(size) for size in rng.integers(1, cap * 3 // 2, 150)]
            inputs = [{"x": np.full((size, 1), size, np.float32)} for size in sizes]
            calls = (client.infer("m", given, parameters=EXPLAIN) for given in inputs)
            return cap, sizes, await asyncio.gather(*calls)

    with server.serving(tmp_path / "log", tmp_path / "models") as running:
        cap, sizes, results = asyncio.run(main(running.grpc))
    assert max(int(result.parameters["headrace_batch_requests"]) for result in results) > 1
    for size, result in zip(sizes, results, strict=True):
        batch = int(result.parameters["headrace_batch_size"])
        assert batch == size if size > cap else batch <= cap
        assert (result["y"] == 2 * size).all()
