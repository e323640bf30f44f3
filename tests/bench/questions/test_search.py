"""The search against queueing theory, and against answers that are noisy."""

from __future__ import annotations

import math
import random
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.fakes import deterministic_server, job, measurement
from headrace.bench.questions.search import Objective, SearchOptions, search
from headrace.bench.results import Measurement
from headrace.bench.spec import ClosedLoad, Job, OpenLoad

SERVICE = 0.010


def waits_at_most(seconds: float, rate: float) -> float:
    """P(W ≤ t) of M/D/1 by Erlang's formula (1909): (1-λD) Σ (-λ(t-kD))^k / k! · e^(λ(t-kD)), over
    k from 0 to t/D."""
    terms = []
    for k in range(math.floor(seconds / SERVICE + 1e-9) + 1):
        u = rate * (seconds - k * SERVICE)
        terms.append((-u) ** k / math.factorial(k) * math.exp(u))
    return (1 - rate * SERVICE) * math.fsum(terms)


def known_answer(objective: float) -> float:
    """The rate at which 1 % of requests take longer than `objective`, by bisection."""
    low, high = 0.0, 1 / SERVICE
    while high - low > 1e-6:
        middle = (low + high) / 2
        if waits_at_most(objective - SERVICE, middle) >= 0.99:
            low = middle
        else:
            high = middle
    return low


def server(job: Job) -> Measurement:
    return deterministic_server(job, SERVICE)


def by_rate(p99: Callable[[float], float]) -> Callable[[Job], Measurement]:
    """A server whose p99, in seconds, is a function of the rate."""

    def measure(job: Job) -> Measurement:
        assert isinstance(job.load, OpenLoad)
        return measurement(job, [p99(job.load.rate)] * 100)

    return measure


def test_it_says_how_far_it_is() -> None:
    told: list[str] = []
    p99 = by_rate(lambda rate: 0.01 if rate <= 100 else 0.1)
    section = search(job(), Objective(0.05), p99, SearchOptions(start=60), told.append)
    assert len(told) == len(section.measurements)
    assert told[0] == "probe 1: 60/s, p99 10 ms, held; so far 60/s held, nothing failed"
    assert told[1] == "probe 2: 120/s, p99 100 ms, failed; so far 60/s held, 120/s failed"


@pytest.mark.parametrize("objective", [0.025, 0.040, 0.080])
def test_the_rate_is_that_of_theory(objective: float) -> None:
    """M/D/1 with 100 requests a second at most: the answers are 45.6, 66.6 and 85.2."""
    options = SearchOptions(requests=40_000, longest=2000)
    section = search(job(), Objective(objective), server, options)
    expected = known_answer(objective)
    rate, high = section.facts["rate"], section.facts["high"]
    assert isinstance(rate, float)
    assert isinstance(high, float)
    assert rate == pytest.approx(expected, rel=0.05)
    assert rate < high <= rate * 1.05
    assert section.notes == ()


@settings(deadline=None)
@given(limit=st.floats(0.05, 1e5), start=st.floats(0.5, 5000), tolerance=st.floats(0.01, 0.5))
def test_a_sharp_limit_is_always_bracketed(limit: float, start: float, tolerance: float) -> None:
    measure = by_rate(lambda rate: 0.01 if rate <= limit else 1.0)
    options = SearchOptions(start=start, tolerance=tolerance)
    section = search(job(), Objective(0.1), measure, options)
    low, high = section.facts["low"], section.facts["high"]
    if limit < start / 1024:
        assert low is None
        assert "No rate" in section.notes[0]
        return
    assert isinstance(low, float)
    assert isinstance(high, float)
    assert low <= limit < high <= low * (1 + tolerance)


