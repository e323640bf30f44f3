"""The commands that measure: load, search, curve, goodput, versus, scenario."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from headrace.bench import models, scenario, sides
from headrace.bench.commands import output, values
from headrace.bench.commands.jobs import UsageError, jobs, open_load
from headrace.bench.commands.options import (
    add_arrivals,
    add_load,
    add_measuring,
    add_requests,
    add_target,
)
from headrace.bench.errors import BenchError
from headrace.bench.peer import available
from headrace.bench.prepare import prepare, probe
from headrace.bench.questions import under
from headrace.bench.questions.curve import SHARES, curve
from headrace.bench.questions.goodput import goodput
from headrace.bench.questions.ratios import ENOUGH_TURNS
from headrace.bench.questions.search import Objective, SearchOptions, search
from headrace.bench.questions.versus import versus
from headrace.bench.reports.figures import load_words
from headrace.bench.results import Section
from headrace.bench.spec import Job

_TARGET = "HOST:PORT for gRPC or http://HOST:PORT, with a name for the report as NAME=HOST:PORT"


def _common(parser: argparse.ArgumentParser) -> None:
    add_target(parser)
    add_requests(parser)
    add_measuring(parser)
    output.add_output(parser)


def add_load_command(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("target", metavar="TARGET", help=_TARGET)
    add_load(parser, several=True)
    _common(parser)


def run_load(given: argparse.Namespace) -> int:
    asked = jobs(given, given.target)
    with output.measuring(given) as measure:
        measurements = tuple(measure(job) for job in asked)
    section = Section(
        title=f"load on {asked[0].target.name}",
        kind="load",
        measurements=measurements,
        labels=tuple(load_words(job.load.model_dump()) for job in asked),
    )
    return output.finish(given, [section], [asked[0].target])


def _questioned(given: argparse.Namespace) -> Job:
    """The job of a question that finds its loads itself."""
    (job,) = jobs(given, given.target)
    load = open_load(given)
    return under(job, load) if load else job


def add_search_command(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("target", metavar="TARGET", help=_TARGET)
    parser.add_argument(
        "--p99", type=values.duration, required=True, metavar="TIME", help="the objective: 50ms"
    )
    parser.add_argument(
        "--errors",
        type=values.share,
        default=0.01,
        metavar="SHARE",
        help="of requests that may fail (default 1%%)",
    )
    parser.add_argument(
        "--tolerance",
        type=values.share,
        default=0.05,
        metavar="SHARE",
        help="stop when the interval is this tight (default 5%%)",
    )
    parser.add_argument("--start", type=values.rate, metavar="R", help="the first rate to try")
    add_arrivals(parser)
    _common(parser)


def run_search(given: argparse.Namespace) -> int:
    if not given.p99 or not given.tolerance:
        raise UsageError("--p99 and --tolerance: expected more than 0")
    job = _questioned(given)
    start = given.start or (None if job.load.kind != "open" or open_load(given) else job.load.rate)
    options = SearchOptions(start=start, tolerance=given.tolerance)
    with output.measuring(given) as measure:
        section = search(
            job, Objective(given.p99, given.errors), measure, options, output.teller(given)
        )
    return output.finish(given, [section], [job.target])


def add_curve_command(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("targets", nargs="+", metavar="TARGET", help=_TARGET)
    parser.add_argument(
        "--shares",
        type=values.several(values.share),
        default=SHARES,
        metavar="S,S",
        help="of saturation (default 10%%,20%%,...,110%%)",
    )
    add_arrivals(parser)
    _common(parser)


def run_curve(given: argparse.Namespace) -> int:
    asked = _sides(given)
    load = open_load(given)
    asked = [under(job, load) for job in asked] if load else asked
    _look_for(asked)
    with output.measuring(given) as measure:
        sections = curve(asked, measure, given.shares)
    return output.finish(given, sections, [job.target for job in asked])


def add_goodput_command(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("target", metavar="TARGET", help=_TARGET)
    parser.add_argument(
        "--rates",
        type=values.several(values.rate),
        required=True,
        metavar="R,R",
        help="requests per second, one measurement for each",
    )
    add_arrivals(parser)
    _common(parser)


def run_goodput(given: argparse.Namespace) -> int:
    job = _questioned(given)
    with output.measuring(given) as measure:
        section = goodput(job, given.rates, measure)
    return output.finish(given, [section], [job.target])


def add_versus_command(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("targets", nargs="+", metavar="TARGET", help=f"two or more: {_TARGET}")
    parser.add_argument(
        "--turns",
        type=values.count,
        default=10,
        metavar="N",
        help=f"how often the sides alternate (default 10; under {ENOUGH_TURNS} no difference can "
        "be called real)",
    )
    add_load(parser, several=True)
    _common(parser)


def run_versus(given: argparse.Namespace) -> int:
    sides = [jobs(given, target) for target in given.targets]
    names = [each[0].target.name for each in sides]
    if len(set(names)) < 2 or len(set(names)) < len(names):
        raise UsageError(f"expected two or more targets of different names, got {', '.join(names)}")
    _look_for([job for each in sides for job in each])
    with output.measuring(given) as measure:
        sections = []
        for alike in zip(*sides, strict=True):
            title = f"{' against '.join(names)}, {load_words(alike[0].load.model_dump())}"
            sections.append(versus(alike, given.turns, measure, title=title))
    return output.finish(given, sections, [each[0].target for each in sides])


def _look_for(asked: Sequence[Job]) -> None:
    """Asks every target once, before the first of them is measured for minutes. Raises
    BenchError."""
    for job in {job.target.name: job for job in asked}.values():
        probe(job, prepare(job))


def _sides(given: argparse.Namespace) -> list[Job]:
    return [job for target in given.targets for job in jobs(given, target)]


def add_scenario_command(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "names", nargs="+", metavar="NAME", help="of scenarios, their files, or all"
    )
    parser.add_argument(
        "--peers",
        nargs="+",
        metavar="PEER",
        help="who is measured, the first against the others: headrace, pytriton, pytriton:tuned, "
        "or a running server as NAME=HOST:PORT (default: what the scenario says)",
    )
    parser.add_argument("--short", action="store_true", help="the variant of a few minutes")
    parser.add_argument("--turns", type=values.count, metavar="N", help="how often they alternate")
    parser.add_argument("-d", "--duration", type=values.duration, metavar="TIME")
    parser.add_argument("--processes", type=values.count, metavar="N", help="that send")
    parser.add_argument("--seed", type=int, metavar="N", help="of all dice (default 0)")
    output.add_output(parser)


def run_scenario(given: argparse.Namespace) -> int:
    names = scenario.names() if given.names == ["all"] else given.names
    chosen = {name: _chosen(given, name) for name in names}
    sections, targets = [], {}
    with output.measuring(given) as measure:
        for name, each in chosen.items():
            try:
                found = sides.carry_out(
                    each, models.model(each.model), measure, seed=given.seed or 0
                )
            except BenchError as error:
                if len(chosen) == 1:
                    raise
                sections.append(sides.not_measured(name, str(error)))
                continue
            sections += [
                s.model_copy(update={"title": f"{name}: {s.title}"}) for s in found.sections
            ]
            targets.update({f"{name} {target.name}": target for target in found.targets})
    return output.finish(given, sections, list(targets.values()))


def _chosen(given: argparse.Namespace, name: str) -> scenario.Scenario:
    try:
        found = scenario.load(name)
    except BenchError as error:
        raise UsageError(str(error)) from error
    found = found.shortened() if given.short else found
    unknown = {side.peer for side in map(sides.side, given.peers or ())} - {"", *available()}
    if unknown:
        raise UsageError(
            f"--peers: expected some of {', '.join(available())}, or NAME=HOST:PORT, "
            f"got {', '.join(sorted(unknown))}"
        )
    changes = {key: getattr(given, key) for key in ("peers", "turns", "duration", "processes")}
    return found.model_copy(update={key: value for key, value in changes.items() if value})
