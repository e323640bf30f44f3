"""The harness against servers of which the truth is known: queueing theory, and scripted faults.

Each replication has its own seed, all seeds are fixed, and time is virtual: what is compared with
theory is the mean of the replications, within four of its standard errors.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable

import numpy as np
import pytest

from headrace.bench.recorder import Totals
from headrace.bench.spec import ClosedLoad, OpenLoad
from support.virtual import FakeServer, VirtualLoop, play, run

REPLICATIONS = 8


def replicate(service: Callable[[int], float], rate: float, processes: int = 1) -> list[Totals]:
    """Replications of a Poisson load, each with its own seed."""
    played = (
        play(
            OpenLoad(rate=rate),
            FakeServer(service),
            seconds=15.0,
            warm_up=2.0,
            seed=2 * seed,
            processes=processes,
        )
        for seed in range(REPLICATIONS)
    )
    return [run(one).totals() for one in played]


def mean_and_error(figure: str, replications: list[Totals]) -> tuple[float, float]:
    """Of a figure of the latency, in seconds: its mean and that one's standard error."""
    found = np.array([getattr(totals.latency, figure) for totals in replications]) / 1e3
    return float(found.mean()), float(found.std(ddof=1) / math.sqrt(len(found)))


@pytest.mark.parametrize("processes", [1, 3])
def test_mean_latency_of_a_constant_server_is_that_of_md1(processes: int) -> None:
    rate, service = 400.0, 0.0015
    load = rate * service
    theory = service + load * service / (2 * (1 - load))  # Pollaczek-Khinchine
    found = replicate(lambda number: service, rate, processes)
    mean, error = mean_and_error("mean_ms", found)
    assert abs(mean - theory) < 4 * error
    assert error < 0.02 * theory


def test_percentiles_of_a_random_server_are_those_of_mm1() -> None:
    """The time in an M/M/1 system is exponential with the rate mu - lambda."""
    arrive, serve = 300.0, 500.0
    rng = np.random.default_rng(7)
    found = replicate(lambda number: rng.exponential(1 / serve), arrive)
    for figure, quantile in (("p50_ms", 0.5), ("p90_ms", 0.9), ("p99_ms", 0.99)):
        theory = -math.log(1 - quantile) / (serve - arrive)
        mean, error = mean_and_error(figure, found)
        assert abs(mean - theory) < 4 * error, figure
        assert error < 0.05 * theory, figure


def test_throughput_of_an_overloaded_server_is_what_it_can_do() -> None:
    """Three times too much, for 10 s: what drains after the end does not count."""
    totals = run(
        play(
            OpenLoad(rate=300, arrivals="constant"),
            FakeServer(lambda number: 0.01),
            seconds=10.0,
            grace=5.0,
        )
    ).totals()
    assert totals.throughput == pytest.approx(100, abs=0.2)
    assert totals.sent == 3000
    assert totals.ok == pytest.approx(1500, abs=2)
    assert totals.unfinished == totals.sent - totals.ok
    assert totals.latency is not None
    # Half were never answered. The youngest of them was due 5 s before the waiting ended.
    assert totals.latency.count == totals.sent
    assert totals.latency.p50_ms > 5000


def test_a_pause_is_seen_by_an_open_load() -> None:
    """1000 requests, of which 100 are due in a pause of 1 s: one in a hundred waits 0.9 s."""
    server = FakeServer(lambda number: 0.001, paused=(5.0, 6.0))
    totals = run(play(OpenLoad(rate=100, arrivals="constant"), server, seconds=10.0)).totals()
    assert totals.latency is not None
    assert 900 < totals.latency.p99_ms < 1000
    assert totals.latency.max_ms == pytest.approx(1001, abs=1)
    assert totals.latency.p50_ms == pytest.approx(1, rel=0.01)


def test_a_pause_is_hidden_from_a_closed_load() -> None:
    """One caller sends nothing while it waits, so one request in thousands has met the pause."""
    server = FakeServer(lambda number: 0.001, paused=(5.0, 6.0))
    totals = run(play(ClosedLoad(), server, seconds=10.0)).totals()
    assert totals.sent == pytest.approx(9000, abs=2)
    assert totals.service is not None
    assert totals.service.p999_ms == pytest.approx(1, rel=0.01)
    assert totals.service.max_ms == pytest.approx(1001, abs=1)


def test_a_client_that_stalls_is_found_out() -> None:
    """The load process itself stands still for 1 s: latencies include it, service times don't."""

    def stall(number: int) -> None:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, VirtualLoop)
        loop.passes(1.0 if number == 500 else 0.0)

    server = FakeServer(lambda number: 0.001, before_send=stall)
    totals = run(play(OpenLoad(rate=100, arrivals="constant"), server, seconds=10.0)).totals()
    assert totals.sent == totals.ok == 1000
    assert totals.latency is not None
    assert totals.behind is not None
    assert totals.latency.p99_ms > 900
    assert totals.behind.p99_ms > 880
    assert totals.behind.max_ms == pytest.approx(990, abs=1)
    assert totals.service is not None
    # Those that were late are then sent at once, and wait for each other at the server.
    assert totals.service.p99_ms < 150
