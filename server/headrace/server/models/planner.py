"""Which layout a model gets: measured at load, remembered on disk, or as configured.

Theory of operation. On a CPU no single layout is best. One thread for each executor and an executor
for each core usually serve a crowd fastest; a lone caller is answered soonest by every core working
on its one request. So the sensible layouts are measured at load, within a budget: what a lone row
takes, and what rate is reached with all executors busy. The layout of the highest rate is the main
one. Where another may answer a lone row sooner, it is kept beside it, and the policy lets it, if it
does, take over while there is no crowd (`batcher/placement.py`).

Several models share the cores by this rule: each model's main layout may use them all, and the
operating system divides them among those that run; the lone layout starts only while no other model
runs anything. What the configuration says about instances or threads is taken as it is.
"""

from __future__ import annotations

import logging
import pathlib
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import onnxruntime as ort

from headrace.batcher.state import Device
from headrace.server.executors.fixed_rows import FixedRows
from headrace.server.executors.running import Session, run_session
from headrace.server.executors.session import SessionOptions, open_session
from headrace.server.models import plan_cache
from headrace.server.models.options import ModelOptions
from headrace.server.models.plan import (
    DISTURBED,
    Layout,
    Measured,
    Plan,
    candidates,
    choose,
    is_open,
)
from headrace.server.models.plan_cache import PlanCache
from headrace.server.models.probe import has_open_dimensions
from headrace.server.models.profile import Profile, profile, synthetic_rows
from headrace.server.models.spec import ModelSpec

_log = logging.getLogger(__name__)

# Seconds that measuring layouts may take for one model; one that has begun is finished.
BUDGET = 3.0
# A row that takes less has nothing to divide among threads: waking them costs as much.
_WORTH_DIVIDING = 200e-6
# Of a row whose size was guessed, a small one: the usual rows may be many times as large.
_WORTH_KEEPING = 50e-6
# More than one thread needs a session of its own, with the weights once more.
_LARGEST_TWICE = 512 << 20
_ROUNDS = 3
_LONE_RUNS = 4
# A measurement that got less than this share of the processors' time is used, but not kept.
_UNDISTURBED = 0.8
_SHORTEST_ROUND, _LONGEST_ROUND = 0.05, 0.2


@dataclass(frozen=True, slots=True)
class Subject:
    """The model that a plan is for. `first` is a session for the main layout to begin with."""

    spec: ModelSpec
    path: pathlib.Path
    first: Session

    def open(self, options: SessionOptions) -> Session:
        """One more session. Raises LoadFailed."""
        return open_rows(self.spec, open_session(self.path, options))


def open_rows(spec: ModelSpec, session: ort.InferenceSession) -> Session:
    """`session` as one that takes any number of rows, where the graph fixes it."""
    opened: Session = session
    return FixedRows(session, spec.fixed_rows) if spec.batched and spec.fixed_rows else opened


@dataclass(frozen=True, slots=True)
class Planner:
    """Finds plans. `cache` is None where none are kept; `device` is what models run on."""

    cache: PlanCache | None
    device: Device

    def complete(self, plan: Plan, options: ModelOptions, subject: Subject) -> Plan:
        """`plan` with what it was measured to do, and with other layouts where that suggests them.

        Blocks for seconds where nothing is known yet. Raises LoadFailed when a session cannot be
        opened.
        """
        if not is_open(options, plan):
            return replace(plan, measured=tuple(_profiles(plan, subject)))
        if self.device.running:
            # A measurement beside live traffic would disturb it, and be wrong.
            plan = replace(plan, origin="not measured: other models were busy")
            return replace(plan, measured=tuple(_profiles(plan, subject)))
        if self.cache is None:
            return measure(subject, plan)
        digest = plan_cache.digest(subject.path)
        kept = self.cache.load(digest, subject.spec, plan)
        if kept is not None:
            return kept
        plan = measure(subject, plan)
        if plan.origin != DISTURBED:
            self.cache.store(digest, subject.spec, plan)
        return plan


def _profiles(plan: Plan, subject: Subject) -> Iterator[Measured]:
    """What one executor of each layout in force costs."""
    for _, layout in plan.layouts:
        session = subject.first if layout is plan.main else subject.open(layout.session)
        yield _unmeasured(layout, profile(subject.spec, session))


