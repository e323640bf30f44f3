"""Requests of unequal length in one batch, and what must never be: a changed answer."""

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
    models.write(folder / "models", "metered", models.slowed(lengths.recurrent()))
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


async def _ask_all(
    client: AsyncClient, name: str, drawn: list[Inputs], **parameters: bool
) -> list[InferResult]:
    calls = (client.infer(name, given, parameters=EXPLAIN | parameters) for given in drawn)
    return await asyncio.gather(*calls)


def _draw(name: str, count: int = CALLERS) -> tuple[list[int], list[Inputs]]:
    rng = np.random.default_rng(11)
    drawn = [int(n) for n in rng.integers(1, LONGEST, count)]
    return drawn, [KINDS[name].draw(n, rng) for n in drawn]


@pytest.mark.parametrize("name", KINDS)
async def test_unequal_lengths_together_are_answered_as_if_alone(
    running: server.RunningServer, name: str
) -> None:
    kind, reference = KINDS[name], Reference(name)
    own, drawn = _draw(name)
    padded = []
    async with AsyncClient(running.grpc) as client:
        for _ in range(3):  # what is learned in one round is used in the next
            results = await _ask_all(client, name, drawn)
            for length, inputs, result in zip(own, drawn, results, strict=True):
                _assert_equal(result, reference(inputs))
                if (to := int(result.parameters.get("headrace_padded_to", 0))) != 0:
                    assert to > length
                    padded.append(int(result.parameters["headrace_batch_requests"]))
    if kind.padding:
        assert max(padded) > 1, "nothing was padded together, so nothing was shown"
    else:
        assert not padded


def _assert_equal(result: InferResult, expected: Mapping[str, Any]) -> None:
    assert set(result) == set(expected)
    for output, array in expected.items():
        assert result[output].shape == array.shape
        np.testing.assert_allclose(result[output], array, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", KINDS)
async def test_the_verdict_is_part_of_the_configuration(
    running: server.RunningServer, name: str
) -> None:
    async with AsyncClient(running.grpc) as client:
        parameters = (await client.model_config(name)).parameters
    if KINDS[name].padding:
        assert parameters["headrace_padding"].string_value == KINDS[name].padding
        assert "headrace_unpadded_because" not in parameters
    else:
        assert "headrace_padding" not in parameters
        assert "changes output 'y'" in parameters["headrace_unpadded_because"].string_value


def test_the_verdict_is_in_the_log(running: server.RunningServer) -> None:
    said = {name: [r["message"] for r in running.log() if f"model {name} " in r["message"]]
            for name in ("text", "softmax")}  # fmt: skip
    assert any("unequal lengths padded by mask" in text for text in said["text"])
    assert any("unequal lengths kept apart, because" in text for text in said["softmax"])


def _elements(running: server.RunningServer, name: str, kind: str) -> float:
    """What the metric of padding counts so far; 0 while it is not there."""
    _, text = running.get("/metrics")
    for line in text.splitlines():
        series, _, value = line.rpartition(" ")
        wanted = (f'model="{name}"', f'kind="{kind}"')
        if series.startswith("headrace_padding_elements_total{") and all(
            label in series for label in wanted
        ):
            return float(value)
    return 0.0


async def test_waste_is_reported_and_a_lone_caller_causes_none(
    running: server.RunningServer,
) -> None:
    own, drawn = _draw("forward")
    true, padding = 0, 0
    async with AsyncClient(running.grpc) as client:
        for inputs in drawn:  # one after the other
            result = await client.infer("metered", inputs, parameters=EXPLAIN)
            assert "headrace_padded_to" not in result.parameters
            true += inputs["x"].size
        assert _elements(running, "metered", "true") == true
        assert _elements(running, "metered", "padding") == 0
        for _ in range(3):
            for length, inputs, result in zip(
                own, drawn, await _ask_all(client, "metered", drawn), strict=True
            ):
                to = int(result.parameters.get("headrace_padded_to", length))
                true += inputs["x"].size
                padding += inputs["x"].size // length * (to - length)
    assert padding > 0
    assert _elements(running, "metered", "true") == true
    assert _elements(running, "metered", "padding") == padding


async def test_padding_that_is_turned_off(running: server.RunningServer) -> None:
    reference = Reference("text")
    _, drawn = _draw("text")
    async with AsyncClient(running.grpc) as client:
        parameters = (await client.model_config("off")).parameters
        because = parameters["headrace_unpadded_because"].string_value
        assert because == 'the configuration says padding = "off"'
        for _ in range(2):
            for inputs, result in zip(drawn, await _ask_all(client, "off", drawn), strict=True):
                assert "headrace_padded_to" not in result.parameters
                _assert_equal(result, reference(inputs))
    assert _elements(running, "off", "true") == 0


def test_inspect_says_how_lengths_are_treated(tmp_path: pathlib.Path) -> None:
    models.write(tmp_path, "halved", lengths.convolutions(1, stride=2))
    models.write(tmp_path, "softmax", lengths.softmax_over_time())
    said = " ".join(server.run("inspect", tmp_path).stdout.split())
    assert "unequal lengths: padded by zeros; rows alone and padded agree within" in said
    assert "dimension 2 of y: (length +1) // 2" in said
    assert "unequal lengths: not padded: zeros at the end changes output 'y'" in said
