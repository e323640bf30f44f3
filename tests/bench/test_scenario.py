"""Scenario files, and how their questions are asked of sides that may not be there."""

from __future__ import annotations

import pathlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from bench.fakes import measurement, use
from headrace.bench import scenario
from headrace.bench.errors import BenchError
from headrace.bench.models import PROVIDERS, Model
from headrace.bench.peer import PeerUnavailable, available
from headrace.bench.results import Measurement
from headrace.bench.sides import Side, carry_out, side
from headrace.bench.spec import ClosedLoad, Job, Target

MODEL = Model("m", pathlib.Path("m.onnx"), "made up")


@pytest.mark.parametrize("name", scenario.names())
def test_every_scenario_can_be_run(name: str) -> None:
    found = scenario.load(name)
    for each in (found, found.shortened()):
        assert each.model in PROVIDERS
        assert {side(words).peer for words in each.peers} <= set(available())
        job = each.job(Target(address="a:1"), seed=3)
        assert job.seed == 3
        assert {request.model for request in job.requests} == {each.model}


def test_these_are_there() -> None:
    assert set(scenario.names()) == {
        "tiny", "magika", "ocr-classify", "ocr-recognise", "embeddings", "vad-streams", "burst",
        "mixed-shapes", "overload", "cold-start", "large-600k", "large-16m", "guard",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("about = ", "x.toml"),
        ('about = "a"\nmodel = "m"\nrequests = [{}]\nquestions = []', "questions"),
        ('about = "a"\nmodel = "m"\nrequests = [{}]\nspeed = 1', "speed: Extra inputs"),
        (
            'about = "a"\nmodel = "m"\nrequests = [{ deadlin = 1 }]\n'
            'questions = [{ kind = "curve" }]',
            r"requests\.0\.deadlin",
        ),
    ],
)
def test_a_wrong_file_is_refused_by_its_keys(tmp_path: pathlib.Path, text: str, named: str) -> None:
    file = tmp_path / "x.toml"
    file.write_text(text)
    with pytest.raises(BenchError, match=named):
        scenario.load(str(file))


def test_an_unknown_name_tells_the_known() -> None:
    with pytest.raises(BenchError, match=r"'nope': expected a file or one of burst, .*tiny"):
        scenario.load("nope")


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("headrace", Side("headrace", "headrace")),
        ("pytriton:tuned", Side("pytriton tuned", "pytriton", "tuned")),
        ("127.0.0.1:8001", Side("127.0.0.1:8001", address="127.0.0.1:8001")),
        ("mine=127.0.0.1:8001", Side("mine", address="127.0.0.1:8001")),
        ("mine=http://host:1", Side("mine", address="http://host:1")),
    ],
)
def test_sides(words: str, expected: Side) -> None:
    assert side(words) == expected


class Servers:
    """Servers that are none: those in `broken` cannot be had."""

    def __init__(self, *broken: str) -> None:
        self.broken = broken
        self.log: list[str] = []

    @contextmanager
    def __call__(self, side: Side, model: Model) -> Iterator[Target]:
        if side.name in self.broken:
            raise PeerUnavailable(side.peer, "no wheel for this Python")
        self.log.append(f"+{side.name}")
        yield Target(name=side.name, address="a:1", about={"ready_seconds": 1.5})
        self.log.append(f"-{side.name}")


def right(scenario: scenario.Scenario, model: Model, target: Target) -> str:
    return ""


def made(*questions: dict[str, Any], peers: tuple[str, ...] = ("a", "b")) -> scenario.Scenario:
    return scenario.Scenario.model_validate(
        {
            "about": "a test",
            "model": "m",
            "requests": [{"deadline": 0.1}],
            "questions": questions,
            "peers": peers,
            "turns": 2,
        }
    )


LOAD = {"kind": "load", "loads": [{"kind": "closed", "callers": 2}, {"kind": "open", "rate": 9}]}


def test_several_sides_alternate_under_each_load() -> None:
    servers = Servers()
    found = carry_out(made(LOAD), MODEL, measurement, serve=servers, prove=right)
    assert [section.kind for section in found.sections] == ["versus", "versus"]
    assert [m.target for m in found.sections[0].measurements] == ["a", "b", "b", "a"]
    assert servers.log == ["+a", "+b", "-b", "-a"]
    assert [target.name for target in found.targets] == ["a", "b"]


def test_a_side_that_cannot_be_had_is_told_and_the_others_go_on() -> None:
    found = carry_out(made(LOAD), MODEL, measurement, serve=Servers("b"), prove=right)
    load, missing = found.sections
    assert (load.kind, load.labels) == ("load", ("2 callers", "9/s poisson"))
    assert missing.title == "b: not measured"
    assert "no wheel for this Python" in missing.notes[0]


