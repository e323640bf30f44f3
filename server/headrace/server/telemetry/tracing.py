"""Spans of calls, and of the batches that answered them.

A sampled call has a server span, which continues its caller's trace (W3C Trace Context). A request
of its has a queue span below that. A batch has many parents, so it is a trace of its own: its span
and the server spans of its members link to each other. The run is the batch's child.

A call that is not sampled comes to none of this. The span of one that is travels in a context
variable: the batcher, who knows nothing of traces, calls its observer in the caller's context.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from opentelemetry.trace import (
    Link,
    Span,
    SpanKind,
    Status,
    StatusCode,
    Tracer,
    set_span_in_context,
)
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from headrace.batcher.executor import Completion
from headrace.batcher.observer import Observer
from headrace.batcher.request import Batch, Reject, Request, Why
from headrace.server.telemetry.current import CURRENT
from headrace.server.telemetry.sampling import Metadata, Sampling, traceparent_of

if TYPE_CHECKING:
    from headrace.server.telemetry.watch import End

_PROPAGATOR = TraceContextTextMapPropagator()
_LONGEST_KEY = 500
_CLOCK_SET_NS = 1_000_000
# Statuses by which a server says that it, and not its caller, is at fault: OpenTelemetry's semantic
# conventions for gRPC.
_OUR_FAULT = frozenset(
    {"UNKNOWN", "DEADLINE_EXCEEDED", "UNIMPLEMENTED", "INTERNAL", "UNAVAILABLE", "DATA_LOSS"}
)


class Tracing:
    """Begins and ends the spans of calls that `sampling` chooses."""

    def __init__(self, tracer: Tracer, sampling: Sampling) -> None:
        self._tracer = tracer
        self.sampling = sampling

    def begin(
        self, method: str, model: Callable[[], str], metadata: Metadata, arrival: float
    ) -> Span | None:
        """The server span of a call, which is also the current one; None for most calls."""
        if not self.sampling.sample(traceparent_of(metadata), model):
            CURRENT.set(None)  # not all transports have a context for each call
            return None
        carrier = {key: value for key, value in metadata if isinstance(value, str)}
        span = self._tracer.start_span(
            method,
            _PROPAGATOR.extract(carrier),
            SpanKind.SERVER,
            {"rpc.system.name": "grpc", "rpc.method": method},
            start_time=_date(arrival),
        )
        CURRENT.set(span)
        return span

    def end(self, span: Span, model: str, version: str, end: End) -> None:
        span.set_attribute("rpc.response.status_code", end.status)
        if model:
            span.set_attribute("headrace.model.name", model)
            span.set_attribute("headrace.model.version", version)
        if end.message:
            span.set_attribute("error.type", end.status)
        if end.reason:
            span.set_attribute("headrace.error.reason", end.reason)
        if end.status in _OUR_FAULT:
            span.set_status(Status(StatusCode.ERROR, end.message))
        span.end(_date(time.monotonic()))

    def observer(self, model: str, version: str) -> Observer:
        """For the runner of a version."""
        return BatchSpans(self._tracer, model, version)


class BatchSpans(Observer):
    """Spans of the queue, the batches and the runs of one model version."""

    def __init__(self, tracer: Tracer, model: str, version: str) -> None:
        self._tracer = tracer
        self._labels = {"headrace.model.name": model, "headrace.model.version": version}
        self._traced: dict[Request, Span] = {}

    def __len__(self) -> int:
        """Requests that are traced and have not ended."""
        return len(self._traced)

    def accepted(self, request: Request) -> None:
        span = CURRENT.get()
        if span is not None:
            self._traced[request] = span

    def rejected(self, refusal: Reject) -> None:
        span = self._traced.pop(refusal.request, None)  # None: it was refused on arrival
        if span is not None:
            self._wait(span, refusal.request, time.monotonic(), refusal.why.value)

    def dropped(self, request: Request, why: Why, now: float) -> None:
        span = self._traced.pop(request, None)
        if span is not None:
            self._wait(span, request, now, why.value)

    def failed(self, request: Request, now: float) -> None:
        self._traced.pop(request, None)

    def answered(self, request: Request, batch: Batch, completion: Completion, now: float) -> None:
        self._traced.pop(request, None)

    def completed(self, batch: Batch, completion: Completion, now: float) -> None:
        if not self._traced:
            return
        members = [(r, self._traced[r]) for r in batch.requests if r in self._traced]
        if not members:
            return
        attributes = self._labels | _describe(batch, completion)
        span = self._tracer.start_span(
            "batch",
            kind=SpanKind.INTERNAL,
            attributes=attributes,
            links=[Link(member.get_span_context()) for _, member in members],
            start_time=_date(batch.started),
        )
        self._run(span, batch, completion, now)
        _finish(span, completion, now)
        for request, member in members:
            self._wait(member, request, batch.started, "", span)
            if not member.is_recording():  # a stream that has ended, and its session goes on
                continue
            member.add_link(span.get_span_context())
            for key, value in attributes.items():
                member.set_attribute(key, value)

    def _wait(
        self, parent: Span, request: Request, until: float, why: str, batch: Span | None = None
    ) -> None:
        """The queue span of `request`. `why`: how it ended there, empty where it was run."""
        ended = until if math.isnan(request.started) else min(until, request.started)
        attributes = {"headrace.queue.outcome": why or "dispatched"}
        links = [] if batch is None else [Link(batch.get_span_context())]
        self._tracer.start_span(
            "queue",
            set_span_in_context(parent),
            attributes=self._labels | attributes,
            links=links,
            start_time=_date(request.arrival),
        ).end(_date(ended))

    def _run(self, parent: Span, batch: Batch, completion: Completion, now: float) -> None:
        """The executor's span. Its end is when the run's was known to the batcher."""
        attributes: dict[str, str | float] = {
            "headrace.executor": batch.executor,
            "headrace.executor.input_seconds": completion.input_seconds,
            "headrace.executor.infer_seconds": completion.infer_seconds,
            "headrace.executor.output_seconds": completion.output_seconds,
        }
        span = self._tracer.start_span(
            "executor",
            set_span_in_context(parent),
            attributes={**self._labels, **attributes},
            start_time=_date(max(batch.started, now - completion.seconds)),
        )
        _finish(span, completion, now)


def _describe(batch: Batch, completion: Completion) -> dict[str, str | int | float]:
    attributes: dict[str, str | int | float] = {
        "headrace.batch.rows": batch.rows,
        "headrace.batch.requests": len(batch.requests),
        "headrace.batch.left_waiting": batch.waiting,
        "headrace.batch.key": str(batch.key)[:_LONGEST_KEY],
        "headrace.batch.reason": batch.reason.value,
        "headrace.batch.executor": batch.executor,
        "headrace.batch.actual_seconds": completion.seconds,
    }
    if not math.isnan(batch.expected):
        attributes["headrace.batch.expected_seconds"] = batch.expected
    return attributes


def _finish(span: Span, completion: Completion, now: float) -> None:
    if completion.error is not None:
        span.set_status(Status(StatusCode.ERROR, str(completion.error)))
    span.end(_date(now))


class _Dates:
    """Moments of the monotonic clock as nanoseconds since the epoch, in the same order.

    The difference of the two clocks is looked up once, and again when the other one was set.
    """

    def __init__(self) -> None:
        self._difference = time.time_ns() - time.monotonic_ns()

    def __call__(self, moment: float) -> int:
        difference = time.time_ns() - time.monotonic_ns()
        if abs(difference - self._difference) > _CLOCK_SET_NS:
            self._difference = difference
        return int(moment * 1e9) + self._difference


_date = _Dates()
