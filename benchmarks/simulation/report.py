"""The tables, on a terminal or in Markdown, and whether the goals are met."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from rich.table import Table

from simulation.sections import Goal, Row, Section

BEGIN, END = "<!-- simulated: begin -->", "<!-- simulated: end -->"
# A rival that achieves nothing would make any ratio infinite.
_LARGEST_RATIO = 100.0


def geometric_mean(ratios: Sequence[float]) -> float:
    logs = [math.log(min(max(r, 1 / _LARGEST_RATIO), _LARGEST_RATIO)) for r in ratios]
    return math.exp(sum(logs) / len(logs))


def header(row: Row) -> list[str]:
    rivals = list(row.rivals)
    return [
        "workload",
        "ours",
        *rivals,
        *(f"ours / {r}" for r in rivals),
        *row.shown,
        "tuned knobs",
    ]


def cells(row: Row) -> list[str]:
    scores = [row.ours, *row.rivals.values()]
    ratios = [f"{min(row.ratio(rival), _LARGEST_RATIO):.2f}" for rival in row.rivals]
    return [row.workload, *map(_number, scores), *ratios, *row.shown.values(), row.knobs]


def _number(value: float) -> str:
    return f"{value:.0f}" if value >= 10 else f"{value:.3f}"


def terminal(section: Section, rows: Sequence[Row]) -> Table:
    table = Table(title=f"{section.letter}. {section.title} ({section.unit})")
    for place, name in enumerate(header(rows[0])):
        table.add_column(name, justify="right" if place else "left", no_wrap=not place)
    for row in rows:
        lost = any(row.ratio(goal.rival) < (goal.every or 0) for goal in section.goals)
        table.add_row(*cells(row), style="red" if lost else None)
    return table


def verdicts(section: Section, rows: Sequence[Row]) -> list[str]:
    """A line for each rival: the geometric mean, the worst, and which goals are met."""
    goals = {goal.rival: goal for goal in section.goals}
    out = []
    for rival in rows[0].rivals:
        ratios = [row.ratio(rival) for row in rows]
        worst = min(rows, key=lambda row: row.ratio(rival))
        line = (
            f"ours / {rival}: geometric mean {geometric_mean(ratios):.3f}, "
            f"worst {worst.ratio(rival):.3f} ({worst.workload})"
        )
        out.append("; ".join([line, *_judged(goals.get(rival), ratios)]))
    return out


def _judged(goal: Goal | None, ratios: Sequence[float]) -> list[str]:
    out = []
    if goal and goal.mean is not None:
        met = "met" if geometric_mean(ratios) >= goal.mean else "NOT met"
        out.append(f"goal of {goal.mean:g} for the mean {met}")
    if goal and goal.every is not None:
        below = sum(ratio < goal.every for ratio in ratios)
        met = "met" if not below else f"NOT met on {below} of {len(ratios)}"
        out.append(f"goal of {goal.every:g} for every workload {met}")
    return out


def markdown(section: Section, rows: Sequence[Row]) -> str:
    names = header(rows[0])
    lines = [f"### {section.letter}. {section.title}", ""]
    lines += [f"- {line}" for line in verdicts(section, rows)]
    lines += ["", f"In {section.unit}:", "", "| " + " | ".join(names) + " |"]
    lines.append("|---" + "|---:" * (len(names) - 1) + "|")
    lines += ["| " + " | ".join(cells(row)) + " |" for row in rows]
    return "\n".join(lines) + "\n"


def write(page: Path, parts: Sequence[str]) -> None:
    """Puts the tables between the marks on `page`. Raises ValueError where it has no marks."""
    text = page.read_text(encoding="utf-8")
    if BEGIN not in text or END not in text:
        raise ValueError(f"{page}: expected the marks {BEGIN} and {END}")
    before, after = text.split(BEGIN)[0], text.split(END)[1]
    tables = "\n".join(parts)
    page.write_text(f"{before}{BEGIN}\n\n{tables}\n{END}{after}", encoding="utf-8")
