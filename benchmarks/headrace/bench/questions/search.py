"""The highest rate at which the 99th percentile stays under an objective."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from headrace.bench.questions import Measure, failed_share, figure, open_load, under
from headrace.bench.results import Measurement, Section
from headrace.bench.spec import ClosedLoad, Job, OpenLoad

_DOWN, _UP = 2**10, 2**20


@dataclass(frozen=True, slots=True)
class Objective:
    """`p99` in seconds; `errors` is the largest share of requests that may fail."""

    p99: float
    errors: float = 0.01


@dataclass(frozen=True, slots=True)
class SearchOptions:
    """How thoroughly to search.

    start: the first rate to try; None: the rate of the job's open load, else half of what one
        caller in a closed loop gets.
    tolerance: the search ends when the rates that held and failed differ by this share.
    requests: how many a probe has, so that ten are beyond its 99th percentile; it takes at least
        the job's duration for them, and at most `longest` seconds.
    noise: a p99 within this share of the objective does not count before it is seen again.
    probes: the most that are made, whatever has been found.
    """

    start: float | None = None
    tolerance: float = 0.05
    requests: int = 1000
    longest: float = 30.0
    noise: float = 0.15
    probes: int = 40


def search(
    job: Job,
    objective: Objective,
    measure: Measure,
    options: SearchOptions | None = None,
    tell: Callable[[str], None] = lambda _: None,
) -> Section:
    """Brackets the rate by doubling or, as low rates take long to probe, quartering; then halves
    the bracket until it is tight.

    Answers are noisy, in both directions. A rate whose p99 is near the objective, and at the end
    both rates between which the answer lies, are probed again, until two probes of three agree;
    where that overturns one, the search goes on from there. `tell` is told of each probe.
    """
    options = options or SearchOptions()
    state = _State(objective, options, _start(job, measure, options))
    while (rate := state.next()) is not None and len(state.probes) < options.probes:
        seconds = max(job.duration, min(options.requests / rate, options.longest))
        probe = under(job, open_load(job, rate), turn=len(state.probes), duration=seconds)
        state.learn(rate, measure(probe))
        tell(state.in_words)
    return _section(state, job, spent=rate is not None)


def _start(job: Job, measure: Measure, options: SearchOptions) -> float:
    if options.start is not None:
        return options.start
    if isinstance(job.load, OpenLoad):
        return job.load.rate
    alone = measure(under(job, ClosedLoad()))
    return max(alone.throughput / 2, 1 / options.longest)


@dataclass(frozen=True, slots=True)
class _Probe:
    rate: float
    measurement: Measurement
    held: bool
    doubtful: bool


@dataclass(slots=True)
class _State:
    """What is known, and what to ask next."""

    objective: Objective
    options: SearchOptions
    start: float
    probes: list[_Probe] = field(default_factory=list)

    def learn(self, rate: float, measurement: Measurement) -> None:
        p99 = p99_seconds(measurement)
        held = p99 <= self.objective.p99 and failed_share(measurement) <= self.objective.errors
        margin = 1 + self.options.noise
        doubtful = self.objective.p99 / margin < p99 < self.objective.p99 * margin
        self.probes.append(_Probe(rate, measurement, held, doubtful))

    def next(self) -> float | None:
        """The rate to probe, or None where the answer is as tight as asked for, or there is none
        from a thousandth of the start to a million times it."""
        undecided = [rate for rate in self._rates() if self._verdict(rate) is None]
        if undecided:
            return undecided[0]
        low, high = self.interval()
        if low is None and high is None:
            return self.start
        if low is None or high is None:
            wider = 2 * low if low is not None else (high or 0.0) / 4
            return wider if self.start / _DOWN <= wider <= self.start * _UP else None
        if high / low > 1 + self.options.tolerance:
            return math.sqrt(low * high)
        ends = [rate for rate in (low, high) if len(self._of(rate)) == 1]
        return ends[0] if ends else None

    def interval(self) -> tuple[float | None, float | None]:
        """The highest rate that held under the lowest that failed, and that one."""
        verdicts = {rate: self._verdict(rate) for rate in self._rates()}
        high = min((rate for rate, held in verdicts.items() if held is False), default=None)
        below = (rate for rate, held in verdicts.items() if held and (high is None or rate < high))
        return max(below, default=None), high

    @property
    def in_words(self) -> str:
        """The last probe, and what is known after it."""
        last, (low, high) = self.probes[-1], self.interval()
        between = f"{_bound(low)} held, {_bound(high)} failed"
        p99 = p99_seconds(last.measurement)
        return (
            f"probe {len(self.probes)}: {figure(last.rate)}/s, p99 {p99 * 1e3:.3g} ms, "
            f"{'held' if last.held else 'failed'}; so far {between}"
        )

    def at(self, rate: float) -> Sequence[Measurement]:
        """The measurements of a rate."""
        return [probe.measurement for probe in self._of(rate)]

    def _rates(self) -> list[float]:
        return list(dict.fromkeys(probe.rate for probe in self.probes))

    def _of(self, rate: float) -> list[_Probe]:
        return [probe for probe in self.probes if probe.rate == rate]

    def _verdict(self, rate: float) -> bool | None:
        """Whether the rate holds; None where it takes another probe to say so."""
        probes = self._of(rate)
        if len(probes) == 1:
            return None if probes[0].doubtful else probes[0].held
        held = sum(probe.held for probe in probes)
        return None if 2 * held == len(probes) else 2 * held > len(probes)


def _bound(rate: float | None) -> str:
    return "nothing" if rate is None else f"{figure(rate)}/s"


def p99_seconds(measurement: Measurement) -> float:
    """The 99th percentile of the latency; infinite where nothing was answered."""
    return measurement.latency.p99_ms / 1e3 if measurement.latency else math.inf


def _section(state: _State, job: Job, *, spent: bool) -> Section:
    low, high = state.interval()
    objective = state.objective
    notes = []
    if spent:
        notes.append(
            f"The search was ended after {len(state.probes)} probes, before the interval was as "
            "tight as asked for."
        )
    elif low is None:
        notes.append(f"No rate down to {figure(state.start / _DOWN)}/s met the objective.")
    elif high is None:
        notes.append("Every rate that was tried met the objective.")
    if any(probe.measurement.client.limiting and not probe.held for probe in state.probes):
        notes.append(
            "In a probe that failed, the load generator was the limit: the server may bear more."
        )
    return Section(
        title=f"{job.target.name}: highest rate with p99 under {objective.p99 * 1e3:g} ms",
        kind="search",
        measurements=tuple(probe.measurement for probe in state.probes),
        labels=tuple(
            f"{figure(probe.rate)}/s {'held' if probe.held else 'failed'}" for probe in state.probes
        ),
        facts={
            "rate": low,
            "low": low,
            "high": high,
            "objective_ms": objective.p99 * 1e3,
            "percentile": "p99",
            "largest_error_share": objective.errors,
        },
        notes=tuple(notes),
    )
