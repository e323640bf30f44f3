"""What a model pads to is learned from its answers, and counted."""

from __future__ import annotations

import numpy as np
import pytest

from headrace.batcher.buckets import Company
from headrace.batcher.request import Batch, Reason, Request
from headrace.batcher.state import Limits, State
from headrace.server.executors.padding import LengthRule, Mode, Padding
from headrace.server.executors.payload import Key, Payload
from headrace.server.models.lengths import Lengths
from headrace.server.telemetry.statistics import ModelStatistics

PADDING = Padding(Mode.MASK, {"ids": 1, "mask": 1}, {"y": [LengthRule(1, 1, 0)]})


def key_of(length: int) -> Key:
    inputs = (
        ("ids", "INT64", (length,)),
        ("mask", "INT64", (length,)),
        ("other", "FP32", (4,)),
    )
    return Key(inputs, ("y",))


@pytest.fixture
def state() -> State:
    """Batches take a second, whatever they hold."""
    made = State({"e": "cpu"}, Limits(max_batch_rows=16))
    for length in (10, 20):
        for rows in (1, 2, 4, 8, 16):
            made.table("e", key_of(length), 16.0 * length + 16).observe(rows, 1.0)
    return made


@pytest.fixture
def figures() -> ModelStatistics:
    return ModelStatistics()


@pytest.fixture
def lengths(state: State, figures: ModelStatistics) -> Lengths:
    return Lengths(PADDING, state, "e", figures)


def answered(
    lengths: Lengths, length: int, rows: int = 1, waiting: int = 0, solo: bool = False
) -> int:
    key, own = lengths.bucketed(key_of(length))
    ids, other = np.zeros((rows, length), np.int64), np.zeros((rows, 4), np.float32)
    request = Request(key, Payload([ids, ids, other], own), 0.0, rows, solo=solo)
    batch = Batch(key, [request], "e", Reason.FULL, 0.0, waiting)
    return lengths.answered(request, batch)


def teach(lengths: Lengths, waiting: int) -> None:
    for number in range(500):
        answered(lengths, 10 + 10 * (number % 2), waiting=waiting)


def test_lengths_stay_apart_while_nobody_waits(lengths: Lengths) -> None:
    teach(lengths, waiting=0)
    assert lengths.bucketed(key_of(10)) == (key_of(10), 0)


def test_lengths_that_wait_together_share_a_key(lengths: Lengths) -> None:
    teach(lengths, waiting=7)
    assert lengths.buckets.boundaries == [20]
    assert lengths.bucketed(key_of(10)) == (key_of(20), 10)
    assert lengths.bucketed(key_of(3)) == (key_of(20), 3)
    assert lengths.bucketed(key_of(20)) == (key_of(20), 0)
    assert lengths.bucketed(key_of(21)) == (key_of(21), 0)
    assert lengths.bucketed(key_of(0)) == (key_of(0), 0)


def test_inputs_that_disagree_are_left_as_they_are(lengths: Lengths) -> None:
    teach(lengths, waiting=7)
    odd = Key((("ids", "INT64", (5,)), ("mask", "INT64", (6,))), ("y",))
    assert lengths.bucketed(odd) == (odd, 0)
    request = Request(odd, Payload([np.zeros((1, 5)), np.zeros((1, 6))]), 0.0)
    assert lengths.answered(request, Batch(odd, [request], "e", Reason.FULL, 0.0)) == 0


def test_what_padding_costs_is_counted(lengths: Lengths, figures: ModelStatistics) -> None:
    teach(lengths, waiting=7)
    true, padding = figures.true_elements, figures.padding_elements
    assert answered(lengths, 5, rows=3) == 20
    assert figures.true_elements - true == 2 * 3 * 5  # of two inputs, the third has no length
    assert figures.padding_elements - padding == 2 * 3 * 15
    assert answered(lengths, 20) == 0
    assert figures.padding_elements - padding == 2 * 3 * 15


def test_a_solo_request_teaches_and_counts_nothing(
    lengths: Lengths, figures: ModelStatistics
) -> None:
    assert answered(lengths, 10, solo=True) == 0
    assert figures.true_elements == 0
    assert lengths.buckets.company == Company()


def test_the_rows_of_one_request_are_no_company(lengths: Lengths) -> None:
    for number in range(500):
        answered(lengths, 10 + number % 10, rows=8)
    assert lengths.buckets.company == Company(own=8.0, others=0.0)
    assert lengths.buckets.boundaries == []


def test_costs_that_nobody_knows_pad_nothing(figures: ModelStatistics) -> None:
    ignorant = Lengths(PADDING, State({"e": "cpu"}, Limits()), "e", figures)
    teach(ignorant, waiting=7)
    assert ignorant.buckets.boundaries == []
