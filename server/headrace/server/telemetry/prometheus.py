"""Families in Prometheus's text format, by the names that OpenTelemetry's exporters give them.

The rules: OpenTelemetry specification, "Prometheus and OpenMetrics Compatibility".
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import accumulate

from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from headrace.server.telemetry.families import Family, Kind, Labels
from headrace.server.telemetry.histogram import Histogram

_UNITS = {"s": "seconds", "By": "bytes", "J": "joules", "W": "watts", "1": "ratio"}


class PrometheusText:
    """Writes families, with what the process itself uses. Safe to call in any thread."""

    def __init__(self) -> None:
        self._process = ProcessCollector(registry=None)

    def write(self, families: Iterable[Family]) -> bytes:
        registry = CollectorRegistry(auto_describe=False)
        registry.register(self._process)
        registry.register(_Given(families))
        return generate_latest(registry)


class _Given(Collector):
    def __init__(self, families: Iterable[Family]) -> None:
        self._families = families

    def describe(self) -> Iterable[Metric]:
        return ()

    def collect(self) -> Iterator[Metric]:
        return map(_metric, self._families)


def _metric(family: Family) -> Metric:
    metric = Metric(base_name(family), family.help, family.kind.value)
    for labels, value in family.points:
        labels = {key.replace(".", "_"): label for key, label in labels.items()}
        if isinstance(value, Histogram):
            _add_buckets(metric, labels, value)
        else:
            suffix = "_total" if family.kind is Kind.COUNTER else ""
            metric.add_sample(metric.name + suffix, labels, value)
    return metric


def base_name(family: Family) -> str:
    """The metric's name; samples of counters and histograms add their endings to it."""
    if family.kind is Kind.UNTYPED:
        return family.name
    name = family.name.replace(".", "_")
    unit = _UNITS.get(family.unit, "")
    if unit == "ratio" and family.kind is not Kind.GAUGE:
        unit = ""
    return name if not unit or name.endswith(f"_{unit}") else f"{name}_{unit}"


def _bound(bound: float) -> str:
    return "+Inf" if bound == float("inf") else str(bound)


def _add_buckets(metric: Metric, labels: Labels, histogram: Histogram) -> None:
    bounds = [*histogram.scale.decimal, float("inf")]
    totals = list(accumulate(histogram.scale.decimal_counts(histogram.counts)))
    for bound, total in zip(bounds, totals, strict=True):
        metric.add_sample(f"{metric.name}_bucket", {**labels, "le": _bound(bound)}, total)
    metric.add_sample(f"{metric.name}_count", dict(labels), totals[-1])
    metric.add_sample(f"{metric.name}_sum", dict(labels), histogram.sum)
