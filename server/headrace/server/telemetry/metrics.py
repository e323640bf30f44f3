"""Metrics, read from the models' counters when somebody collects them.

The path of a request only adds to plain numbers (`statistics.py`, `calls.py`). A collection reads
them into families, on the event loop, where nothing changes meanwhile; to write those down, for
Prometheus or as OTLP, is another thread's work.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple, Protocol

from headrace.batcher.cost import CostTable
from headrace.batcher.request import Why
from headrace.batcher.state import State
from headrace.server.telemetry.calls import Calls
from headrace.server.telemetry.devices import Devices
from headrace.server.telemetry.families import Families, Family, Kind, Labels
from headrace.server.telemetry.statistics import (
    MODEL_FAILED,
    Duration,
    ModelStatistics,
    StreamStatistics,
)


class Watched(Protocol):
    """What is known of a version's answers beside counters of requests."""

    def collect(self, families: Families, labels: Labels) -> None:
        """Adds points with `labels`, among others, to `families`."""


class Sample(NamedTuple):
    """A version that serves: its counters, its queues, and what batches cost on a main executor,
    None where nothing could be measured at load; and how good its answers are, None where nobody
    watches that."""

    model: str
    version: str
    statistics: ModelStatistics
    state: State
    costs: CostTable | None = None
    quality: Watched | None = None


class Metrics:
    """Everything that is counted."""

    def __init__(
        self,
        samples: Callable[[], Iterable[Sample]],
        outcomes: Mapping[str, int],
        streams: StreamStatistics | None = None,
        calls: Calls | None = None,
        devices: Devices | None = None,
        *,
        triton: bool = False,
    ) -> None:
        """`outcomes` counts inference calls by how they ended, whatever model they named.
        `triton`: also by the names that Triton gives its metrics."""
        self._samples = samples
        self._outcomes = outcomes
        self._streams = streams
        self._calls = Calls() if calls is None else calls
        self._devices = Devices(None) if devices is None else devices
        self._triton = triton

    def collect(self) -> Families:
        """What is counted now. To be called on the event loop."""
        families, now = Families(), time.monotonic()
        samples = list(self._samples())
        self._calls.forget({(sample.model, sample.version) for sample in samples})
        self._calls.collect(families)
        ends = families.counter("headrace.calls", "{call}", "Inference calls by how they ended")
        for reason, count in self._outcomes.items():
            ends.add({"reason": reason}, count)
        for sample in samples:
            with families.since(sample.statistics.began):  # a reload counts from 0 again
                self._add_model(families, sample, now)
        if self._streams is not None:
            _add_streams(families, self._streams)
        self._devices.collect(families, triton=self._triton)
        return families

    def _add_model(self, families: Families, sample: Sample, now: float) -> None:
        labels = {"model": sample.model, "version": sample.version}
        _add_requests(families, labels, sample.statistics)
        _add_batches(families, labels, sample.statistics)
        _add_queue(families, labels, sample.state, now)
        _add_executors(families, labels, sample, now)
        if sample.quality is not None:
            sample.quality.collect(families, labels)
        if self._triton:
            _add_as_triton(families, labels, sample)

    def close(self) -> None:
        self._devices.close()


def _add_requests(families: Families, labels: Labels, figures: ModelStatistics) -> None:
    counter = families.counter
    requests = counter("headrace.requests", "{request}", "Requests by how they ended")
    requests.add({**labels, "outcome": "answered"}, figures.success.count)
    for why, count in figures.ended.items():
        requests.add({**labels, "outcome": why}, count)
    counter("headrace.rows", "{row}", "Rows inferred").add(labels, figures.rows)
    nobody = "computed for nobody: the caller had left or the deadline had passed"
    for name, unit, help_, value in (
        ("requests", "{request}", f"Requests {nobody}", figures.wasted_requests),
        ("rows", "{row}", f"Rows {nobody}", figures.wasted_rows),
        ("time", "s", f"Executors' time for what was {nobody}", figures.wasted_seconds),
    ):
        counter(f"headrace.wasted.{name}", unit, help_).add(labels, value)
    if figures.true_elements:
        help_ = "Input elements of models that are padded, true and padding"
        elements = counter("headrace.padding.elements", "{element}", help_)
        elements.add({**labels, "kind": "true"}, figures.true_elements)
        elements.add({**labels, "kind": "padding"}, figures.padding_elements)
    times = counter("headrace.request.time", "s", "Time of answered requests by phase")
    for phase, duration in _phases(figures).items():
        times.add({**labels, "phase": phase}, duration.seconds)
    help_ = "Time that answered requests waited"
    families.histogram("headrace.queue.duration", "s", help_).add(labels, figures.queued)


def _phases(figures: ModelStatistics) -> dict[str, Duration]:
    return {
        "total": figures.success,
        "queue": figures.queue,
        "compute_input": figures.input,
        "compute_infer": figures.infer,
        "compute_output": figures.output,
    }


def _add_batches(families: Families, labels: Labels, figures: ModelStatistics) -> None:
    counter, histogram = families.counter, families.histogram
    batches = counter("headrace.batches", "{batch}", "Batches by why they closed")
    for reason, count in figures.reasons.items():
        batches.add({**labels, "reason": reason}, count)
    rows = histogram("headrace.batch.rows", "{row}", "Rows of successful batches")
    rows.add(labels, figures.batch_rows)
    help_ = "Executor's time of successful batches"
    histogram("headrace.batch.duration", "s", help_).add(labels, figures.computed)
    help_ = "Executor's time of batches over what was predicted"
    histogram("headrace.cost.ratio", "1", help_).add(labels, figures.cost_ratio)
    help_ = "Time of batches whose time was predicted"
    times = counter("headrace.cost.time", "s", help_)
    times.add({**labels, "kind": "predicted"}, figures.expected_seconds)
    times.add({**labels, "kind": "actual"}, figures.actual_seconds)


