"""Answers are kept until their truths come, within bounds."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from headrace.server.quality.answers import Answers, Name


def name(id_: str, identity: str = "") -> Name:
    return Name(identity, id_)


def test_an_answer_is_found_until_it_is_taken() -> None:
    answers = Answers(10, 1 << 20)
    answers.put(name("r"), np.array([3]))
    assert answers.get(name("r")) == [3]
    assert answers.take(name("r")) == [3]
    assert answers.take(name("r")) is None
    assert (len(answers), answers.nbytes) == (0, 0)


def test_ids_are_those_of_one_identity() -> None:
    answers = Answers(10, 1 << 20)
    answers.put(name("r", "one"), np.array([1]))
    answers.put(name("r", "two"), np.array([2]))
    assert answers.get(name("r")) is None
    assert answers.get(name("r", "one")) == [1]


def test_the_oldest_go_first() -> None:
    answers = Answers(2, 1 << 20)
    for number in range(3):
        answers.put(name(str(number)), np.array([number]))
    assert answers.get(name("0")) is None
    assert [answers.get(name(each)) is not None for each in ("1", "2")] == [True, True]


def test_one_that_is_too_large_for_all_of_the_room_is_not_kept() -> None:
    answers = Answers(2, 4096)
    answers.put(name("small"), np.array([1]))
    answers.put(name("large"), np.zeros(1000))
    assert answers.get(name("large")) is None
    assert answers.get(name("small")) == [1]


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 300), st.booleans())))
def test_memory_is_counted_and_bounded(steps: list[tuple[int, int, bool]]) -> None:
    answers = Answers(4, 3000)
    for id_, size, text in steps:
        predicted = np.array([b"x" * size], dtype=object) if text else np.zeros(size, np.int8)
        answers.put(name(str(id_)), predicted)
        assert len(answers) <= 4
        assert answers.nbytes <= 3000
    for id_ in range(6):
        answers.take(name(str(id_)))
    assert (len(answers), answers.nbytes) == (0, 0)
