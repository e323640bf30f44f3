"""The commands that measure nothing."""

from __future__ import annotations

import json
import pathlib

import pytest

from bench.fakes import job, measurement, report
from headrace.bench.cli import main
from headrace.bench.results import Section


@pytest.fixture
def kept(tmp_path: pathlib.Path) -> tuple[pathlib.Path, pathlib.Path]:
    files = []
    for name, count in (("a", 100), ("b", 150)):
        section = Section(
            title="the load", kind="load", measurements=(measurement(job(), [0.01] * count),)
        )
        versions = {"onnxruntime": name}
        files.append(tmp_path / f"{name}.json")
        files[-1].write_text(report(section, versions=versions).model_dump_json())
    return files[0], files[1]


def test_compare(
    kept: tuple[pathlib.Path, pathlib.Path], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["compare", *map(str, kept)]) == 0
    out = capsys.readouterr().out
    assert "version: onnxruntime" in out
    assert "1.500" in out
    assert "the load" in out


def test_report_makes_a_page_and_tables(
    kept: tuple[pathlib.Path, pathlib.Path], tmp_path: pathlib.Path
) -> None:
    page, tables = tmp_path / "page.html", tmp_path / "tables.md"
    assert main(["report", str(kept[0]), "--html", str(page), "--markdown", str(tables)]) == 0
    assert "the load" in page.read_text()
    assert "the load" in tables.read_text()


@pytest.mark.parametrize("content", ["", "req/s\n1\n", "{}", "[]"])
def test_what_is_no_report_is_named(
    content: str, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "a.json"
    file.write_text(content)
    assert main(["report", str(file)]) == 1
    said = capsys.readouterr().err
    assert f"{file}: expected a report of headrace bench as JSON" in " ".join(said.split())
    assert len(said.splitlines()) < 5


def test_schema(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["schema"]) == 0
    assert json.loads(capsys.readouterr().out)["title"] == "Report"


@pytest.mark.parametrize("text", [None, "{}", "nothing"])
def test_a_file_that_is_no_report(
    tmp_path: pathlib.Path, text: str | None, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "x.json"
    if text is not None:
        file.write_text(text)
    assert main(["report", str(file)]) == 1
    assert "x.json" in capsys.readouterr().err


@pytest.mark.parametrize(
    "line",
    [
        "",
        "nope",
        "load",
        "load a:1",
        "load a:1 -m m -c 1 -r 1",
        "versus a:1 -m m",
        "search a:1 -m m --p99 0",
        "scenario nope",
        "scenario tiny --peers nope",
    ],
)
def test_bad_usage_ends_with_2(line: str, capsys: pytest.CaptureFixture[str]) -> None:
    try:
        code: object = main(line.split())
    except SystemExit as exit:
        code = exit.code
    assert code == 2
    assert "headrace bench" in capsys.readouterr().err
