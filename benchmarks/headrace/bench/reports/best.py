"""Several reports as one table: each server in the configuration that did best, in hindsight."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from statistics import median

from headrace.bench.errors import BenchError
from headrace.bench.reports.figures import NOTHING, number
from headrace.bench.reports.markdown import grid
from headrace.bench.results import Measurement, Report, Section

_OURS = "headrace"


def best(reports: Sequence[Report]) -> str:
    """Markdown: a row for each section whose sides took turns, a column for each server.

    A server's figures are those of its configuration of the highest throughput, medians of all
    turns. Headrace's configurations are columns of their own: for them nothing is chosen. Sections
    of other kinds have no row. Raises BenchError where that leaves nothing.
    """
    found: dict[str, dict[str, str]] = {}
    for report in reports:
        servers = {target["name"]: _server(target) for target in report.targets}
        for section in report.sections:
            if section.kind == "versus":
                found[section.title] = _row(section, servers)
    if not found:
        raise BenchError("expected a report of sides that took turns, found none")
    columns = list(dict.fromkeys(server for row in found.values() for server in row))
    body = [
        [title, *(row.get(column, NOTHING) for column in columns)] for title, row in found.items()
    ]
    return grid(["requests/s (p99, ms)", *columns], body, numbers=range(1, len(columns) + 1))


def _server(target: dict[str, object]) -> str:
    about = target.get("about")
    peer = about.get("peer") if isinstance(about, dict) else None
    return str(target["name"] if peer in (None, _OURS) else peer)


def _row(section: Section, servers: dict[str, str]) -> dict[str, str]:
    sides: dict[str, list[Measurement]] = defaultdict(list)
    for measurement in section.measurements:
        sides[measurement.target].append(measurement)
    most: dict[str, tuple[float, str]] = {}
    for name, turns in sides.items():
        rate = median(turn.throughput for turn in turns)
        tails = [turn.latency.p99_ms for turn in turns if turn.latency and turn.latency.count]
        words = f"{number(rate)} ({number(median(tails)) if tails else NOTHING})"
        server = servers.get(name, name)
        most[server] = max(most.get(server, (-1.0, "")), (rate, words))
    return {server: words for server, (_, words) in most.items()}