@settings(deadline=None)
@given(seed=st.integers(0, 10_000))
def test_a_false_answer_does_not_mislead(seed: int) -> None:
    """Each end of the interval is asked twice, so a false one must be so twice over."""
    dice = random.Random(seed)
    asked: list[float] = []

    def p99(rate: float) -> float:
        asked.append(rate)
        holds = (rate <= 100) != (len(asked) == 1 + seed % 8)  # one answer is false
        return dice.uniform(0.01, 0.05) if holds else 1.0

    section = search(job(), Objective(0.1), by_rate(p99), SearchOptions(start=40))
    low, high = section.facts["low"], section.facts["high"]
    assert isinstance(low, float)
    assert isinstance(high, float)
    assert low <= 100 * 1.05
    assert high >= 100 / 1.05
    assert min(asked.count(low), asked.count(high)) >= 2


def test_what_is_near_the_objective_is_asked_again() -> None:
    asked: list[float] = []

    def p99(rate: float) -> float:
        asked.append(rate)
        return 0.099 if rate <= 10 else 5.0

    search(job(), Objective(0.1), by_rate(p99), SearchOptions(start=10))
    assert asked[:3] == [10, 10, 20]


def test_errors_count_as_much_as_lateness() -> None:
    def measure(job: Job) -> Measurement:
        assert isinstance(job.load, OpenLoad)
        refused = {"RESOURCE_EXHAUSTED": 2} if job.load.rate > 70 else {}
        return measurement(job, [0.001] * 100, errors=refused, sent=102 if refused else 100)

    section = search(job(), Objective(0.1, errors=0.01), measure, SearchOptions(start=50))
    low, high = section.facts["low"], section.facts["high"]
    assert isinstance(low, float)
    assert isinstance(high, float)
    assert low <= 70 < high
    lax = search(job(), Objective(0.1, errors=0.05), measure, SearchOptions(start=50, probes=8))
    assert lax.facts["high"] is None


def test_probes_are_long_enough_for_a_p99_and_differ_in_seed() -> None:
    jobs: list[Job] = []

    def measure(job: Job) -> Measurement:
        jobs.append(job)
        assert isinstance(job.load, OpenLoad)
        return measurement(job, [0.01 if job.load.rate <= 300 else 1.0] * 10)

    options = SearchOptions(start=5, requests=1000, longest=60)
    search(job(duration=2.0), Objective(0.1), measure, options)
    durations = {each.load.rate: each.duration for each in jobs if isinstance(each.load, OpenLoad)}
    assert (durations[5], durations[20], durations[320]) == (60, 50, 3.125)
    assert len({each.seed for each in jobs}) == len(jobs)


def test_it_starts_from_what_a_lone_caller_gets() -> None:
    first: list[Job] = []

    def measure(job: Job) -> Measurement:
        first.append(job)
        return server(job)

    search(job(), Objective(0.05), measure, SearchOptions(probes=2))
    assert isinstance(first[0].load, ClosedLoad)
    assert isinstance(first[1].load, OpenLoad)
    assert first[1].load.rate == pytest.approx(0.5 / SERVICE)


def test_the_law_of_arrivals_is_kept() -> None:
    seen: list[object] = []

    def measure(job: Job) -> Measurement:
        seen.append(job.load)
        return server(job)

    load = OpenLoad(rate=20, arrivals="gamma", burstiness=4)
    bursty = job().model_copy(update={"load": load})
    search(bursty, Objective(0.05), measure, SearchOptions(probes=2))
    assert seen[0] == load
    assert isinstance(seen[1], OpenLoad)
    assert seen[1].model_copy(update={"rate": 20}) == load


def test_a_limiting_client_is_told() -> None:
    def measure(job: Job) -> Measurement:
        assert isinstance(job.load, OpenLoad)
        late = job.load.rate > 100
        found = measurement(job, [1.0 if late else 0.01] * 100)
        return found.model_copy(
            update={"client": found.client.model_copy(update={"limiting": late})}
        )

    section = search(job(), Objective(0.1), measure, SearchOptions(start=64))
    assert any("load generator was the limit" in note for note in section.notes)


def test_an_end_before_the_answer_is_told() -> None:
    section = search(
        job(), Objective(0.1), by_rate(lambda rate: 0.0), SearchOptions(start=1, probes=5)
    )
    assert (section.facts["low"], section.facts["high"]) == (16, None)
    assert "5 probes" in section.notes[0]
