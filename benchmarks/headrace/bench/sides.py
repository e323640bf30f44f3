"""A scenario carried out: its sides are started, asked its questions in turn, and stopped."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass

import numpy as np

from headrace.bench.declared import metadata
from headrace.bench.errors import BenchError
from headrace.bench.inputs import samples
from headrace.bench.models import Model
from headrace.bench.peer import PeerUnavailable, serve
from headrace.bench.peer_check import WrongAnswer, check, reference
from headrace.bench.questions import Measure, under
from headrace.bench.questions.curve import curve, saturation
from headrace.bench.questions.goodput import goodput
from headrace.bench.questions.guard import guard
from headrace.bench.questions.search import Objective, SearchOptions, search
from headrace.bench.questions.start import start
from headrace.bench.questions.versus import versus
from headrace.bench.reports.figures import load_words
from headrace.bench.results import Section
from headrace.bench.scenario import (
    CurveQuestion,
    GoodputQuestion,
    GuardQuestion,
    LoadQuestion,
    Question,
    Scenario,
    SearchQuestion,
    StartQuestion,
)
from headrace.bench.spec import Job, Load, Target
from headrace.bench.turns import one_at_a_time


@dataclass(frozen=True, slots=True)
class Side:
    """Who is measured: a peer in one of its configurations, or what runs at `address`."""

    name: str
    peer: str = ""
    configuration: str = "default"
    address: str = ""


Serve = Callable[[Side, Model], AbstractContextManager[Target]]
# What is wrong with the answers of a target, or nothing.
Prove = Callable[["Scenario", Model, Target], str]


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
        over_http = "/" in side.address
        yield Target(name=side.name, address=side.address, protocol="http" if over_http else "grpc")
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


def proven(scenario: Scenario, model: Model, target: Target) -> str:
    """Compares one answer of `target` with ONNX Runtime's own: "" where they agree, else what is
    wrong. A model that keeps state has no answer of its own to a request, and is taken on trust."""
    if scenario.protocol == "sensor" or model.settings or not target.about.get("computes", True):
        return ""
    request = scenario.requests[0]
    inputs = samples(request, metadata(target, request), 1, np.random.default_rng(0))[0]
    try:
        check(target, request.model, inputs, reference(model.path, inputs))
    except (WrongAnswer, RuntimeError) as error:
        return str(error)
    return ""


def _digest(model: Model) -> str:
    return hashlib.sha256(model.path.read_bytes()).hexdigest()[:16]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a scenario found, and on what."""

    sections: tuple[Section, ...]
    targets: tuple[Target, ...]


def carry_out(
    scenario: Scenario,
    model: Model,
    measure: Measure,
    *,
    seed: int = 0,
    serve: Serve = served,
    prove: Prove = proven,
) -> Outcome:
    """Asks `scenario`'s questions of its peers. One that cannot be measured, or whose answer is
    not the model's, has a section that says why; the others go on without it.

    Raises BenchError where nobody is left, or a question cannot be asked.
    """
    missing: dict[str, str] = {}
    sides = list(_able(scenario, missing))
    together = [q for q in scenario.questions if not isinstance(q, StartQuestion)]
    sections: list[Section] = []
    targets: list[Target] = []
    if together:
        with ExitStack() as stack:
            for each in sides:
                try:
                    target = stack.enter_context(serve(each, model))
                except PeerUnavailable as error:
                    missing[each.name] = error.reason
                    continue
                if wrong := _proven(prove, scenario, model, target):
                    missing[each.name] = wrong
                else:
                    targets.append(target)
            jobs = [scenario.job(target, seed) for target in targets]
            alone = stack.enter_context(one_at_a_time(measure, targets))
            for question in together if jobs else ():
                asked = _answers(question, jobs, scenario.turns, alone)
                sections += _until_it_fails(asked, question.kind, missing)
    if len(together) < len(scenario.questions):
        for each in sides:
            starting = _Starting(each, scenario, model, seed, serve, targets)
            try:
                sections.append(start(each.name, starting, scenario.turns, measure))
            except PeerUnavailable as error:
                missing[each.name] = error.reason
            except BenchError as error:
                missing[each.name] = str(error)
    if not sections:
        whys = "; ".join(f"{name}: {why}" for name, why in missing.items())
        raise BenchError(f"nobody could be measured: {whys}")
    sections += [not_measured(name, why) for name, why in missing.items()]
    return Outcome(tuple(sections), tuple({target.name: target for target in targets}.values()))


