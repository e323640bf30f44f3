"""Loads, calls and what is reported of them: sums, sequences, shares, back-off."""

from __future__ import annotations

import asyncio
import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.bench.loads import Share, arrivals, closed_sequence
from headrace.bench.recorder import Recorder
from headrace.bench.spec import BurstLoad, ClosedLoad, Load, OpenLoad
from headrace.bench.transports import OK
from support.virtual import FakeServer, kinds, play, run

LOADS = st.one_of(
    st.builds(OpenLoad, rate=st.floats(5, 200), arrivals=st.sampled_from(["poisson", "constant"])),
    st.builds(ClosedLoad, callers=st.integers(1, 8), think=st.sampled_from([0.0, 0.05])),
    st.builds(BurstLoad, count=st.integers(1, 50), period=st.just(0.3)),
)
STATUSES = st.sampled_from([OK, OK, OK, "RESOURCE_EXHAUSTED", "INTERNAL", None])


def of(sequence: list[object], number: int) -> object:
    return sequence[number % len(sequence)]


@settings(max_examples=60, deadline=None)
@given(
    load=LOADS,
    statuses=st.lists(STATUSES, min_size=1, max_size=7),
    services=st.lists(st.floats(0.0001, 0.2), min_size=1, max_size=5),
    deadline=st.sampled_from([None, 0.05, 0.5]),
    processes=st.integers(1, 3),
    warm_up=st.sampled_from([0.0, 1.0]),
)
def test_every_request_ends_exactly_once(
    load: Load,
    statuses: list[str | None],
    services: list[float],
    deadline: float | None,
    processes: int,
    warm_up: float,
) -> None:
    server = FakeServer(
        lambda number: services[number % len(services)],
        status=lambda number: statuses[number % len(statuses)],
    )
    recorder = run(
        play(
            load,
            server,
            seconds=2.0,
            grace=1.0,
            warm_up=warm_up,
            processes=processes,
            given=kinds(deadline=deadline),
        )
    )
    totals = recorder.totals()
    assert totals.sent == totals.ok + sum(totals.errors.values()) + totals.unfinished
    assert totals.good <= totals.ok
    counted = totals.latency.count if totals.latency is not None else 0
    assert counted == totals.ok + totals.unfinished
    if isinstance(load, OpenLoad | BurstLoad):
        due = [arrival.due for arrival in arrivals(load, 2.0, 0, [1.0], Share(0, 1))]
        # One that is due within a clock's rounding of the end may be beyond it.
        assert sum(each < 2.0 - 1e-9 for each in due) <= totals.sent <= len(due)
    elif not warm_up and deadline is None:
        assert totals.sent == len(server.sent)
    for interval in recorder.intervals():
        assert (interval.p50_ms is None) == (interval.ok == 0)


@settings(deadline=None)
@given(
    load=st.builds(
        OpenLoad, rate=st.floats(1, 300), arrivals=st.just("gamma"), burstiness=st.floats(0.2, 5)
    ),
    processes=st.integers(1, 6),
    seed=st.integers(0, 2**32),
    weights=st.lists(st.floats(0.1, 10), min_size=1, max_size=4),
)
def test_processes_together_are_exactly_the_schedule(
    load: OpenLoad, processes: int, seed: int, weights: list[float]
) -> None:
    whole = list(arrivals(load, 2.0, seed, weights, Share(0, 1)))
    parts = [arrivals(load, 2.0, seed, weights, Share(n, processes)) for n in range(processes)]
    assert sorted(itertools.chain(*parts), key=lambda arrival: arrival.sample) == whole
    assert [arrival.sample for arrival in whole] == list(range(len(whole)))
    assert all(0 <= arrival.due < 2.0 for arrival in whole)


def test_kinds_are_drawn_by_weight() -> None:
    drawn = [a.kind for a in arrivals(OpenLoad(rate=1000), 20.0, 3, [1.0, 3.0], Share(0, 1))]
    share = drawn.count(1) / len(drawn)
    # Four standard deviations of a binomial share.
    assert abs(share - 0.75) < 4 * (0.75 * 0.25 / len(drawn)) ** 0.5


