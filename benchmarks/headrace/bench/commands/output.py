"""What every measuring command does around its question: watch, report, keep."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from pydantic import ValidationError
from rich.console import Console

from headrace.bench import run
from headrace.bench.errors import BenchError
from headrace.bench.machine import machine, versions
from headrace.bench.questions import Measure
from headrace.bench.questions.guard import VERDICT
from headrace.bench.reports import html, terminal
from headrace.bench.reports.figures import load_words
from headrace.bench.reports.live import Live
from headrace.bench.results import Measurement, Report, Section
from headrace.bench.spec import Job, Target


def add_output(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("the report")
    group.add_argument("--json", type=Path, metavar="FILE", help="keep everything, for compare")
    group.add_argument("--html", type=Path, metavar="FILE", help="one page with charts, to look at")
    group.add_argument("-q", "--quiet", action="store_true", help="show nothing while it runs")


@contextmanager
def measuring(given: argparse.Namespace) -> Iterator[Measure]:
    """A way to measure that shows on standard error what goes on."""
    check_writable(given)
    # Told of the moment at which it began: a checkout may change while it measures.
    given.begun = {
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": machine(),
        "versions": versions(),
    }
    if given.quiet:
        yield run.measure
        return
    with Live(Console(stderr=True)) as live:

        def measure(job: Job) -> Measurement:
            live.about(f"{job.target.name}, {load_words(job.load.model_dump())}")
            return run.measure(job, live.watch)

        yield measure


def teller(given: argparse.Namespace) -> Callable[[str], None]:
    """Says on standard error how far a question is."""
    return lambda words: None if given.quiet else print(words, file=sys.stderr)


def finish(
    given: argparse.Namespace, sections: Sequence[Section], targets: Sequence[Target]
) -> int:
    """Shows the report and writes its files. Returns 0, or 1 where nothing was answered at all
    or a bound was not kept."""
    report = Report(
        command=("headrace", "bench", *given.words),
        seed=given.seed or 0,
        **given.begun,
        targets=tuple(target.model_dump(mode="json") for target in targets),
        sections=tuple(sections),
    )
    write(given.json, lambda: report.model_dump_json(indent=1))
    terminal.show(report, Console())
    write(given.html, lambda: html.page(report))
    if not any(measurement.ok for section in sections for measurement in section.measurements):
        print("headrace bench: no request was answered OK", file=sys.stderr)
        return 1
    if any(section.facts.get(VERDICT) == "fail" for section in sections):
        print("headrace bench: a bound was not kept: see the lines with FAIL", file=sys.stderr)
        return 1
    return 0


def check_writable(given: argparse.Namespace) -> None:
    """Raises BenchError where a report could not be written after all that measuring."""
    for path in filter(None, (given.json, given.html)):
        if path.is_dir() or not path.absolute().parent.is_dir():
            raise BenchError(f"{path}: expected a file in a folder that is there")


def write(path: Path | None, text: Callable[[], str]) -> None:
    """Writes a file where one was asked for. Raises BenchError where it cannot be written."""
    if path is None:
        return
    try:
        path.write_text(text(), encoding="utf-8")
    except OSError as error:
        raise BenchError(f"cannot write {path}: {error}") from error


def read(path: Path) -> Report:
    """A report that was kept. Raises BenchError, naming the file, where it is none."""
    try:
        return Report.model_validate_json(path.read_bytes())
    except OSError as error:
        raise BenchError(f"cannot read {path}: {error}") from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the file"
        what = f"{path}: expected a report of headrace bench as JSON"
        raise BenchError(f"{what}: {where}: {first['msg']}") from error