def _add_queue(families: Families, labels: Labels, state: State, now: float) -> None:
    gauge = families.gauge
    with state.device.lock:
        arrivals = [request.arrival for queue in state.queues.values() for request in queue]
    oldest = min(arrivals, default=now)
    for name, unit, help_, value in (
        ("requests", "{request}", "Requests waiting", state.queued_requests),
        ("bytes", "By", "Bytes waiting", state.queued_bytes),
        ("age", "s", "How long the oldest request has waited", max(0.0, now - oldest)),
        ("keys", "{key}", "Kinds of requests waiting that cannot share a batch", len(state.queues)),
    ):
        gauge(f"headrace.queue.{name}", unit, help_).add(labels, value)


def _add_executors(families: Families, labels: Labels, sample: Sample, now: float) -> None:
    running = sample.state.running
    count = sum(batch is not None for batch in running.values())
    help_ = "Executors running"
    families.gauge("headrace.executors.busy", "{executor}", help_).add(labels, count)
    help_ = "Executors that may run at the same time"
    families.gauge("headrace.executors", "{executor}", help_).add(
        labels, len(sample.state.executors) + len(sample.state.helpers) if sample.state.able else 0
    )
    help_ = "Runs that did not come back, given up with their executors"
    families.counter("headrace.executor.hangs", "{run}", help_).add(labels, sample.statistics.hangs)
    help_ = "Time for which each executor had a batch"
    times = families.counter("headrace.executor.time", "s", help_)
    # As the event loop has heard of it: an executor may have gone on meanwhile.
    busy, since = sample.statistics.busy_seconds, sample.statistics.running
    for name in running:
        seconds = busy.get(name, 0.0) + max(0.0, now - since.get(name, now))
        times.add({**labels, "executor": name}, seconds)
    if sample.costs is not None and sample.costs.known and sample.costs.sizes:
        _add_costs(families, labels, sample.costs)


def _add_costs(families: Families, labels: Labels, costs: CostTable) -> None:
    best = max(size / costs.seconds(size) for size in costs.sizes)
    help_ = "Rows that one executor is predicted to do in a second, at its best batch size"
    families.gauge("headrace.batch.best_rate", "{row}/s", help_).add(labels, best)
    help_ = "Executor's time that a batch of so many rows is predicted to take"
    predicted = families.gauge("headrace.batch.predicted", "s", help_)
    for power in range(max(costs.sizes).bit_length()):
        rows = 1 << power
        predicted.add({**labels, "rows": str(rows)}, costs.seconds(rows))


def _add_streams(families: Families, streams: StreamStatistics) -> None:
    families.gauge("headrace.sessions", "{session}", "Sensor stream sessions open").add(
        {}, streams.sessions
    )
    windows = families.counter("headrace.windows", "{window}", "Windows of sessions by their end")
    windows.add({"outcome": "answered"}, streams.answered)
    for reason, count in streams.dropped.items():
        windows.add({"outcome": reason}, count)
    help_ = "Commands of sensor streams refused by reason"
    refused = families.counter("headrace.commands.refused", "{command}", help_)
    for reason, count in streams.refused.items():
        refused.add({"reason": reason}, count)


def _add_as_triton(families: Families, labels: Labels, sample: Sample) -> None:
    """The names and units of Triton Inference Server's metrics documentation."""
    figures = sample.statistics
    values: list[tuple[str, float]] = [
        ("request_success", figures.success.count),
        ("count", figures.rows),
        ("exec_count", figures.executions),
        ("request_duration_us", figures.success.seconds * 1e6),
        ("queue_duration_us", figures.queue.seconds * 1e6),
        ("compute_input_duration_us", figures.input.seconds * 1e6),
        ("compute_infer_duration_us", figures.infer.seconds * 1e6),
        ("compute_output_duration_us", figures.output.seconds * 1e6),
        ("pending_request_count", sample.state.queued_requests),
    ]
    for name, value in values:
        _triton(families, name).add(labels, int(value))
    failures = dict.fromkeys(_TRITON_REASONS.values(), 0)
    for why, count in figures.ended.items():
        failures[_TRITON_REASONS.get(why, "OTHER")] += count
    for reason, count in failures.items():
        _triton(families, "request_failure").add({**labels, "reason": reason}, count)


# Why a request ended here, by the four reasons that Triton knows.
_TRITON_REASONS = {
    Why.QUEUE_FULL.value: "REJECTED",
    Why.QUEUE_BYTES.value: "REJECTED",
    Why.TOO_LATE.value: "REJECTED",
    Why.TOO_SHORT.value: "REJECTED",
    Why.EXPIRED.value: "REJECTED",
    Why.OVERTAKEN.value: "REJECTED",
    Why.CANCELLED.value: "CANCELED",
    Why.DRAINING.value: "OTHER",
    Why.NO_EXECUTOR.value: "OTHER",
    MODEL_FAILED: "BACKEND",
}


def _triton(families: Families, name: str) -> Family:
    return families.declare(f"nv_inference_{name}", Kind.UNTYPED, "", "As Triton names it")
