"""A report as tables in Markdown, for a README or a page of documentation."""

from __future__ import annotations

import shlex
from collections.abc import Sequence

from headrace.bench.reports.figures import ANSWERS, COSTS, names, shown, summary
from headrace.bench.reports.words import (
    answer,
    cell_words,
    concerns,
    ratio_grid,
)
from headrace.bench.results import Report, Section

_TITLES = ("throughput", "goodput", "p50", "p99", "p99.9", "failed", "server CPU", "pulse p99",
           "peak memory", "mean batch", "client busy")  # fmt: skip
_COLUMNS = [column for column in (*ANSWERS, *COSTS) if column.title in _TITLES]


def table(report: Report) -> str:
    """For each section its answer, its table and its ratios; then the warnings and the command."""
    parts = [part for section in report.sections for part in _section(section)]
    found = concerns(report)
    if found:
        parts.append("\n".join(f"- **{_plain(c.text)}** ({_plain(c.where)})" for c in found))
    fence = "```"
    while any(fence in word for word in report.command):
        fence += "`"
    parts.append(f"{fence}sh\n{shlex.join(report.command)}\n{fence}")
    return "\n\n".join(parts) + "\n"


def _section(section: Section) -> list[str]:
    parts = [f"**{_plain(section.title)}.** {_plain(answer(section))}"]
    lines = summary(section)
    if lines:
        columns = shown(_COLUMNS, lines)
        body = [
            [name + (" (client-bound)" if line.limiting else ""), *map(line.text, columns)]
            for line, name in zip(lines, names(lines), strict=True)
        ]
        head = ["", *(column.heading for column in columns)]
        parts.append(grid(head, body, numbers=range(1, len(head))))
    if section.ratios:
        figures, pairs = ratio_grid(section.ratios)
        body = [[name, *map(cell_words, found)] for name, found in pairs]
        corner = f"median ratio ({section.ratios[0].confidence:.0%} interval)"
        parts.append(grid([corner, *figures], body, numbers=()))
    if section.notes:
        parts.append("\n".join(f"- {_plain(note)}" for note in section.notes))
    return parts


def grid(head: list[str], body: list[list[str]], numbers: Sequence[int]) -> str:
    """A table whose columns at the places `numbers` are aligned to the right."""
    rule = ["---:" if place in numbers else "---" for place in range(len(head))]
    rows = [map(_plain, head), rule, *(map(_plain, row) for row in body)]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


_ACTIVE = str.maketrans({mark: f"\\{mark}" for mark in "\\`*_[]|#"} | {"<": "&lt;", "&": "&amp;"})


def _plain(text: str) -> str:
    """Text that neither ends a cell nor starts markup."""
    return " ".join(text.split()).translate(_ACTIVE)
