"""When the refused are told to come back."""

from __future__ import annotations

import heapq

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.batcher.learned import Learned
from headrace.batcher.line import Line
from headrace.batcher.request import Dispatch, Drop, Request
from headrace.batcher.scheduler import Scheduler
from headrace.batcher.state import Limits


def test_the_refused_of_one_caller_come_back_as_fast_as_they_can_be_served() -> None:
    line = Line()
    back = [line.back("c", 1.0, 0.005, 0.1) for _ in range(64)]
    assert back == sorted(back)
    assert back[-1] == pytest.approx(0.005 + 64 * 0.1, rel=0.05)


def test_callers_that_are_refused_together_do_not_come_back_together() -> None:
    line = Line()
    for _ in range(2):  # the first time nobody knows yet how many they are
        back = sorted(line.back(f"c{n}", 1.0, 0.005, 0.01) for n in range(64))
    at_once = max(sum(at <= other < at + 0.064 for other in back) for at in back)
    assert at_once <= 16, "of 64, in a tenth of the time that it takes to serve all"


def test_who_does_not_listen_lengthens_only_his_own_wait() -> None:
    line = Line()
    for n in range(1_000):
        line.back("deaf", n * 0.001, 0.005, 0.01)
    assert line.back("polite", 1.0, 0.005, 0.01) <= 0.005 + 2 * 2 * 0.01
    assert line.back("deaf", 1.0, 0.005, 0.01) > 5


def test_who_comes_after_the_line_has_gone_waits_for_nobody() -> None:
    line = Line()
    for n in range(50):
        line.back(f"c{n}", 0.0, 0.005, 0.01)
    assert line.back("late", 100.0, 0.005, 0.01) <= 0.005 + 2 * 0.01


def test_callers_are_remembered_up_to_a_number_and_the_rest_told_a_time_all_the_same() -> None:
    line = Line()
    back = [line.back(n, 1.0, 0.005, 1e-4) for n in range(20_000)]
    assert max(back) <= 0.005 + 2 * 10_001 * 1e-4
    assert sum(back[-1_000:]) / 1_000 == pytest.approx(1.0, rel=0.05)


@given(
    st.lists(
        st.tuples(st.sampled_from("abc"), st.floats(0, 9), st.floats(0.001, 40), st.floats(0.0, 9)),
        max_size=50,
    )
)
def test_nobody_is_told_to_come_before_there_is_room_nor_in_another_age(
    refusals: list[tuple[str, float, float, float]],
) -> None:
    line, now = Line(), 0.0
    for caller, later, room, each in refusals:
        now += later
        assert min(room, 30.0) - 1e-6 <= line.back(caller, now, room, each) <= 30.0 + 1e-6


@pytest.mark.parametrize("connections", [1, 64])
def test_most_who_come_back_when_they_were_told_are_let_in(connections: int) -> None:
    """64 callers that want an answer within 20 ms of a model that does 400 rows a second, and come
    back when they are told: told only how late they would be, eleven are refused for each answer.
    """
    scheduler = Scheduler({"e0": "cpu"}, Learned(), Limits(max_batch_rows=8))
    for _ in range(20):
        for rows in range(1, 9):
            scheduler.state.table("e0", "k", 0.0).observe(rows, rows / 400)
    due = [(n * 1e-4, n) for n in range(64)]
    asks: dict[Request, int] = {}
    began, ends, answered, refused = 0.0, float("inf"), 0, 0
    while (now := min(due[0][0], ends)) < 5.0:
        if now == ends:
            for request in scheduler.complete("e0", now - began, now=now):
                answered += request.deadline >= now
                heapq.heappush(due, (now + 1e-4, asks.pop(request)))
            ends = float("inf")
        else:
            _, who = heapq.heappop(due)
            caller = who % connections
            request = Request("k", None, arrival=now, deadline=now + 0.02, caller=caller)
            asks[request] = who
            refusal = scheduler.submit(request)
            if refusal is not None:
                refused += 1
                heapq.heappush(due, (now + refusal.retry_after, asks.pop(request)))
        for action in scheduler.step(now):
            if isinstance(action, Dispatch):
                began, ends = now, now + action.batch.rows / 400
            elif isinstance(action, Drop):
                heapq.heappush(due, (now + 0.02, asks.pop(action.request)))
    assert answered > 0.9 * 5.0 * 400
    assert refused < 3 * answered
