"""Answers and their truths, and what becomes of the figures."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from headrace.server.errors import InvalidInput
from headrace.server.quality.answers import Name
from headrace.server.quality.drift import Feature
from headrace.server.quality.figures import Figures, Seen, Taken
from headrace.server.quality.options import QualityOptions
from headrace.server.quality.scores import Truth

PETS = ("cat", "dog", "hen")


def figures(datatype: str = "FP32", names: Sequence[str] = (), **options: Any) -> Figures:
    given = {"task": "classification", "drift": False, **options}
    return Figures(QualityOptions(**given), "y", datatype, names)


def answer(watched: Figures, id_: str, output: Any, identity: str = "") -> None:
    watched.take([Taken(Name(identity, id_), (), np.asarray(output))])


def truth(id_: str, *values: Any, kind: Any = "classes") -> Truth:
    return Truth("truths[0]", id_, kind, values)


def test_the_share_of_right_classes() -> None:
    watched = figures()
    answer(watched, "a", [[0.1, 0.7, 0.2], [0.9, 0.0, 0.1]])
    answer(watched, "b", [[0.0, 0.0, 1.0]])
    assert watched.report("", [truth("a", 1, 2), truth("b", 2)]) == []
    found = watched.snapshot()
    assert (found.right, found.wrong, found.scored, found.truths) == (2, 1, 3, 2)
    assert found.accuracy == pytest.approx(2 / 3)
    assert (found.answers, found.answers_bytes) == (0, 0)
    assert found.mean_absolute_error is None


def test_an_answer_is_scored_once_and_only_for_who_was_given_it() -> None:
    watched = figures()
    answer(watched, "a", [[0.1, 0.9]], identity="one")
    asked = truth("a", 1)
    assert watched.report("two", [asked]) == [asked]
    again = truth("a", 0)
    assert watched.report("one", [asked, again]) == [again]
    assert watched.report("one", [asked]) == [asked]
    assert watched.snapshot().truths == 1


def test_the_window_rolls_and_counters_do_not() -> None:
    watched = figures(window=10)
    for number in range(30):
        answer(watched, str(number), [[0.0, 1.0]])
        watched.report("", [truth(str(number), 1 if number >= 20 else 0)])
    found = watched.snapshot()
    assert (found.accuracy, found.scored) == (1.0, 10)
    assert (found.right, found.wrong) == (10, 20)


@pytest.mark.parametrize(
    ("datatype", "output", "right"),
    [
        ("FP32", np.array([[0.2], [0.5]], np.float32), (0, 1)),  # a lone score: from a threshold
        ("FP32", np.array([0.2, 0.7], np.float32), (0, 1)),
        ("INT64", np.array([4, 2]), (4, 2)),  # the output's own class
        ("BOOL", np.array([[True], [False]]), (1, 0)),
        ("BF16", np.array([[0x3F80, 0x4000]], np.uint16), (1,)),  # 1 and 2
        ("FP16", np.array([[[0, 1], [1, 0]]], np.float16), (1, 0)),  # a class for each of two steps
        ("FP32", np.zeros((0, 3), np.float32), ()),
    ],
)
def test_what_counts_as_a_class(datatype: str, output: Any, right: tuple[int, ...]) -> None:
    watched = figures(datatype)
    answer(watched, "a", output)
    assert watched.report("", [truth("a", *right)]) == []
    assert watched.snapshot().wrong == 0
    assert watched.snapshot().right == len(right)


def test_the_axis_of_scores() -> None:
    watched = figures(axis=1)
    answer(watched, "a", np.array([[[0, 1], [1, 0]]], np.float32))  # [row, class, place]
    watched.report("", [truth("a", 1, 0)])
    assert watched.snapshot().accuracy == 1


def test_classes_by_name() -> None:
    watched = figures(names=PETS)
    answer(watched, "a", [[0.0, 1.0, 0.0]])
    watched.report("", [truth("a", "dog", kind="names")])
    assert watched.snapshot().right == 1
    answer(watched, "b", [[0.0, 1.0, 0.0]])
    with pytest.raises(InvalidInput, match=r"truths\[0\]\.names\[0\]: expected one of 3 .*'cow'"):
        watched.report("", [truth("b", "cow", kind="names")])
    own = figures(names=PETS, classes=("ox", "ewe"))
    answer(own, "a", [[0.0, 1.0]])
    own.report("", [truth("a", "ewe", kind="names")])
    assert own.snapshot().right == 1


@pytest.mark.parametrize("output", [["dog", "hen"], [b"dog", b"hen"]])
def test_an_output_of_text_is_its_own_class(output: list[Any]) -> None:
    watched = figures("BYTES", names=PETS)
    answer(watched, "a", np.array(output, dtype=object))
    watched.report("", [truth("a", "dog", "cat", kind="names")])
    assert watched.snapshot().accuracy == 0.5
    answer(watched, "b", np.array(output, dtype=object))
    watched.report("", [truth("b", 1, 2)])
    assert watched.snapshot().accuracy == 0.75
    answer(watched, "c", np.array(output, dtype=object))
    with pytest.raises(InvalidInput, match="index of one of 3 named classes, got 3"):
        watched.report("", [truth("c", 1, 3)])


def test_what_does_not_fit_is_refused_before_anything_counts() -> None:
    watched = figures()
    for id_ in ("a", "b"):
        answer(watched, id_, [[0.0, 1.0]])
    for wrong, said in (
        (truth("b", 1, 1), r"truths\[0\]\.classes: expected 1, as many as .* 'b' .*, got 2"),
        (truth("b", 1.5, kind="values"), "expected classes or names, got values"),
        (truth("b", "cat", kind="names"), "expected classes, since they have no names"),
    ):
        with pytest.raises(InvalidInput, match=said):
            watched.report("", [truth("a", 1), wrong])
    assert (watched.snapshot().truths, watched.snapshot().answers) == (0, 2)


def test_errors_of_regression() -> None:
    watched = figures(task="regression")
    answer(watched, "a", [[1.0, 2.0], [3.0, math.nan]])
    watched.report("", [truth("a", 1.0, 4.0, 3.0, 0.0, kind="values")])
    found = watched.snapshot()
    assert found.mean_absolute_error == pytest.approx(2 / 3)
    assert found.root_mean_square_error == pytest.approx(math.sqrt(4 / 3))
    assert (found.accuracy, found.scored, found.off) == (None, 3, 1)
    answer(watched, "b", [[1.0]])
    with pytest.raises(InvalidInput, match="expected values, got classes"):
        watched.report("", [truth("b", 1)])
    with pytest.raises(InvalidInput, match="expected finite numbers"):
        watched.report("", [truth("b", math.inf, kind="values")])


def test_an_answer_without_an_id_is_kept_for_nobody() -> None:
    watched = figures()
    answer(watched, "", [[0.0, 1.0]])
    assert watched.snapshot().answers == 0


def rows(values: Any) -> Seen:
    return Seen("input", "x", "FP32", np.asarray(values, np.float32))


def test_drift_of_inputs_and_of_predicted_classes() -> None:
    pytest.importorskip("scipy")
    watched = figures(drift=True, reference=100, window=50)
    rng = np.random.default_rng(0)

    def see(count: int, mean: float, share: float) -> None:
        for number in range(count):
            scores = np.array([[1.0, 0.0]] if number % 4 < 4 * share else [[0.0, 1.0]])
            seen = rows(rng.normal(mean, 1, (1, 64)))
            watched.take([Taken(Name("", ""), [seen], scores)])

    see(149, 0.0, 0.5)
    assert watched.snapshot().drift == {}
    see(1, 0.0, 0.5)
    alike = watched.snapshot()
    assert (alike.reference_rows, alike.recent_rows) == (100, 50)
    assert set(alike.drift) == {
        Feature("input", "x", "mean"),
        Feature("input", "x", "std"),
        Feature("output", "y", "class"),
    }
    assert alike.drift[Feature("input", "x", "mean")] < 0.3
    see(50, 5.0, 0.5)
    shifted = watched.snapshot().drift
    assert shifted[Feature("input", "x", "mean")] == 1.0
    assert shifted[Feature("input", "x", "std")] < 0.3
    assert shifted[Feature("output", "y", "class")] < 0.1
    see(50, 5.0, 1.0)
    assert watched.snapshot().drift[Feature("output", "y", "class")] > 0.5
    watched.reset_reference()
    assert watched.snapshot().reference_rows == 0
    see(150, 5.0, 1.0)
    assert max(watched.snapshot().drift.values()) < 0.3
