"""How a model is laid out on its device: so many executors, each with so many threads."""

from __future__ import annotations

import pathlib
from dataclasses import dataclass, replace

from headrace.server.executors.resources import usable_cpus
from headrace.server.executors.session import Provider, SessionOptions, resolve
from headrace.server.models.options import ModelOptions
from headrace.server.models.profile import Profile

_MOST_INSTANCES = 32
# Noise: a layout must be so much better than one with fewer threads to be taken instead. One that
# is faster by less is kept for lone requests, and has the crowd too where that proves it faster.
_CLEARLY_FASTER, _CLEARLY_SOONER = 1.06, 0.97
# What is learned from requests has the last word: a layout that may answer a lone request sooner is
# kept ready unless it took so much longer when it was measured. That may have been a bad moment.
_NOT_SOONER = 1.15
DISTURBED = "measured while others used the processors"


@dataclass(frozen=True, slots=True)
class Layout:
    """`instances` executors that each have a session opened with these options."""

    session: SessionOptions
    instances: int

    @property
    def kind(self) -> str:
        """What its executors are called, and learn under: equal for equally fast ones."""
        threads, provider = self.session.intra_op_threads, self.session.provider
        on_threads = threads > 1 and provider is Provider.CPU
        return f"{provider.value}x{threads}" if on_threads else provider.value

    @property
    def in_words(self) -> str:
        """For people, like "2 executors x 1 thread on cpu"."""
        threads, provider = self.session.intra_op_threads, self.session.provider
        executors = f"{self.instances} executor{'s'[: self.instances != 1]}"
        return f"{executors} x {threads} thread{'s'[: threads != 1]} on {provider.value}"

    @property
    def shares_session(self) -> bool:
        """On one thread ONNX Runtime runs where it is called, so executors share the session and
        its weights. More threads are a pool of the session's own: each executor needs its own."""
        return self.session.intra_op_threads == 1 and self.session.provider is Provider.CPU


@dataclass(frozen=True, slots=True)
class Measured:
    """A layout and what it does: seconds of one row with everything else idle, and rows a second
    with all its executors busy. `profile` are the costs of one of its executors."""

    layout: Layout
    alone: float
    rate: float
    profile: Profile


@dataclass(frozen=True, slots=True)
class Plan:
    """The layouts in force.

    main: serves by default. lone: takes over for a lone request if it is sooner; None when the main
    one was measured to be clearly best at that too. helpers: slower executors beside the main ones,
    None for none. origin: how this was found, for people. measured: every layout that was tried.
    """

    main: Layout
    lone: Layout | None = None
    helpers: Layout | None = None
    origin: str = "configured"
    measured: tuple[Measured, ...] = ()

    @property
    def layouts(self) -> list[tuple[int, Layout]]:
        """Every layout in force with the number of its team."""
        teams = [(0, self.main), (0, self.helpers), (1, self.lone)]
        return [(team, layout) for team, layout in teams if layout is not None]

    @property
    def in_words(self) -> str:
        """For people."""
        words = f"{self.main.in_words} ({self.origin})"
        if self.helpers is not None:
            words += f", helped by {self.helpers.in_words}"
        if self.lone is not None:
            words += f", a lone request by {self.lone.in_words}"
        return words


def configured(
    options: ModelOptions, preferred: Provider, libraries: tuple[pathlib.Path, ...] = ()
) -> Plan:
    """What `options` ask for; where they leave it open, a single-threaded executor per CPU.
    `libraries` of custom operators are loaded with each session.

    Raises LoadFailed when the provider cannot be had.
    """
    provider = resolve(options.provider or preferred)
    threads = options.intra_op_threads or 1
    instances = options.instances or (_fitting(threads) if provider is Provider.CPU else 1)
    between, device = options.inter_op_threads or 1, options.device_id
    session = SessionOptions(provider, threads, between, device, libraries)
    helpers = None
    if options.cpu_helpers and provider is Provider.CUDA:
        helpers = Layout(replace(session, provider=Provider.CPU), options.cpu_helpers)
    return Plan(Layout(session, instances), helpers=helpers)


def is_open(options: ModelOptions, plan: Plan) -> bool:
    """Whether the configuration leaves the layout to be measured."""
    said = (options.instances, options.intra_op_threads, options.inter_op_threads)
    return plan.main.session.provider is Provider.CPU and said == (None, None, None)


def _fitting(threads: int) -> int:
    return max(1, min(_MOST_INSTANCES, usable_cpus() // threads))


def candidates(options: SessionOptions) -> list[Layout]:
    """The sensible layouts, the most telling first: 1 thread, all cores, then halves of that."""
    cpus = usable_cpus()
    threads = [1]
    while cpus > 1:
        threads.append(cpus)
        cpus //= 2
    return [Layout(replace(options, intra_op_threads=n), _fitting(n)) for n in threads]


def choose(plan: Plan, *, guessed: bool = False) -> Plan:
    """`plan` with the main and the lone layout that its measurements suggest.

    guessed: inputs have dimensions whose usual size is not known. What was measured at some small
    size says little about larger rows. So the main layout is the one that nearly always has the
    highest rate, of one thread each, and that of most threads is kept for requests to tell.
    """
    by_threads = sorted(plan.measured, key=lambda m: m.layout.session.intra_op_threads)
    if guessed:
        main, lone = by_threads[0], by_threads[-1]
        return replace(plan, main=main.layout, lone=None if lone is main else lone.layout)
    main = lone = by_threads[0]
    for other in by_threads[1:]:
        if other.rate > _CLEARLY_FASTER * main.rate:
            main = other
    lone, bound = main, _NOT_SOONER
    for other in by_threads:
        if other is not main and other.alone < bound * lone.alone:
            lone, bound = other, _CLEARLY_SOONER
    return replace(plan, main=main.layout, lone=None if lone is main else lone.layout)
