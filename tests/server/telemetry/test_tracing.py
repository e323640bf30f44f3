"""What becomes of the requests of a traced call, and that nothing is kept of them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from headrace.batcher.executor import Completion
from headrace.batcher.request import Batch, Reason, Reject, Request, Why
from headrace.server.telemetry.current import CURRENT
from headrace.server.telemetry.sampling import Rule, Sampling
from headrace.server.telemetry.tracing import BatchSpans, Tracing

DONE = Completion((), None, 0.25, 2.0, 0.5)
FAILED = Completion(error=ValueError("bad row"))


@pytest.fixture
def exported() -> InMemorySpanExporter:
    return InMemorySpanExporter()


@pytest.fixture
def tracing(exported: InMemorySpanExporter) -> Iterator[Tracing]:
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exported))
    yield Tracing(provider.get_tracer("test"), Sampling(Rule()))
    provider.shutdown()
    CURRENT.set(None)


@pytest.fixture
def spans(tracing: Tracing) -> BatchSpans:
    made = tracing.observer("m", "3")
    assert isinstance(made, BatchSpans)
    return made


def accepted(tracing: Tracing, spans: BatchSpans, *, traced: bool = True) -> Request:
    """A request of a call that is traced, or not."""
    if traced:
        tracing.begin("Infer", str, (), 10.0)
    else:
        CURRENT.set(None)
    request = Request("key", None, 10.0, 2)
    spans.accepted(request)
    return request


def started(*requests: Request, expected: float = 2.0) -> Batch:
    for request in requests:
        request.started = 11.0
    batch = Batch("key", list(requests), "e0", Reason.FULL, 11.0, 4)
    batch.expected = expected
    return batch


def named(exported: InMemorySpanExporter, name: str) -> list[ReadableSpan]:
    return [span for span in exported.get_finished_spans() if span.name == name]


def test_only_traced_members_are_linked(
    tracing: Tracing, spans: BatchSpans, exported: InMemorySpanExporter
) -> None:
    both = started(accepted(tracing, spans), accepted(tracing, spans, traced=False))
    spans.completed(both, DONE, 13.75)
    for member in both.requests:
        spans.answered(member, both, DONE, 13.75)
    (batch,), (queue,) = named(exported, "batch"), named(exported, "queue")
    assert len(batch.links) == 1
    assert batch.attributes is not None
    assert batch.attributes["headrace.batch.rows"] == 4
    assert batch.attributes["headrace.batch.expected_seconds"] == 2.0
    assert batch.attributes["headrace.batch.actual_seconds"] == 2.75
    assert batch.attributes["headrace.batch.reason"] == "full"
    assert batch.attributes["headrace.batch.left_waiting"] == 4
    assert queue.start_time is not None
    assert queue.end_time is not None
    assert queue.end_time - queue.start_time == 1_000_000_000
    assert len(spans) == 0


def test_batches_of_others_leave_no_trace(
    tracing: Tracing, spans: BatchSpans, exported: InMemorySpanExporter
) -> None:
    waits = accepted(tracing, spans)
    other = started(accepted(tracing, spans, traced=False))
    spans.completed(other, DONE, 13.0)
    assert not exported.get_finished_spans()
    assert len(spans) == 1
    spans.dropped(waits, Why.EXPIRED, 14.0)
    (queue,) = named(exported, "queue")
    assert queue.attributes is not None
    assert queue.attributes["headrace.queue.outcome"] == Why.EXPIRED.value
    assert len(spans) == 0


def test_a_retry_is_a_batch_of_its_own(
    tracing: Tracing, spans: BatchSpans, exported: InMemorySpanExporter
) -> None:
    request = accepted(tracing, spans)
    spans.completed(started(request, accepted(tracing, spans, traced=False)), FAILED, 12.0)
    alone = started(request)
    spans.completed(alone, DONE, 13.0)
    spans.answered(request, alone, DONE, 13.0)
    failed, fine = named(exported, "batch")
    assert not failed.status.is_ok
    assert failed.status.description == "bad row"
    assert fine.status.status_code != failed.status.status_code
    assert len(spans) == 0


def test_whatever_happens_nothing_is_kept(tracing: Tracing, spans: BatchSpans) -> None:
    refused, cancelled, failed = (accepted(tracing, spans) for _ in range(3))
    spans.rejected(Reject(refused, Why.QUEUE_FULL, 0.1, "full"))
    spans.dropped(cancelled, Why.CANCELLED, 12.0)
    spans.completed(started(failed), FAILED, 12.0)
    spans.failed(failed, 12.0)
    assert len(spans) == 0
