"""One HTML file that says it all: nothing fetched, nothing run, readable on paper."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from importlib import resources
from typing import Any

from headrace.bench.reports import plots
from headrace.bench.reports.figures import (
    ANSWERS,
    COSTS,
    NOTHING,
    Column,
    Row,
    errors_words,
    names,
    number,
    rows,
    shown,
    summary,
    unknown,
)
from headrace.bench.reports.markup import Markup, element, join
from headrace.bench.reports.words import answer, concerns, facts, headline
from headrace.bench.results import Report, Section

_FOLDED = 24  # a table of more lines than these stays closed until it is asked for


def page(report: Report) -> str:
    """The whole page. Raises ValueError for a histogram that can't be read."""
    css = resources.files("headrace.bench.reports").joinpath("page.css").read_text("utf-8")
    sections = [_section(section, f"s{i}") for i, section in enumerate(report.sections, 1)]
    body = element("main", _header(report), _summary(report), *sections, _setting(report))
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("meta", name="color-scheme", content="light dark"),
        element("title", f"{_title(report)}: load test"),
        Markup(f"<style>{css}</style>"),
    )
    return f"<!doctype html>\n{element('html', head, element('body', body), lang='en')}\n"


def _title(report: Report) -> str:
    targets = list(dict.fromkeys(m.target for s in report.sections for m in s.measurements))
    if not 0 < len(targets) <= 3:
        return f"{len(targets)} targets" if targets else "Nothing measured"
    return " and ".join([", ".join(targets[:-1]), targets[-1]] if targets[1:] else targets)


def _header(report: Report) -> Markup:
    machine = " · ".join(_value(v) for v in report.machine.values() if _brief(v))
    return element(
        "header",
        element("p", "headrace bench", class_="kicker"),
        element("h1", _title(report)),
        element("p", report.started.replace("T", " ").replace("+00:00", "Z"), class_="when"),
        element("p", machine, class_="machine") if machine else None,
    )


def _brief(value: Any) -> bool:
    """Whether a fact of the machine tells something by itself, without its key."""
    return isinstance(value, str) and 0 < len(value) < 80


def _summary(report: Report) -> Markup:
    answers = []
    for place, section in enumerate(report.sections, 1):
        glance, unit = headline(section)
        answers.append(
            element(
                "li",
                element("a", section.title, href=f"#s{place}", class_="question"),
                element("span", glance, element("small", unit), class_="glance"),
                element("span", answer(section), class_="answer"),
            )
        )
    found = concerns(report)
    told = [
        element("li", concern.text, " ", element("span", concern.where, class_="where"))
        for concern in found
    ]
    warning = (
        element(
            "aside", element("h2", "Before you believe it"), element("ul", *told), class_="warn"
        )
        if told
        else element("p", "No warnings: the load generator kept up.", class_="fine")
        if any(section.measurements for section in report.sections)
        else None
    )
    answered = element("ol", *answers, class_="answers")
    return element("section", answered, warning, class_="summary", aria_label="Summary")


def _section(section: Section, identity: str) -> Markup:
    lines = summary(section)
    compared = plots.ratios(section, f"{identity}-ratios")
    drawn = [*compared, *plots.plots(section, identity)]
    missing = unknown(lines) if lines else []
    return element(
        "section",
        element("h2", section.title),
        element("p", answer(section), class_="answer"),
        _notes(section),
        _facts(section),
        _tables(section, lines),
        element("p", f"Not known here: {', '.join(missing)}.", class_="missing")
        if missing
        else None,
        *_plots(drawn),
        _turns(section),
        id=identity,
    )


def _notes(section: Section) -> Markup | None:
    if not section.notes:
        return None
    told = [element("li", note) for note in section.notes]
    title = "What differs" if section.kind == "versus" else "To know"
    return element("aside", element("h3", title), element("ul", *told), class_="notes")


def _facts(section: Section) -> Markup | None:
    if not section.facts:
        return None
    pairs = [
        element("div", element("dt", name), element("dd", value)) for name, value in facts(section)
    ]
    return element("dl", *pairs, class_="facts")


def _tables(section: Section, lines: Sequence[Row]) -> Markup | None:
    if not lines:
        return None
    both = join(_table(lines, ANSWERS, "Answers"), _table(lines, COSTS, "What they cost"))
    turns = max(len(line.measurements) for line in lines)
    note = element("p", f"Medians of {turns} turns.", class_="missing") if turns > 1 else None
    if len(lines) <= _FOLDED:
        return join(both, note)
    return element("details", element("summary", f"All {len(lines)} measurements"), both)


