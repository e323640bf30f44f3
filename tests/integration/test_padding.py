"""Requests of unequal length in one batch, and what must never be: a changed answer."""

from __future__ import annotations

import asyncio
import pathlib
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest

from headrace.client import AsyncClient, InferResult
from support import lengths, models, server

Inputs = dict[str, Any]
CALLERS = 150
EXPLAIN = {"headrace_explain": True}
LONGEST = 40


def _text(length: int, rng: np.random.Generator) -> Inputs:
    rows = int(rng.integers(1, 3))
    mask = np.ones((rows, length), np.int64)
    mask[0, 1 + int(rng.integers(length)) :] = 0
    ids = rng.integers(0, lengths.VOCABULARY, (rows, length))
    return {"input_ids": ids, "attention_mask": mask}


def _steps(length: int, rng: np.random.Generator, width: int = 3) -> Inputs:
    return {"x": rng.standard_normal((int(rng.integers(1, 3)), length, width)).astype(np.float32)}


def _pairs(length: int, rng: np.random.Generator) -> Inputs:
    return _steps(length, rng, 2)


def _signal(length: int, rng: np.random.Generator) -> Inputs:
    return {"x": rng.standard_normal((1, 2, length)).astype(np.float32)}


@dataclass(frozen=True)
class Kind:
    """A model, the inputs that its callers draw, and how unequal lengths are padded, if at all."""

    build: Callable[[], Any]
    draw: Callable[[int, np.random.Generator], Inputs]
    padding: str = ""


KINDS = {
    "text": Kind(lengths.text, _text, "mask"),
    "forward": Kind(lengths.recurrent, _steps, "zeros"),
    "backward": Kind(lambda: lengths.recurrent("reverse"), _steps),
    "both_ways": Kind(lambda: lengths.recurrent("bidirectional"), _steps),
    "softmax": Kind(lengths.softmax_over_time, _pairs),
    "halved": Kind(lambda: lengths.convolutions(1, stride=2), _signal, "zeros"),
    "quartered": Kind(lambda: lengths.convolutions(2, stride=2), _signal),
    "continued": Kind(lambda: lengths.convolutions(1, "edge"), _signal, "edge"),
}


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[server.RunningServer]:
    folder = tmp_path_factory.mktemp("padding")
    for name, kind in KINDS.items():
        models.write(folder / "models", name, models.slowed(kind.build()))
    models.write(folder / "models", "off", models.slowed(lengths.text()), toml='padding = "off"')
    with server.serving(folder / "log", folder / "models") as found:
        yield found


class Reference:
    """ONNX Runtime, called directly with one request's inputs."""

    def __init__(self, name: str) -> None:
        data = KINDS[name].build().SerializeToString()
        self._session = ort.InferenceSession(data, providers=["CPUExecutionProvider"])

    def __call__(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        names = [node.name for node in self._session.get_outputs()]
        return dict(zip(names, self._session.run(names, dict(inputs)), strict=True))


def _length(inputs: Inputs) -> int:
    first = next(iter(inputs.values()))
    return int(first.shape[1] if first.shape[1] != 2 or first.ndim == 2 else first.shape[2])


async def _ask_all(
    client: AsyncClient, name: str, drawn: list[Inputs], explain: bool = True
) -> list[InferResult]:
    parameters = EXPLAIN if explain else {}
    calls = (client.infer(name, inputs, parameters=parameters) for inputs in drawn)
    return await asyncio.gather(*calls)


@pytest.mark.parametrize("name", KINDS)
async def test_unequal_lengths_together_are_answered_as_if_alone(
    running: server.RunningServer, name: str
) -> None:
    kind, reference = KINDS[name], Reference(name)
    rng = np.random.default_rng(11)
    drawn = [kind.draw(int(n), rng) for n in rng.integers(1, LONGEST, CALLERS)]
    padded = []
    async with AsyncClient(running.grpc) as client:
        for _ in range(3):  # what is learned in one round is used in the next
            results = await _ask_all(client, name, drawn)
            for inputs, result in zip(drawn, results, strict=True):
                expected = reference(inputs)
                for output, array in expected.items():
                    assert result[output].shape == array.shape
                    np.testing.assert_allclose(result[output], array, rtol=1e-4, atol=1e-5)
            padded += [r for r in results if "headrace_padded_to" in r.parameters]
    if not kind.padding:
        assert not padded
        return
    assert max(int(r.parameters["headrace_batch_requests"]) for r in padded) > 1