def test_a_side_that_answers_wrongly_is_not_measured() -> None:
    def prove(scenario: scenario.Scenario, model: Model, target: Target) -> str:
        return "output 'y': 3 of 4 values differ" if target.name == "a" else ""

    found = carry_out(made(LOAD), MODEL, measurement, serve=Servers(), prove=prove)
    load, missing = found.sections
    assert {m.target for m in load.measurements} == {"b"}
    assert "a could not be measured here: output 'y': 3 of 4" in missing.notes[0]


def test_what_was_measured_before_somebody_went_stays() -> None:
    def measure(job: Job) -> Measurement:
        if job.load.kind == "open":
            raise BenchError("a:1 does not answer")
        return measurement(job)

    found = carry_out(made(LOAD), MODEL, measure, serve=Servers(), prove=right)
    first, missing = found.sections
    assert (first.kind, missing.title) == ("versus", "load: not measured")
    assert "a:1 does not answer" in missing.notes[0]


def test_a_side_that_cannot_be_asked_is_not_measured() -> None:
    def prove(scenario: scenario.Scenario, model: Model, target: Target) -> str:
        if target.name == "a":
            raise BenchError("a:1 has no model m")
        return ""

    found = carry_out(made(LOAD), MODEL, measurement, serve=Servers(), prove=prove)
    load, missing = found.sections
    assert {m.target for m in load.measurements} == {"b"}
    assert "a:1 has no model m" in missing.notes[0]


def test_nobody_left_is_an_error() -> None:
    with pytest.raises(BenchError, match=r"nobody could be measured: a: no wheel.*; b: no wheel"):
        carry_out(made(LOAD), MODEL, measurement, serve=Servers("a", "b"), prove=right)


def test_overload_is_counted_from_saturation_without_deadlines() -> None:
    seen: list[Job] = []

    def measure(job: Job) -> Measurement:
        seen.append(job)
        return measurement(job, [0.01] * 500)

    question = {"kind": "goodput", "shares": [0.5, 3.0]}
    found = carry_out(made(question, peers=("a",)), MODEL, measure, serve=Servers(), prove=right)
    saturation, goodput = found.sections
    assert saturation.facts["saturation"] == 50
    assert [m.load["rate"] for m in goodput.measurements] == [25, 150]
    deadlines = {(job.load.kind, job.requests[0].deadline) for job in seen}
    assert deadlines == {("closed", None), ("open", 0.1)}


def test_a_cold_start_starts_each_side_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "before")
    seen: list[Job] = []

    def measure(job: Job) -> Measurement:
        seen.append(job)
        return measurement(job)

    servers = Servers("b")
    found = carry_out(made({"kind": "start"}), MODEL, measure, serve=servers, prove=right)
    start, missing = found.sections
    assert servers.log == ["+a", "-a", "+a", "-a"]
    assert (start.kind, start.labels) == ("start", ("first start", "start 2"))
    assert start.facts["ready_first_seconds"] == 1.5
    assert missing.title == "b: not measured"
    assert [(job.load, job.warm_up) for job in seen] == [(ClosedLoad(), 0.0)] * 2
    assert [target.name for target in found.targets] == ["a"]


GUARD = {
    "kind": "guard",
    "load": {"kind": "closed", "callers": 2},
    "base": "a",
    "at_most": {"b": 2.0},
}


def test_a_guard_holds_a_side_to_its_bound() -> None:
    def measure(job: Job) -> Measurement:
        return measurement(job, server=use(100.0 if job.target.name == "a" else 190.0))

    found = carry_out(made(GUARD), MODEL, measure, serve=Servers(), prove=right)
    (section,) = found.sections
    assert section.facts == {"guard": "pass"}
    assert [m.target for m in section.measurements] == ["a", "b", "b", "a"]
    assert {m.load["callers"] for m in section.measurements} == {2}


def test_a_guard_whose_base_cannot_be_had_fails() -> None:
    found = carry_out(made(GUARD), MODEL, measurement, serve=Servers("a"), prove=right)
    assert found.sections[0].facts == {"guard": "fail"}
    assert "no wheel" in found.sections[1].notes[0]


def test_sensor_streams_are_asked_of_headrace_alone() -> None:
    whole = made(LOAD, peers=("headrace", "pytriton"))
    sensor = whole.model_copy(update={"protocol": "sensor"})
    found = carry_out(sensor, MODEL, measurement, serve=Servers(), prove=right)
    assert "no sensor streams" in found.sections[-1].notes[0]
    assert [target.name for target in found.targets] == ["headrace"]
