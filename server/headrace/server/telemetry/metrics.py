"""Metrics, read from the models' counters when somebody collects them.

Instruments are OpenTelemetry's and asynchronous: the path of a request only adds to plain numbers
(`statistics.py`), the SDK reads them here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping

from opentelemetry.exporter.prometheus import PrometheusMetricReader
from opentelemetry.metrics import CallbackOptions, Meter, Observation
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.resources import Resource
from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest

from headrace.batcher.state import State
from headrace.server.telemetry.statistics import ModelStatistics, StreamStatistics

# (model, version, counters, queues) of each version that serves
Sample = tuple[str, str, ModelStatistics, State]
Read = Callable[[Sample], Iterator[tuple[float, dict[str, str]]]]


class Metrics:
    """The instruments over whatever `samples` gives at the time of collection."""

    def __init__(
        self,
        samples: Callable[[], Iterable[Sample]],
        outcomes: Mapping[str, int],
        streams: StreamStatistics | None = None,
    ) -> None:
        """`outcomes` counts inference calls by how they ended, whatever model they named."""
        self._samples = samples
        self._outcomes = outcomes
        self._registry = CollectorRegistry()
        ProcessCollector(registry=self._registry)
        self._reader = PrometheusMetricReader(scope_info_enabled=False, registry=self._registry)
        resource = Resource.create({"service.name": "headrace"})
        self._provider = MeterProvider([self._reader], resource, shutdown_on_exit=False)
        meter = self._provider.get_meter("headrace")
        count, gauge = meter.create_observable_counter, meter.create_observable_gauge
        count("headrace.calls", [self._calls], "{call}", "Inference calls by reason of their end")
        count("headrace.requests", [self._each(_requests)], "{request}", "Requests by their end")
        count("headrace.rows", [self._each(_rows)], "{row}", "Rows inferred")
        wasted = "computed for nobody: the caller had left or the deadline had passed"
        count(
            "headrace.wasted.requests",
            [self._each(_wasted_requests)],
            "{request}",
            f"Requests {wasted}",
        )
        count("headrace.wasted.rows", [self._each(_wasted_rows)], "{row}", f"Rows {wasted}")
        padding = "Input elements of models that are padded, true and padding"
        count("headrace.padding.elements", [self._each(_elements)], "{element}", padding)
        count("headrace.batches", [self._each(_batches)], "{batch}", "Batches by why they closed")
        count("headrace.request.time", [self._each(_times)], "s", "Time of requests by phase")
        gauge("headrace.queue.requests", [self._each(_queued)], "{request}", "Requests waiting")
        gauge("headrace.queue.bytes", [self._each(_queued_bytes)], "By", "Bytes waiting")
        gauge("headrace.executors.busy", [self._each(_busy)], "{executor}", "Executors running")

        if streams is not None:
            self._watch(meter, streams)

    def _watch(self, meter: Meter, streams: StreamStatistics) -> None:
        """The instruments of the sensor streams."""

        def sessions(_: CallbackOptions) -> Iterable[Observation]:
            return [Observation(streams.sessions)]

        def windows(_: CallbackOptions) -> Iterable[Observation]:
            yield Observation(streams.answered, {"outcome": "answered"})
            for reason, n in streams.dropped.items():
                yield Observation(n, {"outcome": reason})

        def refused(_: CallbackOptions) -> Iterable[Observation]:
            return [Observation(n, {"reason": reason}) for reason, n in streams.refused.items()]

        count, gauge = meter.create_observable_counter, meter.create_observable_gauge
        gauge("headrace.sessions", [sessions], "{session}", "Sensor stream sessions open")
        count("headrace.windows", [windows], "{window}", "Windows of sessions by their end")
        why = "Commands of sensor streams refused by reason"
        count("headrace.commands.refused", [refused], "{command}", why)

    def _calls(self, _: CallbackOptions) -> Iterable[Observation]:
        return [Observation(n, {"reason": reason}) for reason, n in self._outcomes.items()]

    def _each(self, read: Read) -> Callable[[CallbackOptions], Iterable[Observation]]:
        def observe(_: CallbackOptions) -> Iterable[Observation]:
            for sample in self._samples():
                labels = {"model": sample[0], "version": sample[1]}
                for value, more in read(sample):
                    yield Observation(value, labels | more)

        return observe

    def prometheus(self) -> bytes:
        """Everything, in Prometheus's text format."""
        return generate_latest(self._registry)

    def close(self) -> None:
        self._provider.shutdown()


def _requests(sample: Sample) -> Iterator[tuple[float, dict[str, str]]]:
    yield sample[2].success.count, {"outcome": "answered"}
    for why, count in sample[2].ended.items():
        yield count, {"outcome": why}


def _rows(sample: Sample) -> Iterator[tuple[float, dict[str, str]]]:
    yield sample[2].rows, {}


def _wasted_requests(sample: Sample) -> Iterator[tuple[float, dict[str, str]]]:
    yield sample[2].wasted_requests, {}


def _wasted_rows(sample: Sample) -> Iterator[tuple[float, dict[str, str]]]:
    yield sample[2].wasted_rows, {}


def _elements(sample: Sample) -> Iterator[tuple[float, dict[str, str]]]:
    if sample[2].true_elements:
        yield sample[2].true_elements, {"kind": "true"}
        yield sample[2].padding_elements, {"kind": "padding"}


def _batches(sample: Sample) -> Iterator[tuple[float, dict[str, str]]]:
    for reason, count in sample[2].reasons.items():
        yield count, {"reason": reason}


def _times(sample: Sample) -> Iterator[tuple[float, dict[str, str]]]:
    figures = sample[2]
    yield figures.success.seconds, {"phase": "total"}
    yield figures.queue.seconds, {"phase": "queue"}
    yield figures.input.seconds, {"phase": "compute_input"}
    yield figures.infer.seconds, {"phase": "compute_infer"}
    yield figures.output.seconds, {"phase": "compute_output"}


def _queued(sample: Sample) -> Iterator[tuple[float, dict[str, str]]]:
    yield sample[3].queued_requests, {}


def _queued_bytes(sample: Sample) -> Iterator[tuple[float, dict[str, str]]]:
    yield sample[3].queued_bytes, {}


def _busy(sample: Sample) -> Iterator[tuple[float, dict[str, str]]]:
    yield sum(batch is not None for batch in sample[3].running.values()), {}
