"""The reports in letters: on a terminal of any width, live, and in Markdown."""

import io
import re

import pytest
from rich.console import Console

from headrace.bench.progress import Progress
from headrace.bench.reports import markdown, terminal
from headrace.bench.reports.live import Live, sparkline
from headrace.bench.results import Interval, Report
from support import reports


@pytest.fixture(scope="module")
def whole() -> Report:
    return reports.whole()


def printed(report: Report, width: int = 120) -> str:
    console = Console(file=io.StringIO(), width=width)
    terminal.show(report, console)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


@pytest.mark.parametrize("width", [60, 80, 120, 200])
def test_a_terminal_shows_figures_errors_ratios_and_warnings(whole: Report, width: int) -> None:
    shown = printed(whole, width)
    assert all(len(line) <= width for line in shown.splitlines())
    words = " ".join(shown.split())
    for said in (
        "RESOURCE_EXHAUSTED 1,478",
        "real: better",
        "no difference shown",
        "Before you believe it",
        "The load generator was the bottleneck",
        "Python backend",
    ):
        assert said in words


def test_names_are_not_taken_for_the_terminals_markup() -> None:
    served = reports.Served("[red]x[/red] [bold")
    section = reports.section(
        "load",
        reports.measurement(served, 50.0, 1.0),
        title="[/]",
        labels=("[a]",),
        notes=("[link=file:///]n",),
    )
    shown = printed(reports.report(section))
    for name in ("[/]", "[a]", "[link=file:///]n"):
        assert name in shown


def test_markdown_is_a_table_whatever_the_names() -> None:
    first = reports.measurement(reports.Served("a|b\n<i>`*"), 50.0, 1.0)
    other = reports.measurement(reports.Served("c"), 50.0, 1.0)
    ratio = reports.ratio("p99_ms", 0.5, 0.4, 0.6, side="a|b", base="c")
    section = reports.section("versus", first, other, ratios=(ratio,), notes=("x\n\n# y",))
    written = markdown.table(reports.report(section, command=("headrace", "```\n# x")))
    tables = [block for block in written.split("\n\n") if block.startswith("|")]
    assert len(tables) == 2
    for table in tables:
        counts = {len(re.findall(r"(?<!\\)\|", row)) for row in table.splitlines()}
        assert len(counts) == 1
    assert "<i>" not in written
    assert "\n# y" not in written
    assert written.rstrip().endswith("\n````")


def test_markdown_has_every_section(whole: Report) -> None:
    written = markdown.table(whole)
    for section in whole.sections:
        assert f"**{section.title}.**" in written
    assert " 0.58× (0.47 to 0.71), better |" in written


def interval(start: float, ok: int = 10, errors: int = 0, p99: float | None = 4.0) -> Interval:
    return Interval(start=start, seconds=1, ok=ok, errors=errors, p50_ms=p99, p99_ms=p99)


def watched(progress: list[Progress], *, is_terminal: bool) -> str:
    file = io.StringIO()
    console = Console(file=file, width=100, force_terminal=is_terminal)
    with Live(console) as live:
        live.about("headrace [x]")
        for one in progress:
            live.watch(one)
    return file.getvalue()


def test_without_a_terminal_there_are_plain_lines_now_and_then() -> None:
    warm = [Progress("warm-up", i + 1.0, None, interval(i, errors=1)) for i in range(3)]
    measured = [Progress("measure", i + 1.0, 30.0, interval(i, errors=1)) for i in range(25)]
    lines = watched([*warm, *measured], is_terminal=False).splitlines()
    assert "\x1b" not in "".join(lines)
    assert lines == [
        "headrace [x]: warm-up 1 s, until the latency is stable: "
        "10.0/s, p50 4.00 ms, p99 4.00 ms, 1 errors",
        "headrace [x]: measure 1 s of 30 s: 10.0/s, p50 4.00 ms, p99 4.00 ms, 1 errors",
        "headrace [x]: measure 11 s of 30 s: 10.0/s, p50 4.00 ms, p99 4.00 ms, 11 errors",
        "headrace [x]: measure 21 s of 30 s: 10.0/s, p50 4.00 ms, p99 4.00 ms, 21 errors",
    ]


def test_a_second_measurement_begins_anew() -> None:
    runs = [Progress("measure", t, 2.0, interval(t - 1, errors=5)) for t in (1.0, 2.0, 1.0)]
    assert [line[-8:] for line in watched(runs, is_terminal=False).splitlines()] == ["5 errors"] * 2


def test_on_a_terminal_the_last_minute_is_drawn() -> None:
    silent = [Progress("measure", 1.0, 90.0, interval(0, ok=0, p99=None))]
    shown = watched(
        [*silent, *(Progress("measure", i + 1.0, 90.0, interval(i, ok=i)) for i in range(1, 90))],
        is_terminal=True,
    )
    assert "█" in shown
    assert "headrace [x]" in shown
    assert "of 90 s" in shown


def test_sparklines() -> None:
    assert sparkline([0.0, 3.5, 7.0], 10) == "▁▅█"
    assert sparkline([1.0, None, 1.0], 10) == "█ █"
    assert sparkline([0.0, 0.0], 10) == "▁▁"
    assert sparkline([1.0, 2.0, 4.0], 2) == "▅█"
    assert sparkline([], 5) == ""


def test_small_calls_beside_the_load_are_shown_where_they_were_made() -> None:
    found = reports.measurement(reports.Served("a"), 50.0, 1.0)
    assert "pulse" not in printed(reports.report(reports.section("load", found)))
    assert found.latency is not None
    slow = found.latency.model_copy(update={"p99_ms": 321.0})
    beside = found.model_copy(update={"pulse": slow})
    for shown in (printed, markdown.table):
        text = shown(reports.report(reports.section("load", beside)))
        assert "pulse" in text
        assert "321" in text
