"""A report on a terminal: for each question its answer, what to be wary of, and the tables."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from headrace.bench.reports.figures import (
    ANSWERS,
    COSTS,
    Column,
    Row,
    errors_words,
    names,
    shown,
    summary,
)
from headrace.bench.reports.words import (
    Judgement,
    answer,
    cell_words,
    concerns,
    facts,
    figure_words,
    interval_words,
    judgement,
    ratio_grid,
)
from headrace.bench.results import Ratio, Report, Section

_STYLES: dict[Judgement, str] = {
    "better": "green",
    "worse": "red",
    "higher": "bold",
    "lower": "bold",
    "no difference shown": "dim",
    "too few turns": "dim",
}


def show(report: Report, console: Console) -> None:
    """Prints all sections, and after them, where it is seen last, what to be wary of."""
    for section in report.sections:
        _section(section, console)
    found = concerns(report)
    if found:
        console.print(Text("Before you believe it", style="bold yellow"))
        for concern in found:
            line = Text("! ", style="yellow").append(concern.text).append(f" ({concern.where})")
            console.print(line)


def _section(section: Section, console: Console) -> None:
    console.rule(Text(section.title, style="bold"), align="left")
    console.print(Text(answer(section)))
    for note in section.notes:
        console.print(Text(f"* {note}", style="cyan"))
    given = [f"{name} {value}" for name, value in facts(section)]
    if given and section.measurements:
        console.print(Text(" · ".join(given), style="dim"))
    lines = summary(section)
    if lines:
        console.print(_table(lines, ANSWERS, "answers"))
        _errors(lines, console)
        console.print(_table(lines, COSTS, "cost"))
        turns = max(len(line.measurements) for line in lines)
        if turns > 1:
            console.print(Text(f"Medians of {turns} turns.", style="dim"))
    if section.ratios:
        console.print(_ratios(section))
    console.print()


def _table(lines: Sequence[Row], columns: Sequence[Column], title: str) -> Table:
    table = Table(box=None, padding=(0, 1, 0, 0), header_style="bold", pad_edge=False)
    table.add_column(title, overflow="fold", min_width=8)
    columns = shown(columns, lines)
    for column in columns:
        unit = column.unit.replace("/request", "/req")  # fits into 80 columns
        head = f"{column.title}\n{unit}" if unit else column.title
        table.add_column(Text(head), justify="right", overflow="fold")
    for line, name in zip(lines, names(lines), strict=True):
        first = Text(name)
        if line.limiting:
            first.append(" client-bound", style="yellow")
        table.add_row(first, *(Text(line.text(column)) for column in columns))
    return table


def _errors(lines: Sequence[Row], console: Console) -> None:
    failing = [(n, line) for n, line in zip(names(lines), lines, strict=True) if line.errors]
    for name, line in failing:
        said = f"{name}: {errors_words(line.errors)}"
        console.print(Padding(Text(said, style="red"), (0, 0, 0, 2)))


def _ratios(section: Section) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold", pad_edge=False)
    first = section.ratios[0]
    figures, pairs = ratio_grid(section.ratios)
    if len(pairs) > 1:
        table.add_column(f"median ratio ({first.confidence:.0%} interval)", overflow="fold")
        for figure in figures:
            table.add_column(figure)
        for name, found in pairs:
            table.add_row(Text(name), *map(_ratio, found))
        return table
    table.add_column(Text(f"{first.side} ÷ {first.base}"), overflow="fold")
    table.add_column(f"median ({first.confidence:.0%} interval)", justify="right")
    table.add_column("difference")
    for ratio in section.ratios:
        judged = judgement(ratio)
        table.add_row(
            Text(figure_words(ratio.figure)),
            interval_words(ratio),
            Text(f"real: {judged}" if ratio.real else judged, style=_STYLES[judged]),
        )
    return table


def _ratio(ratio: Ratio | None) -> Text:
    return Text(cell_words(ratio), style=_STYLES[judgement(ratio)] if ratio else "")
