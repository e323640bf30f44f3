"""Rows are filled up behind their end, and answers cut back to what is theirs."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from headrace.server.executors.padding import LengthRule, Mode, Padding

PADDING = Padding(Mode.ZEROS, {"x": 2}, {"y": [LengthRule(2, 2, 1)], "z": []})


def filled(mode: Mode, source: Any, length: int) -> list[Any]:
    target = np.full((*source.shape[:2], length), 9).astype(source.dtype)
    Padding(mode, {"x": 2}, {}).fill("x", target, source)
    return list(target.tolist())


@pytest.mark.parametrize(
    ("mode", "behind"), [(Mode.ZEROS, [0, 0]), (Mode.MASK, [0, 0]), (Mode.EDGE, [2, 2])]
)
def test_what_stands_behind_the_end(mode: Mode, behind: list[int]) -> None:
    source = np.array([[[1, 2]], [[3, 2]]], np.int32)
    assert filled(mode, source, 4) == [[[1, 2, *behind]], [[3, 2, *behind]]]


def test_text_is_filled_up_with_none() -> None:
    assert filled(Mode.ZEROS, np.array([[["a"]]], object), 3) == [[["a", "", ""]]]


def test_what_fits_or_has_no_length_is_copied() -> None:
    source = np.arange(6).reshape(1, 2, 3)
    assert filled(Mode.ZEROS, source, 3) == source.tolist()
    target = np.empty((2, 2), int)
    PADDING.fill("other", target, np.array([[1, 2], [3, 4]]))
    assert target.tolist() == [[1, 2], [3, 4]]


@pytest.mark.parametrize(
    ("rule", "sizes", "words"),
    [
        (LengthRule(1, 1, 0), [1, 2, 3, 4], "length"),
        (LengthRule(1, 1, -2), [0, 0, 1, 2], "length -2"),
        (LengthRule(1, 2, 0), [0, 1, 1, 2], "length // 2"),
        (LengthRule(1, 2, 1), [1, 1, 2, 2], "(length +1) // 2"),
    ],
)
def test_the_rules(rule: LengthRule, sizes: list[int], words: str) -> None:
    assert [rule.size(n) for n in (1, 2, 3, 4)] == sizes
    assert str(rule) == words


def test_an_answer_is_cut_to_the_length_of_its_row() -> None:
    output = np.arange(8).reshape(1, 2, 4)
    cut = PADDING.cut("y", output, 5, 7)
    assert cut.tolist() == output[:, :, :3].tolist()
    assert cut.base is output.base
    assert PADDING.cut("z", output, 5, 7) is output


def test_an_answer_that_breaks_its_rule_cannot_be_cut() -> None:
    with pytest.raises(ValueError, match=r"'y' has shape \[1, 2, 5\] for rows of length 7: expec"):
        PADDING.cut("y", np.zeros((1, 2, 5)), 5, 7)


def test_the_length_that_inputs_share() -> None:
    padding = Padding(Mode.MASK, {"ids": 1, "mask": 2}, {})
    ids, other = ("ids", "INT64", (7,)), ("other", "FP32", (4,))
    assert padding.length((ids, other)) == 7
    assert padding.length((ids, ("mask", "INT64", (1, 7)))) == 7
    assert padding.length((ids, ("mask", "INT64", (1, 6)))) == 0
    assert padding.length((other,)) == 0
    assert padding.stretched((ids, other, ("mask", "INT64", (1, 7))), 9) == (
        ("ids", "INT64", (9,)),
        other,
        ("mask", "INT64", (1, 9)),
    )