def _needless(base: Profile, subject: Subject, worth: float) -> str:
    """Why no other layout is measured; empty where others may be better. worth: the seconds that
    a row must take to be divided among threads."""
    if base.key is None:
        return "synthetic inputs were refused"
    if subject.path.stat().st_size > _LARGEST_TWICE:
        return "its file is too large to be opened twice"
    alone = _alone(base)
    return f"{alone * 1e6:.3g} µs for a row leave nothing to divide" if alone < worth else ""


def measure(subject: Subject, plan: Plan) -> Plan:
    """The plan that measuring suggests, in place of `plan`.

    Blocks for seconds. Raises LoadFailed when a session cannot be opened.
    """
    spec, first, began = subject.spec, subject.first, time.perf_counter()
    base = profile(spec, first)
    guessed = has_open_dimensions(spec)
    needless = _needless(base, subject, _WORTH_KEEPING if guessed else _WORTH_DIVIDING)
    if needless:
        origin = f"not measured: {needless}"
        return replace(plan, origin=origin, measured=(_unmeasured(plan.main, base),))
    others = candidates(plan.main.session)[1:]
    if guessed:
        kept = [
            _unmeasured(layout, profile(spec, subject.open(layout.session)))
            for layout in others[:1]
        ]
        plan = replace(plan, measured=(_unmeasured(plan.main, base), *kept))
        return choose(replace(plan, origin="not measured: rows may have any size"), guessed=True)
    tried = [(plan.main, [first] * plan.main.instances, base)]
    for layout in others:
        if time.perf_counter() - began > BUDGET:
            break
        sessions = [subject.open(layout.session) for _ in range(layout.instances)]
        tried.append((layout, sessions, profile(spec, sessions[0])))
    lone: list[list[float]] = [[] for _ in tried]
    rates: list[list[float]] = [[] for _ in tried]
    shares = []
    for _ in range(_ROUNDS):  # alternating, so that a noisy moment meets them all
        for place, (_, sessions, costs) in enumerate(tried):
            lone[place].append(_lone(spec, sessions[0], costs))
            rate, cpus = _saturated(spec, sessions, costs)
            rates[place].append(rate)
            if place == 0:
                shares.append(cpus / plan.main.instances)
    # The best of the rounds: others on this machine can only make a layout look worse.
    found = tuple(
        Measured(layout, min(lone[place]), max(rates[place]), costs)
        for place, (layout, _, costs) in enumerate(tried)
    )
    origin = DISTURBED if min(shares) < _UNDISTURBED else "measured"
    return choose(replace(plan, origin=origin, measured=found))


def _unmeasured(layout: Layout, costs: Profile) -> Measured:
    return Measured(layout, _alone(costs), 0.0, costs)


def _alone(costs: Profile) -> float:
    """Seconds of one row; infinite where nothing could be run."""
    return float(np.median([s for rows, s in costs.runs if rows == 1] or [np.inf]))


def _lone(spec: ModelSpec, session: Session, costs: Profile) -> float:
    """Seconds of one row with nothing beside it."""
    assert costs.key is not None
    arrays = synthetic_rows(spec, 1, costs.recipe)
    taken: list[float] = []
    while sum(taken) < _SHORTEST_ROUND and len(taken) < _LONE_RUNS:
        began = time.perf_counter()
        run_session(session, costs.key, arrays)
        taken.append(time.perf_counter() - began)
    return min(taken)


def _saturated(spec: ModelSpec, sessions: Sequence[Session], costs: Profile) -> tuple[float, float]:
    """Rows a second with a thread for each of `sessions`, in batches of the best measured size, and
    the processors that this used."""
    key = costs.key
    assert key is not None
    rows, seconds = max(costs.runs, key=lambda run: run[0] / run[1])
    arrays = synthetic_rows(spec, rows, costs.recipe)
    done: list[int] = []
    stop = time.perf_counter() + min(max(_SHORTEST_ROUND, 5 * seconds), _LONGEST_ROUND)

    def work(session: Session) -> None:
        run_session(session, key, arrays)
        done.append(rows)
        while time.perf_counter() < stop:
            run_session(session, key, arrays)
            done.append(rows)

    began, used = time.perf_counter(), time.process_time()
    threads = [threading.Thread(target=work, args=(session,)) for session in sessions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    seconds = time.perf_counter() - began
    return sum(done) / seconds, (time.process_time() - used) / seconds
