"""Requests of unequal length on a real session."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from headrace.batcher.executor import Completion
from headrace.batcher.request import Batch, Reason, Request
from headrace.inference.tensors import Array
from headrace.server.executors.onnx import OnnxExecutor
from headrace.server.executors.padding import LengthRule, Mode, Padding
from headrace.server.executors.payload import Key, Payload
from headrace.server.executors.running import run_session
from server.executors.runs import Start, run, session_of
from support import lengths

HALVED = Padding(Mode.ZEROS, {"x": 2}, {"y": [LengthRule(2, 2, 1)]})


def signal(length: int, count: int = 1) -> Array:
    rng = np.random.default_rng(length)
    return rng.standard_normal((count, 2, length)).astype(np.float32)


def unequal(padded: int, *signals: Array) -> Batch:
    """Signals in one batch, those that are shorter than `padded` to be padded to it."""
    key = Key((("x", "FP32", (2, padded)),), ("y",))
    requests = [
        Request(key, Payload([x], x.shape[2] if x.shape[2] < padded else 0), 0.0, len(x))
        for x in signals
    ]
    return Batch(key, requests, "e", Reason.FULL, 0.0)


@pytest.mark.parametrize("sizes", [(3,), (9,), (3, 9), (9, 3, 4), (1, 2, 8)])
async def test_unequal_rows_are_answered_as_if_alone(start: Start, sizes: tuple[int, ...]) -> None:
    model = lengths.convolutions(1, stride=2)
    executor, session = start(model, HALVED), session_of(model)
    for count in (2, 1):  # the buffer is used again, with what was left in it
        signals = [signal(size, count) for size in sizes]
        completion = await run(executor, unequal(9, *signals))
        assert completion.error is None
        for x, (y,) in zip(signals, completion.results, strict=True):
            (expected,) = session.run(None, {"x": x})
            assert y.shape == expected.shape
            np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-6)


async def lengths_run(
    executor: OnnxExecutor, monkeypatch: pytest.MonkeyPatch, batch: Batch
) -> tuple[Completion, list[int]]:
    """The completion, and the lengths with which the session was run for it."""
    seen: list[int] = []

    def spy(session: Any, key: Key, feeds: list[Array], options: Any = None) -> list[Array]:
        seen.append(feeds[0].shape[2])
        return run_session(session, key, feeds, options)

    monkeypatch.setattr("headrace.server.executors.onnx.run_session", spy)
    return await run(executor, batch), seen


async def test_a_solo_request_is_never_padded(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch = unequal(9, signal(4))
    batch.requests[0].solo = True
    executor = start(lengths.convolutions(1, stride=2), HALVED)
    completion, seen = await lengths_run(executor, monkeypatch, batch)
    assert (completion.error, seen) == (None, [4])
    assert completion.results[0][0].shape == (1, 2, 2)


async def test_a_lone_request_that_fails_with_padding_runs_without(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A rule that is wrong stands for whatever may go wrong at a length that nobody asked for."""
    wrong = Padding(Mode.ZEROS, {"x": 2}, {"y": [LengthRule(2, 3, 0)]})
    batch = unequal(9, signal(4))
    executor = start(lengths.convolutions(1, stride=2), wrong)
    completion, seen = await lengths_run(executor, monkeypatch, batch)
    assert (completion.error, seen) == (None, [9, 4])
    assert completion.results[0][0].shape == (1, 2, 2)
    assert batch.requests[0].solo


async def test_several_that_fail_with_padding_are_for_the_scheduler_to_part(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrong = Padding(Mode.ZEROS, {"x": 2}, {"y": [LengthRule(2, 3, 0)]})
    executor = start(lengths.convolutions(1, stride=2), wrong)
    completion, seen = await lengths_run(executor, monkeypatch, unequal(9, signal(4), signal(9)))
    assert seen == [9]
    assert "expected 3 along dimension 2" in str(completion.error)
