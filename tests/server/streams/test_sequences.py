"""Sequences: state by id, in order, for as long as somebody continues them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pytest

from headrace.server.contract import InputTensor
from headrace.server.errors import InvalidInput, StreamRefused
from headrace.server.exchange import InferenceRequest, SequencePlace
from headrace.server.models.served import ServedModel
from headrace.server.streams.budget import StateBudget
from headrace.server.streams.sequences import Sequences
from server import graphs
from server.conftest import Load
from server.streams.conftest import STATES, registry
from support import models

BYTES = 2 * 3 * 4  # of one row's state


@pytest.fixture
async def model(load: Load) -> ServedModel:
    return await load(models.recurrent(), states=STATES)


@pytest.fixture
def budget() -> StateBudget:
    return StateBudget(10 * BYTES)


@pytest.fixture
def sequences(model: ServedModel, budget: StateBudget) -> Iterator[Sequences]:
    made = Sequences(registry(model), budget, 3600.0)
    yield made
    made.close()
    assert budget.used == 0


def window(seed: int, rows: int = 1) -> Any:
    return np.random.default_rng(seed).standard_normal((rows, 4)).astype(np.float32)


def ask(x: Any, place: SequencePlace | None, *more: InputTensor, **given: Any) -> InferenceRequest:
    inputs = [InputTensor("x", "FP32", x), *more]
    return InferenceRequest("m", "", inputs, time.monotonic(), sequence=place, **given)


async def answer(sequences: Sequences, *arguments: Any) -> Any:
    result = await sequences.infer(ask(*arguments))
    assert [spec.name for spec, _ in result.outputs] == ["y"]
    return result.outputs[0][1]


async def loop(model: ServedModel, xs: Sequence[Any]) -> list[Any]:
    """The answers with the state carried by hand."""
    other = Sequences(registry(model), StateBudget(0), 1.0)
    state = np.zeros((2, len(xs[0]), 3), np.float32)
    found = []
    for x in xs:
        given = InputTensor("state", "FP32", state)
        result = await other.infer(ask(x, None, given, outputs=["y", "stateN"]))
        (_, y), (_, state) = result.outputs
        found.append(y)
    return found


async def test_state_goes_from_one_request_to_the_next(
    model: ServedModel, sequences: Sequences, budget: StateBudget
) -> None:
    xs = [window(seed) for seed in range(4)]
    expected = await loop(model, xs)
    for number, x in enumerate(xs):
        place = SequencePlace("s", number == 0, number == 3)
        np.testing.assert_allclose(await answer(sequences, x, place), expected[number], atol=1e-6)
        assert budget.used == (0 if number == 3 else BYTES)
    assert len(sequences) == 0


async def test_a_request_without_a_sequence_starts_from_zeros(sequences: Sequences) -> None:
    first = await answer(sequences, window(0), None)
    again = await answer(sequences, window(0), None)
    np.testing.assert_array_equal(first, again)
    assert len(sequences) == 0


async def test_requests_of_a_sequence_that_come_at_once_run_in_order(
    model: ServedModel, sequences: Sequences
) -> None:
    """And those of other sequences between them; an id of 1 is not one of "1"."""
    ids: list[int | str] = [1, "1", 2]
    xs = {id_: [window(10 * at + step) for step in range(20)] for at, id_ in enumerate(ids)}
    waiting: dict[int | str, list[Any]] = {id_: [] for id_ in ids}
    for step in range(20):
        for id_ in ids:
            place = SequencePlace(id_, start=step == 0)
            waiting[id_].append(asyncio.ensure_future(answer(sequences, xs[id_][step], place)))
    for id_ in ids:
        found = await asyncio.gather(*waiting[id_])
        for one, expected in zip(found, await loop(model, xs[id_]), strict=True):
            np.testing.assert_allclose(one, expected, atol=1e-6)


async def test_a_start_begins_anew(sequences: Sequences) -> None:
    first = await answer(sequences, window(0), SequencePlace(5, start=True))
    await answer(sequences, window(1), SequencePlace(5))
    again = await answer(sequences, window(0), SequencePlace(5, start=True))
    np.testing.assert_array_equal(first, again)


async def test_a_start_may_bring_its_state(model: ServedModel, sequences: Sequences) -> None:
    state = np.ones((2, 1, 3), np.float32)
    given = InputTensor("state", "FP32", state)
    brought = await answer(sequences, window(0), SequencePlace(1, start=True), given)
    plain = await answer(sequences, window(0), SequencePlace(2, start=True))
    assert np.abs(brought - plain).max() > 0.01
    with pytest.raises(InvalidInput, match="expected only with sequence_start"):
        await answer(sequences, window(0), SequencePlace(1), given)


@pytest.mark.parametrize("end", [False, True])
async def test_what_was_not_started(sequences: Sequences, end: bool) -> None:
    with pytest.raises(InvalidInput, match="sequence 9 of model 'm': expected sequence_start"):
        await answer(sequences, window(0), SequencePlace(9, end=end))
    assert len(sequences) == 0


async def test_a_failed_request_leaves_the_sequence_as_it_was(
    model: ServedModel, sequences: Sequences
) -> None:
    xs = [window(0), window(1)]
    expected = await loop(model, xs)
    await answer(sequences, xs[0], SequencePlace("s", start=True))
    with pytest.raises(InvalidInput, match="expected shape"):
        await answer(sequences, np.zeros((1, 7), np.float32), SequencePlace("s"))
    with pytest.raises(InvalidInput, match="the sequence has 1 rows, got 2"):
        await answer(sequences, window(0, rows=2), SequencePlace("s"))
    with pytest.raises(InvalidInput, match="expected shape"):
        await answer(sequences, np.zeros((1, 7), np.float32), SequencePlace("s", start=True))
    np.testing.assert_allclose(
        await answer(sequences, xs[1], SequencePlace("s")), expected[1], atol=1e-6
    )


async def test_a_sequence_may_have_several_rows(model: ServedModel, sequences: Sequences) -> None:
    xs = [window(seed, rows=3) for seed in range(3)]
    expected = await loop(model, xs)
    for number, x in enumerate(xs):
        found = await answer(sequences, x, SequencePlace("s", number == 0))
        np.testing.assert_allclose(found, expected[number], atol=1e-6)


async def test_the_memory_of_states_is_bounded(sequences: Sequences, budget: StateBudget) -> None:
    for id_ in range(1, 11):
        await answer(sequences, window(0), SequencePlace(id_, start=True))
    with pytest.raises(StreamRefused, match=f"room for {BYTES} bytes of state, {10 * BYTES} of"):
        await answer(sequences, window(0), SequencePlace(11, start=True))
    assert len(sequences) == 10
    await answer(sequences, window(0), SequencePlace(1, end=True))
    await answer(sequences, window(0), SequencePlace(11, start=True))
    assert budget.used == 10 * BYTES


async def test_an_idle_sequence_is_forgotten(load: Load, budget: StateBudget) -> None:
    model = await load(models.recurrent(), states=STATES, max_sequence_idle=0.001)
    sequences = Sequences(registry(model), budget, 3600.0)
    await answer(sequences, window(0), SequencePlace(1, start=True))
    for _ in range(10_000):
        if not len(sequences):
            break
        await asyncio.sleep(0.001)
    assert budget.used == 0
    with pytest.raises(InvalidInput, match="was idle for too long"):
        await answer(sequences, window(0), SequencePlace(1))


async def test_a_model_without_state_does_not_care(load: Load, budget: StateBudget) -> None:
    model = await load(graphs.identity(("batch", 4)))
    sequences = Sequences(registry(model), budget, 1.0)
    await answer(sequences, window(0), SequencePlace(1))
    assert len(sequences) == 0


async def test_a_cancelled_request_gives_its_turn_away(sequences: Sequences) -> None:
    await answer(sequences, window(0), SequencePlace(1, start=True))
    tasks = [
        asyncio.ensure_future(answer(sequences, window(seed), SequencePlace(1)))
        for seed in range(3)
    ]
    await asyncio.sleep(0)
    tasks[1].cancel()
    found = await asyncio.gather(*tasks, return_exceptions=True)
    assert isinstance(found[1], asyncio.CancelledError)
    assert [isinstance(one, BaseException) for one in found] == [False, True, False]


async def test_a_sequence_belongs_to_who_began_it(model: ServedModel, sequences: Sequences) -> None:
    """Two who use one id share nothing, and nobody goes on with another's."""
    xs = {who: [window(10 * at + step) for step in range(3)] for at, who in enumerate(("a", "b"))}
    expected = {who: await loop(model, xs[who]) for who in xs}

    async def answer_to(who: str, step: int, **flags: bool) -> Any:
        request = ask(xs[who][step], SequencePlace(7, **flags), identity=who)
        return (await sequences.infer(request)).outputs[0][1]

    for step in range(2):
        for who in xs:
            found = await answer_to(who, step, start=step == 0)
            np.testing.assert_allclose(found, expected[who][step], atol=1e-6)
    with pytest.raises(InvalidInput, match="expected sequence_start"):
        await sequences.infer(ask(window(0), SequencePlace(7), identity="c"))
    await answer_to("b", 0, start=True, end=True)
    found = await answer_to("a", 2, end=True)
    np.testing.assert_allclose(found, expected["a"][2], atol=1e-6)
    assert len(sequences) == 0
