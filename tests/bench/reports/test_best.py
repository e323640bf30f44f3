from __future__ import annotations

import pathlib

import pytest

from bench.fakes import job, measurement, report
from headrace.bench.cli import main
from headrace.bench.questions.versus import versus
from headrace.bench.reports.best import best
from headrace.bench.reports.words import answer, cell_words, ratio_grid
from headrace.bench.results import Measurement, Report, Section
from headrace.bench.spec import Job

# Requests in ten seconds, each of 1 ms, and whose server each side is.
SIDES = {"headrace": 100, "headrace native": 200, "x": 150, "x tuned": 90, "y": 50, "z": 100}


def side(name: str) -> Job:
    made = job(name)
    target = made.target.model_copy(update={"about": {"peer": name.split()[0]}})
    return made.model_copy(update={"target": target})


def measured(job: Job) -> Measurement:
    return measurement(job, [0.001] * SIDES[job.target.name])


def section(title: str, *names: str) -> Section:
    return versus([side(name) for name in names or SIDES], 6, measured, title=title)


def made(*sections: Section) -> Report:
    return report(*sections, targets=tuple(side(name).target.model_dump() for name in SIDES))


def test_each_servers_best_configuration_is_shown_and_all_of_ours() -> None:
    table = best([made(section("a")), made(section("b", "headrace", "x tuned"))])
    assert table.splitlines() == [
        "| requests/s (p99, ms) | headrace | headrace native | x | y | z |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
        "| a | 10.0 (1.00) | 20.0 (1.00) | 15.0 (1.00) | 5.00 (1.00) | 10.0 (1.00) |",
        "| b | 10.0 (1.00) | – | 9.00 (1.00) | – | – |",
    ]


def test_it_is_a_command(tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "a.json"
    file.write_text(made(section("a")).model_dump_json())
    assert main(["best", str(file)]) == 0
    assert capsys.readouterr().out.startswith("| requests/s (p99, ms) | headrace |")


def test_where_no_sides_took_turns_it_says_so(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "a.json"
    file.write_text(made().model_dump_json())
    assert main(["best", str(file)]) == 1
    assert "expected a report of sides that took turns, found none" in capsys.readouterr().err


def test_many_sides_are_told_of_in_one_sentence() -> None:
    assert answer(section("a")) == (
        "Throughput of headrace: worse than headrace native (0.50×), x (0.67×); "
        "better than x tuned (1.11×), y (2.00×); no difference was shown from z (1.000×)."
    )


def test_ratios_as_a_grid() -> None:
    ratios = section("a").ratios
    figures, pairs = ratio_grid([r for r in ratios if r.figure in ("throughput", "p99_ms")])
    assert figures == ["throughput", "p99 latency"]
    words = {name: [cell_words(ratio) for ratio in found] for name, found in pairs}
    assert words["headrace ÷ y"][0].endswith(", better")
    assert words["headrace ÷ z"][0].endswith(", not shown")
    assert list(words) == [f"headrace ÷ {name}" for name in list(SIDES)[1:]]