def _able(scenario: Scenario, missing: dict[str, str]) -> Iterator[Side]:
    """The sides that can be asked at all."""
    for words in scenario.peers:
        each = side(words)
        if scenario.protocol == "sensor" and each.peer not in ("headrace", ""):
            missing[each.name] = "it has no sensor streams"
        elif each.address and any(isinstance(q, StartQuestion) for q in scenario.questions):
            missing[each.name] = "it runs already, so that its start cannot be measured"
        else:
            yield each


@dataclass(frozen=True, slots=True)
class _Starting:
    """Starts a side, for the question how long that takes; `targets` gets who was started."""

    side: Side
    scenario: Scenario
    model: Model
    seed: int
    serve: Serve
    targets: list[Target]

    @contextmanager
    def __call__(self) -> Iterator[Job]:
        with self.serve(self.side, self.model) as target:
            self.targets.append(target)
            yield self.scenario.job(target, self.seed)


def _until_it_fails(
    asked: Iterator[Section], kind: str, missing: dict[str, str]
) -> Iterator[Section]:
    """What is known by the time at which somebody goes in the middle stays known."""
    try:
        yield from asked
    except BenchError as error:
        missing[kind] = str(error)


def _proven(prove: Prove, scenario: Scenario, model: Model, target: Target) -> str:
    """What is wrong with the target's answer, also where there is none; empty for nothing."""
    try:
        return prove(scenario, model, target)
    except BenchError as error:
        return str(error)


def not_measured(name: str, why: str) -> Section:
    """The section of what could not be measured."""
    return Section(
        title=f"{name}: not measured",
        kind="load",
        measurements=(),
        notes=(f"{name} could not be measured here: {why}",),
    )


def _answers(
    question: Question, jobs: Sequence[Job], turns: int, measure: Measure
) -> Iterator[Section]:
    if isinstance(question, LoadQuestion):
        if len(jobs) == 1:
            yield _alone(jobs[0], question.loads, measure)
            return
        for load in question.loads:
            title = f"{load_words(load.model_dump())}"
            yield versus([under(job, load) for job in jobs], turns, measure, title=title)
    elif isinstance(question, GuardQuestion):
        title = f"what a request costs, {load_words(question.load.model_dump())}"
        under_load = [under(job, question.load) for job in jobs]
        yield guard(under_load, question.base, question.at_most, turns, measure, title=title)
    elif isinstance(question, CurveQuestion):
        yield from curve(jobs, measure, question.shares)
    else:
        for job in jobs:
            yield from _one_by_one(question, job, measure)


def _one_by_one(question: Question, job: Job, measure: Measure) -> Iterator[Section]:
    if isinstance(question, SearchQuestion):
        objective = Objective(question.p99, question.errors)
        yield search(job, objective, measure, SearchOptions(tolerance=question.tolerance))
    elif isinstance(question, GoodputQuestion):
        found = saturation(_patient(job), measure)
        yield found.section
        section = goodput(job, [share * found.rate for share in question.shares], measure)
        labels = tuple(f"{share:.0%} of its saturation" for share in question.shares)
        yield section.model_copy(update={"labels": labels})


def _patient(job: Job) -> Job:
    """The same requests without deadlines: what is found is what the server can do."""
    requests = tuple(r.model_copy(update={"deadline": None}) for r in job.requests)
    return job.model_copy(update={"requests": requests})


def _alone(job: Job, loads: Sequence[Load], measure: Measure) -> Section:
    return Section(
        title=job.target.name,
        kind="load",
        measurements=tuple(measure(under(job, load)) for load in loads),
        labels=tuple(load_words(load.model_dump()) for load in loads),
    )
