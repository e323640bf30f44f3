"""The commands that measure nothing: compare, report, best, schema, scenarios."""

from __future__ import annotations

import argparse
import json
from itertools import groupby
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from headrace.bench import scenario
from headrace.bench.commands import output
from headrace.bench.errors import BenchError
from headrace.bench.peer import available
from headrace.bench.questions.compare import Change, Comparison, compare
from headrace.bench.reports import html, markdown, terminal
from headrace.bench.reports.best import best
from headrace.bench.reports.figures import number
from headrace.bench.reports.words import figure_words
from headrace.bench.results import Report


def add_compare_command(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("before", type=Path, metavar="A.json")
    parser.add_argument("after", type=Path, metavar="B.json")


def run_compare(given: argparse.Namespace) -> int:
    show(compare(output.read(given.before), output.read(given.after)), Console())
    return 0


def show(found: Comparison, console: Console) -> None:
    """Prints what changed in each section, and first what the two runs do not share."""
    if found.differences:
        table = Table("what is not the same", "first", "second", box=None, pad_edge=False)
        for difference in found.differences:
            table.add_row(*map(Text, difference))
        console.print(table, "")
    for section, changes in groupby(found.changes, key=lambda change: change.section):
        console.rule(Text(section, style="bold"), align="left")
        console.print(_table(list(changes)))
    for line in found.missing:
        console.print(Text(f"! {line}", style="yellow"))
    if not found.changes:
        console.print("The reports have no measurement in common.")
        return
    console.print(
        "Two runs are compared, not sides that alternated in one: small changes may be chance. "
        "`headrace bench versus` tells which are real."
    )


def _table(changes: list[Change]) -> Table:
    table = Table(box=None, pad_edge=False)
    table.add_column("measurement", overflow="fold")
    for column in ("figure", "first", "second", "second / first"):
        table.add_column(column, justify="left" if column == "figure" else "right")
    shown = None
    for change in changes:
        what = " ".join(filter(None, (change.target, change.label)))
        ratio = "" if change.ratio is None else f"{change.ratio:.3f}"
        words = (figure_words(change.figure), number(change.before), number(change.after), ratio)
        table.add_row(Text("" if what == shown else what), *map(Text, words))
        shown = what
    return table


def add_report_command(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("report", type=Path, metavar="A.json")
    parser.add_argument("--html", type=Path, metavar="FILE", help="write a page with charts")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write tables in Markdown")


def run_report(given: argparse.Namespace) -> int:
    report = output.read(given.report)
    output.write(given.html, lambda: html.page(report))
    output.write(given.markdown, lambda: markdown.table(report))
    if given.html is None and given.markdown is None:
        terminal.show(report, Console())
    return 0


def add_best_command(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("reports", type=Path, metavar="A.json", nargs="+")


def run_best(given: argparse.Namespace) -> int:
    print(best([output.read(path) for path in given.reports]))
    return 0


def add_schema_command(parser: argparse.ArgumentParser) -> None:
    """It has no options."""


def run_schema(given: argparse.Namespace) -> int:
    print(json.dumps(Report.model_json_schema(), indent=1))
    return 0


def scenarios() -> str:
    """Every scenario and what it is about, one on a line; and the peers."""
    try:
        known = {name: scenario.load(name).about for name in scenario.names()}
    except BenchError as error:  # help must not fail for a file that is wrong
        return str(error)
    lines = "\n".join(f"  {name:15} {about}" for name, about in known.items())
    return f"scenarios:\n{lines}\n\npeers: {', '.join(available())}"