def _turns(section: Section) -> Markup | None:
    """Where the tables above are medians: every measurement by itself."""
    lines = rows(section)
    if section.kind != "versus" or len(lines) == len(summary(section)):
        return None
    both = join(_table(lines, ANSWERS, "Answers"), _table(lines, COSTS, "What they cost"))
    return element("details", element("summary", f"All {len(lines)} turns"), both)


def _table(lines: Sequence[Row], columns: Sequence[Column], title: str) -> Markup | None:
    columns = shown(columns, lines)
    if not columns:
        return None
    failing = title == "Answers" and any(line.errors for line in lines)
    head = [element("th", title, scope="col")]
    head += [
        element(
            "th",
            column.title,
            element("span", column.unit or " ", class_="unit"),
            scope="col",
            title=column.meaning,
        )
        for column in columns
    ]
    if failing:
        head.append(element("th", "errors by status", scope="col", class_="words"))
    body = []
    for line, name in zip(lines, names(lines), strict=True):
        mark = element("strong", " client-bound", class_="bound") if line.limiting else None
        cells = [element("th", name, mark, scope="row")]
        cells += [element("td", line.text(column)) for column in columns]
        if failing:
            cells.append(element("td", _breakable(errors_words(line.errors)), class_="words"))
        body.append(element("tr", *cells))
    inside = join(element("thead", element("tr", *head)), element("tbody", *body))
    return element("div", element("table", inside), class_="scroll", tabindex=0)


def _breakable(words: str) -> Markup:
    """Lines may break after the underscores of a status' name."""
    if not words:
        return Markup(NOTHING)
    parts = words.split("_")
    out: list[str | None] = [parts[0]]
    for part in parts[1:]:
        out += ["_", element("wbr"), part]
    return join(*out)


def _plots(drawn: Sequence[plots.Plot]) -> list[Markup]:
    """The charts in their groups, those that stand alone first."""
    out = []
    for group in dict.fromkeys(plot.group for plot in drawn):
        figures = [_figure(plot) for plot in drawn if plot.group == group]
        if group:
            out.append(element("h3", group))
        out.append(element("div", *figures, class_="plots small" if group else "plots"))
    return out


def _figure(plot: plots.Plot) -> Markup:
    caption = element("figcaption", element("b", plot.title), " ", plot.caption)
    return element("figure", caption, plot.drawn)


def _setting(report: Report) -> Markup:
    """All that is needed to judge the run and to do it again."""
    targets = [_pairs(_named(target, place), target) for place, target in enumerate(report.targets)]
    again = element("pre", shlex.join(report.command))
    return element(
        "section",
        element("h2", "How it was measured"),
        element("p", "Latency counts from when a request was due, not from when it was sent; "
                "percentiles are of requests answered OK, and of those without an answer at the "
                "end, by the time that they had waited."),
        element("h3", "To do it again"),
        again,
        element("p", f"Seed {report.seed}. Started {report.started}."),
        element("div", *targets, _pairs("Machine", report.machine),
                _pairs("Versions", report.versions), class_="setting"),
        element("h3", "What the columns mean"),
        element("dl", *(
            element("div", element("dt", c.heading), element("dd", c.meaning))
            for c in (*ANSWERS, *COSTS)
        ), class_="meanings"),
        id="setting",
    )  # fmt: skip


def _named(target: Mapping[str, Any], place: int) -> str:
    return f"Target: {target.get('name', place + 1)}"


def _pairs(title: str, values: Mapping[str, Any]) -> Markup | None:
    flat = [(key, value) for key, value in _flat(values) if key != "name"]
    lines = [
        element("tr", element("th", key, scope="row"), element("td", value)) for key, value in flat
    ]
    if not lines:
        return None
    return element("div", element("h3", title), element("table", element("tbody", *lines)))


def _flat(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Nested keys with dots, but for "about"; what is empty is left out."""
    out: list[tuple[str, str]] = []
    for key, value in values.items():
        if isinstance(value, Mapping):
            out += _flat(value, "" if key == "about" else f"{prefix}{key}.")
        elif value not in (None, "", [], ()):
            out.append((f"{prefix}{key}".replace("_", " "), _value(value)))
    return out


def _value(value: Any) -> str:
    if isinstance(value, bool | str):
        return str(value)
    if isinstance(value, int):
        return f"{value:,}" if value >= 100_000 else str(value)
    if isinstance(value, float):
        return number(value)
    if isinstance(value, list | tuple):
        return ", ".join(map(_value, value))
    return json.dumps(value, default=str)