def test_the_same_seed_sends_the_same_requests() -> None:
    def sent(seed: int, load: Load) -> list[bytes]:
        server = FakeServer(lambda number: 0.001)
        run(play(load, server, seconds=2.0, seed=seed, given=kinds(3), weights=[1, 2, 3]))
        return [request.body for request in server.sent]

    for load in (OpenLoad(rate=50), ClosedLoad(callers=2)):
        assert sent(1, load) == sent(1, load)
        assert sent(1, load) != sent(2, load)


def test_callers_of_several_processes_take_the_same_sequence() -> None:
    whole = list(itertools.islice(closed_sequence([1.0, 1.0], 5, Share(0, 1)), 90))
    parts = [
        list(itertools.islice(closed_sequence([1.0, 1.0], 5, Share(n, 3)), 30)) for n in range(3)
    ]
    assert [request for row in zip(*parts, strict=True) for request in row] == whole


def test_a_closed_load_goes_on_from_the_warm_up_without_more_callers() -> None:
    under_way, most = 0, 0

    class Counting(FakeServer):
        def send(self, request, timeout, done) -> None:  # type: ignore[no-untyped-def]
            nonlocal under_way, most
            under_way += 1
            most = max(most, under_way)

            def ended(status: str) -> None:
                nonlocal under_way
                under_way -= 1
                done(status)

            super().send(request, timeout, ended)

    recorder = run(play(ClosedLoad(callers=4), Counting(lambda n: 0.01), seconds=2.0, warm_up=1.0))
    assert most == 4
    # One request of 10 ms after the other, across the edge: none is missing.
    assert recorder.totals().throughput == pytest.approx(100, abs=1)


def test_refusals_do_not_make_a_closed_load_spin() -> None:
    server = FakeServer(lambda number: 1e-6, status=lambda number: "UNAVAILABLE")
    totals = run(play(ClosedLoad(), server, seconds=10.0)).totals()
    assert totals.errors == {"UNAVAILABLE": totals.sent}
    assert 90 < totals.sent < 120  # at most 0.1 s apart, once it has backed off


def test_what_is_past_its_deadline_is_not_sent() -> None:
    """A burst of 10 requests of 1 s each, due within 0.5 s, at a client that stalls for 2 s."""

    def stall(number: int) -> None:
        asyncio.get_running_loop().passes(2.0)  # type: ignore[attr-defined]

    server = FakeServer(lambda number: 0.1, before_send=stall)
    recorder = run(play(BurstLoad(count=10), server, seconds=3.0, given=kinds(deadline=0.5)))
    totals = recorder.totals()
    assert len(server.sent) == 1
    assert totals.sent == 10
    assert totals.errors == {"DEADLINE_EXCEEDED": 9}
    assert (totals.ok, totals.good) == (1, 0)  # it came, too late by the client's own fault


def test_what_the_client_never_got_round_to_is_unfinished() -> None:
    """It takes 1 s to send one request, and 20 are due: with a grace of 2 s most are never sent."""

    def slow(number: int) -> None:
        asyncio.get_running_loop().passes(1.0)  # type: ignore[attr-defined]

    server = FakeServer(lambda number: 0.001, before_send=slow)
    load = OpenLoad(rate=10, arrivals="constant")
    totals = run(play(load, server, seconds=2.0, grace=2.0)).totals()
    assert totals.sent == 20
    assert totals.unfinished > 0
    assert totals.ok + totals.unfinished == 20


def test_an_answer_after_its_request_was_given_up_changes_nothing() -> None:
    server = FakeServer(lambda number: 10.0)

    async def late() -> Recorder:
        recorder = await play(BurstLoad(count=1), server, seconds=1.0, grace=1.0)
        await asyncio.sleep(60.0)
        return recorder

    totals = run(late()).totals()
    assert (totals.sent, totals.ok, totals.unfinished) == (1, 0, 1)
    assert totals.latency is not None
    assert totals.latency.max_ms == pytest.approx(2000, abs=10)  # its age, when given up
