"""The event loop's side: what is looked at, in which bounds, and what the metrics say."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from headrace.server.errors import ModelUnavailable, Unsupported
from headrace.server.quality import quality as module
from headrace.server.quality.answers import Name
from headrace.server.quality.options import QualityOptions
from headrace.server.quality.quality import Quality
from headrace.server.quality.scores import Truth
from headrace.server.telemetry.families import Families
from support.waiting import until

X: Any = SimpleNamespace(name="x", datatype="FP32", array=np.ones((1, 4), np.float32))
Y: Any = SimpleNamespace(name="y", datatype="FP32")


class Made:
    """Makes them, and closes what it made."""

    def __init__(self) -> None:
        self.all: list[Quality] = []

    def __call__(self, **options: Any) -> Quality:
        given = QualityOptions(**{"task": "classification", "drift": False, **options})
        self.all.append(Quality("m", given, Y, (), batched=True))
        return self.all[-1]


@pytest.fixture
def make() -> Iterator[Made]:
    made = Made()
    yield made
    for each in made.all:
        each.close()


def answered(quality: Quality, id_: str, *scores: float) -> None:
    quality.answered(Name("", id_), [X], [(Y, np.array([scores], np.float32))])


def truth(id_: str, *classes: int) -> Truth:
    return Truth("truths[0]", id_, "classes", classes)


def metrics(quality: Quality) -> dict[tuple[str, ...], Any]:
    families = Families()
    quality.collect(families, {"model": "m"})
    return {
        (family.name, *(v for k, v in labels.items() if k != "model")): value
        for family in families
        for labels, value in family.points
    }


async def test_a_report_finds_what_was_answered_just_before(make: Made) -> None:
    quality = make()
    answered(quality, "a", 0, 1)
    unknown = truth("b", 1)
    assert await quality.report("", [truth("a", 1), unknown]) == [unknown]
    found = metrics(quality)
    assert found["headrace.quality.requests", "looked at"] == 1
    assert found["headrace.quality.truths", "scored"] == 1
    assert found["headrace.quality.classes", "right"] == 1
    assert found["headrace.quality.accuracy",] == 1.0
    assert found["headrace.quality.answers",] == 0


async def test_what_is_looked_at_is_a_copy(make: Made) -> None:
    quality, scores = make(), np.array([[0, 1]], np.float32)
    quality.answered(Name("", "a"), [X], [(Y, scores)])
    scores[:] = [[1, 0]]
    await quality.report("", [truth("a", 1)])
    assert quality.snapshot.accuracy == 1


async def test_the_thread_takes_its_turn_by_itself(
    make: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_TURN_SECONDS", 0.001)
    quality = make()
    for number in range(3):
        answered(quality, str(number), 0, 1)

        async def kept(many: int = number + 1) -> bool:
            return quality.snapshot.answers == many

        await until(kept)


async def test_more_than_fits_into_a_turn_is_counted_and_left(
    make: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_MOST_TAKEN", 5)
    quality = make()
    for number in range(8):
        answered(quality, str(number), 0, 1)
    found = metrics(quality)
    assert found["headrace.quality.requests", "looked at"] == 5
    assert found["headrace.quality.requests", "too many"] == 3
    left = await quality.report("", [truth(str(number), 1) for number in range(8)])
    assert [each.request_id for each in left] == ["5", "6", "7"]


async def test_an_output_that_is_too_large_is_not_scored(
    make: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_LARGEST_OUTPUT", 16)
    quality = make()
    answered(quality, "small", *range(4))
    answered(quality, "large", *range(5))
    left = await quality.report("", [truth("small", 3), truth("large", 4)])
    assert [each.request_id for each in left] == ["large"]


async def test_a_share_of_the_requests(make: Made) -> None:
    quality = make(sample=0.5)
    for number in range(400):
        answered(quality, str(number), 0, 1)
    assert 100 < quality.sampled < 300


async def test_without_a_task_there_is_nothing_to_report(make: Made) -> None:
    quality = make(task=None)
    with pytest.raises(Unsupported, match=r"model 'm' takes no truths: .* no quality\.task"):
        await quality.report("", [truth("a", 1)])


async def test_a_model_that_is_let_go_takes_no_reports(make: Made) -> None:
    quality = make()
    answered(quality, "a", 0, 1)
    quality.close()
    answered(quality, "b", 0, 1)
    with pytest.raises(ModelUnavailable, match="'m' is being unloaded"):
        await quality.report("", [truth("a", 1)])
