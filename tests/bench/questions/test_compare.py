"""Two reports: what they share is compared, what they do not is told."""

from __future__ import annotations

import pytest

from bench.fakes import job, measurement, report
from headrace.bench.questions.compare import compare
from headrace.bench.results import Section


def section(latencies: list[float], title: str = "load", target: str = "server") -> Section:
    taken = measurement(job(target), latencies)
    return Section(title=title, kind="load", measurements=(taken,), labels=("8 callers",))


def test_figures_of_the_same_measurement_are_compared() -> None:
    found = compare(report(section([0.010] * 100)), report(section([0.005] * 200)))
    changes = {change.figure: change for change in found.changes}
    assert (changes["throughput"].before, changes["throughput"].after) == (10, 20)
    assert changes["p99_ms"].ratio == pytest.approx(0.5)
    assert changes["failed_share"].ratio is None
    assert {(c.section, c.target, c.label) for c in found.changes} == {
        ("load", "server", "8 callers")
    }
    assert (found.differences, found.missing) == ((), ())


def test_a_loss_of_goodput_shows_though_all_was_in_time_before() -> None:
    def goodput(latency: float) -> Section:
        late = job()
        asked = (late.requests[0].model_copy(update={"deadline": 0.1}),)
        late = late.model_copy(update={"requests": asked})
        taken = measurement(late, [0.01] * 50 + [latency] * 50)
        return Section(title="load", kind="load", measurements=(taken,))

    found = compare(report(goodput(0.01)), report(goodput(0.2)))
    (change,) = (change for change in found.changes if change.figure == "goodput")
    assert (change.before, change.after) == (10, 5)
    same = compare(report(goodput(0.01)), report(goodput(0.01)))
    assert "goodput" not in {change.figure for change in same.changes}


def test_turns_are_compared_by_their_median() -> None:
    def turns(*rates: int) -> Section:
        taken = tuple(measurement(job(), [0.01] * (rate * 10)) for rate in rates)
        labels = tuple(f"turn {turn}" for turn in range(len(rates)))
        return Section(title="a against b", kind="versus", measurements=taken, labels=labels)

    found = compare(report(turns(10, 100, 12)), report(turns(20, 24, 1)))
    (throughput,) = (change for change in found.changes if change.figure == "throughput")
    assert (throughput.before, throughput.after) == (12, 20)


def test_the_facts_of_a_search_are_compared_not_its_probes() -> None:
    def answer(rate: float) -> Section:
        taken = (measurement(job()),)
        return Section(title="s", kind="search", measurements=taken, facts={"rate": rate})

    found = compare(report(answer(100)), report(answer(150)))
    (change,) = found.changes
    assert (change.figure, change.ratio) == ("rate", 1.5)


def test_what_only_one_has_is_named() -> None:
    found = compare(
        report(section([0.01]), section([0.01], "old")), report(section([0.01], target="b"))
    )
    assert found.changes == ()
    assert sorted(found.missing) == [
        "load / b / 8 callers: only in the second",
        "load / server / 8 callers: only in the first",
        "old / server / 8 callers: only in the first",
    ]


def test_sections_of_one_title_are_told_apart() -> None:
    two = report(section([0.01] * 10), section([0.02] * 20))
    found = compare(two, two)
    assert [c.after for c in found.changes if c.figure == "throughput"] == [1, 2]
    assert all(change.before == change.after for change in found.changes)


def test_circumstances_that_differ_are_told() -> None:
    target = job().target.model_copy(update={"about": {"model": "sha256:1"}})
    before = report(targets=(target.model_dump(),))
    target = target.model_copy(update={"about": {"model": "sha256:2"}, "address": "elsewhere:2"})
    after = report(
        machine={"cpu": "other"}, versions={"grpcio": "2"}, targets=(target.model_dump(),)
    )
    assert compare(before, after).differences == (
        ("machine: cpu", "one", "other"),
        ("version: grpcio", "unknown", "2"),
        ("version: onnxruntime", "1", "unknown"),
        ("target server: model", "sha256:1", "sha256:2"),
    )
