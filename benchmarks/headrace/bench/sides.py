"""A scenario carried out: its sides are started, asked its questions in turn, and stopped."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass

from headrace.bench.errors import BenchError
from headrace.bench.models import Model
from headrace.bench.peer import PeerUnavailable, serve
from headrace.bench.questions import Measure, under
from headrace.bench.questions.curve import curve, saturation
from headrace.bench.questions.goodput import goodput
from headrace.bench.questions.search import Objective, SearchOptions, search
from headrace.bench.questions.start import start
from headrace.bench.questions.versus import versus
from headrace.bench.reports.figures import load_words
from headrace.bench.results import Section
from headrace.bench.scenario import (
    CurveQuestion,
    GoodputQuestion,
    LoadQuestion,
    Question,
    Scenario,
    SearchQuestion,
    StartQuestion,
)
from headrace.bench.spec import Job, Load, Target


@dataclass(frozen=True, slots=True)
class Side:
    """Who is measured: a peer in one of its configurations, or what runs at `address`."""

    name: str
    peer: str = ""
    configuration: str = "default"
    address: str = ""


Serve = Callable[[Side, Model], AbstractContextManager[Target]]


def side(words: str) -> Side:
    """ "pytriton", "pytriton:tuned", or a running server as "name=host:port" or "host:port"."""
    name, named, address = words.rpartition("=")
    if named or "/" in words or words.rpartition(":")[2].isdigit():
        return Side(name or words, address=address)
    peer, _, configuration = words.partition(":")
    return Side(words.replace(":", " "), peer, configuration or "default")


@contextmanager
def served(side: Side, model: Model) -> Iterator[Target]:
    """`model` served by `side`. Raises PeerUnavailable where it cannot be, and BenchError for a
    peer or configuration that there is not."""
    known = {"model_file": model.about, "model_sha256": _digest(model)}
    if side.address:
        protocol = "http" if "/" in side.address else "grpc"
        yield Target(name=side.name, address=side.address, protocol=protocol)
        return
    ours = model.settings if side.peer == "headrace" else {}
    with ExitStack() as stack:
        try:
            target = stack.enter_context(
                serve(
                    side.peer,
                    model.path,
                    side.configuration,
                    name=side.name,
                    model_name=model.name,
                    settings=ours,
                )
            )
        except ValueError as error:
            raise BenchError(str(error)) from error
        yield target.model_copy(update={"about": {**target.about, **known}})


def _digest(model: Model) -> str:
    return hashlib.sha256(model.path.read_bytes()).hexdigest()[:16]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a scenario found, and on what."""

    sections: tuple[Section, ...]
    targets: tuple[Target, ...]


def carry_out(
    name: str,
    scenario: Scenario,
    model: Model,
    measure: Measure,
    *,
    seed: int = 0,
    serve: Serve = served,
) -> Outcome:
    """Asks `scenario`'s questions of its peers. One that cannot be measured has a section that
    says why; the others go on without it."""
    sections: list[Section] = []
    targets: list[Target] = []
    sides = _able(scenario, sections)
    together = [q for q in scenario.questions if not isinstance(q, StartQuestion)]
    if together:
        with ExitStack() as stack:
            for each in sides:
                try:
                    targets.append(stack.enter_context(serve(each, model)))
                except PeerUnavailable as error:
                    sections.append(_missing(each.name, error.reason))
            jobs = [scenario.job(target, seed) for target in targets]
            for question in together:
                sections += _answers(question, jobs, scenario.turns, measure)
    if len(together) < len(scenario.questions):
        for each in sides:
            try:
                sections.append(_start(each, scenario, model, measure, serve, seed, targets))
            except PeerUnavailable as error:
                sections.append(_missing(each.name, error.reason))
    named = (s.model_copy(update={"title": f"{name}: {s.title}"}) for s in sections)
    return Outcome(tuple(named), tuple(dict.fromkeys(targets)))
