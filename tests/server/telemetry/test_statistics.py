"""Every end of a request is counted once, with what it took."""

from __future__ import annotations

import pytest

from headrace.batcher.executor import Completion
from headrace.batcher.request import Batch, Reason, Reject, Request, Why
from headrace.server.telemetry.statistics import Duration, ModelStatistics

DONE = Completion((), None, 0.25, 2.0, 0.5)


def request(rows: int = 1, arrival: float = 100.0) -> Request:
    made = Request("key", None, arrival, rows)
    made.started = arrival + 1.0
    return made


def batch(*requests: Request, reason: Reason = Reason.FULL) -> Batch:
    return Batch("key", list(requests), "e", reason, 101.0)


@pytest.fixture
def figures() -> ModelStatistics:
    return ModelStatistics()


def test_nothing_yet(figures: ModelStatistics) -> None:
    assert (figures.rows, figures.executions, figures.last_inference_ms) == (0, 0, 0)
    assert figures.success == figures.fail == figures.queue == Duration(0, 0.0)


def test_each_answer_is_given_the_whole_of_its_batch(figures: ModelStatistics) -> None:
    first, second = request(2), request(3, arrival=99.0)
    both = batch(first, second)
    figures.dispatched(both)
    figures.completed(both, DONE, 104.0)
    for member in (first, second):
        figures.answered(member, both, DONE, 104.0)
    assert figures.success == Duration(2, 9.0)
    assert figures.queue == Duration(2, 2.0)
    assert (figures.input, figures.infer) == (Duration(2, 0.5), Duration(2, 4.0))
    assert figures.output == Duration(2, 1.0)
    assert (figures.rows, figures.executions) == (5, 1)
    assert figures.last_inference_ms > 0


def test_since_when_executors_run_is_known_until_it_is_counted(figures: ModelStatistics) -> None:
    made = batch(request())
    figures.dispatched(made)
    assert (figures.running, figures.busy_seconds) == ({"e": 101.0}, {})
    figures.completed(made, DONE, 104.0)
    assert (figures.running, figures.busy_seconds) == ({}, {"e": 3.0})


def test_batches_are_counted_by_rows_and_by_why_they_closed(figures: ModelStatistics) -> None:
    for made in (batch(request(2), request(3)), batch(request(5)), batch(request())):
        figures.dispatched(made)
        figures.completed(made, DONE, 104.0)
    figures.dispatched(batch(request(), reason=Reason.SOLO))
    assert sorted(figures.sizes) == [1, 5]
    assert figures.sizes[5].infer == Duration(2, 4.0)
    assert figures.sizes[5].input == Duration(2, 0.5)
    assert figures.sizes[1].output == Duration(1, 0.5)
    assert figures.reasons == {"full": 3, "solo": 1}
    assert figures.executions == 3


def test_padding_is_counted_beside_what_it_was_added_to(figures: ModelStatistics) -> None:
    figures.padded(12, 3)
    figures.padded(5, 0)
    assert (figures.true_elements, figures.padding_elements) == (17, 3)


def test_a_failed_batch_is_no_execution(figures: ModelStatistics) -> None:
    member = request()
    figures.completed(batch(member), Completion(error=ValueError()), 104.0)
    assert (figures.executions, figures.sizes, figures.last_inference_ms) == (0, {}, 0)
    figures.failed(member, 104.0)
    assert figures.fail == Duration(1, 4.0)
    assert figures.ended == {"model failed": 1}


def test_what_was_computed_for_nobody(figures: ModelStatistics) -> None:
    gone, late = request(2), request(3)
    both = batch(gone, late)
    for member in both.requests:
        figures.wasted(member, both, 104.0)
    assert (figures.wasted_requests, figures.wasted_rows) == (2, 5)


def test_ends_without_an_answer_are_counted_by_why(figures: ModelStatistics) -> None:
    figures.rejected(Reject(request(), Why.QUEUE_FULL, 0.1, "full"))
    figures.dropped(request(), Why.EXPIRED, 102.0)
    figures.dropped(request(), Why.CANCELLED, 103.0)
    assert figures.ended == {
        "queue full": 1,
        "deadline passed in the queue": 1,
        "cancelled": 1,
    }
    assert figures.fail == Duration(3, 5.0)
    assert figures.success.count == 0
