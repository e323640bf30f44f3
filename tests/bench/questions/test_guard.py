"""A bound on what a request costs: kept, crossed, or not to be judged."""

from __future__ import annotations

from typing import Any

import pytest

from bench.fakes import job, measurement, use
from headrace.bench.questions.guard import guard
from headrace.bench.results import Measurement, Section
from headrace.bench.spec import Job

SIDES = [job("echo"), job("ours"), job("native")]


def judged(costs: dict[str, list[float]], **at_most: float) -> Section:
    """By what each side took for a request in its turns."""
    left = {name: iter(each) for name, each in costs.items()}

    def measure(given: Job) -> Measurement:
        return measurement(given, server=use(next(left[given.target.name])))

    sides = [side for side in SIDES if side.target.name in costs]
    return guard(sides, "echo", at_most, 3, measure)


COSTS = {"echo": [100.0, 200.0, 100.0], "ours": [250.0, 500.0, 900.0], "native": [50.0] * 3}


@pytest.mark.parametrize(
    ("bounds", "verdict"),
    [
        ({"ours": 2.6, "native": 0.6}, "pass"),
        ({"ours": 2.5}, "pass"),
        ({"ours": 2.4, "native": 0.6}, "fail"),
        ({"ours": 2.6, "native": 0.4}, "fail"),
    ],
)
def test_the_median_of_the_turns_is_held_to_the_bound(
    bounds: dict[str, float], verdict: str
) -> None:
    found = judged(COSTS, **bounds)
    assert found.facts == {"guard": verdict}
    assert [(r.side, r.base, r.figure) for r in found.ratios] == [
        (side, "echo", "cpu_us_per_request") for side in bounds
    ]
    assert found.ratios[0].median == 2.5


def test_each_bound_has_its_line() -> None:
    notes = judged(COSTS, ours=2.6, native=0.4).notes
    assert notes[0] == "pass: server CPU per request of ours: 2.50 times that of echo, bound 2.6"
    assert notes[1].startswith("FAIL: server CPU per request of native: 0.50 times")


@pytest.mark.parametrize("missing", ["echo", "ours"])
def test_a_side_that_is_not_there_fails(missing: str) -> None:
    costs = {name: values for name, values in COSTS.items() if name != missing}
    found = judged(costs, ours=9.0)
    assert found.facts == {"guard": "fail"}
    assert any(note.startswith("FAIL") for note in found.notes)


def test_a_turn_without_an_answer_fails() -> None:
    def measure(given: Job) -> Measurement:
        more: dict[str, Any] = {"server": use(0.0 if given.target.name == "ours" else 9.0)}
        return measurement(given, **more)

    assert guard(SIDES[:2], "echo", {"ours": 9.0}, 2, measure).facts == {"guard": "fail"}
