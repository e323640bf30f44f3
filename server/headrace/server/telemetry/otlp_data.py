"""Families as the SDK's MetricsData, which its exporters take. All sums are cumulative.

Theory of operation. A counter that begins anew says so by a later start time (OpenTelemetry's data
model, "Resets and gaps"): who adds up increases then takes its value from 0. Start times are told
here in the order of the messages: what began between two of them starts where the former one ended,
so that the times of one series never overlap.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from opentelemetry.sdk.metrics.export import (
    AggregationTemporality,
    Buckets,
    ExponentialHistogram,
    ExponentialHistogramDataPoint,
    Gauge,
    HistogramDataPoint,
    Metric,
    MetricsData,
    NumberDataPoint,
    ResourceMetrics,
    ScopeMetrics,
    Sum,
)
from opentelemetry.sdk.metrics.export import Histogram as ExplicitHistogram
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.util.instrumentation import InstrumentationScope

from headrace.server.telemetry.families import Families, Family, Kind, Labels
from headrace.server.telemetry.histogram import Histogram

_log = logging.getLogger(__name__)

_AGGREGATION = "OTEL_EXPORTER_OTLP_METRICS_DEFAULT_HISTOGRAM_AGGREGATION"
_TEMPORALITY = "OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE"
_CUMULATIVE = AggregationTemporality.CUMULATIVE
# Smallest and largest value are not counted; the exporters leave out what is None.
_UNKNOWN: Any = None


class MetricsWriter:
    """Puts what a collection gave into one message, with what the process itself uses."""

    def __init__(self, resource: Resource, environment: Mapping[str, str]) -> None:
        """Histograms are exponential where the standard variable asks for that."""
        self._resource = resource
        self._scope = InstrumentationScope("headrace", version("headrace"))
        wish = environment.get(_AGGREGATION, "").strip().lower()
        self._exponential = wish == "base2_exponential_bucket_histogram"
        self._latest = time.time_ns()  # of the message before
        self._starts = {0: self._latest}  # by when a counter began
        temporality = environment.get(_TEMPORALITY, "").strip().lower()
        if temporality not in ("", "cumulative"):
            _log.warning("%s: metrics are sent as cumulative all the same", _TEMPORALITY)

    def write(self, families: Families) -> MetricsData:
        now = max(time.time_ns(), self._latest + 1)  # the clock may have been put back
        _add_process(families)
        known, self._starts = self._starts, {}
        for began in (0, *(began for family in families for began in family.began)):
            self._starts[began] = known.get(began, self._latest)
        self._latest = now
        metrics = [
            Metric(family.name, family.help, family.unit, self._data(family, now))
            for family in families
        ]
        scope = ScopeMetrics(self._scope, metrics, "")
        return MetricsData([ResourceMetrics(self._resource, [scope], "")])

    def _data(self, family: Family, now: int) -> Any:
        spans = [(self._starts[began], now) for began in family.began]
        if family.kind is Kind.HISTOGRAM:
            points = [
                self._histogram(*point, times)
                for point, times in zip(family.points, spans, strict=True)
            ]
            kind: Any = ExponentialHistogram if self._exponential else ExplicitHistogram
            return kind(points, _CUMULATIVE)
        numbers = [
            NumberDataPoint(labels, *times, value)
            for (labels, value), times in zip(family.points, spans, strict=True)
            if not isinstance(value, Histogram)
        ]
        if family.kind is Kind.COUNTER:
            return Sum(numbers, _CUMULATIVE, is_monotonic=True)
        return Gauge(numbers)

    def _histogram(self, labels: Labels, value: float | Histogram, times: tuple[int, int]) -> Any:
        assert isinstance(value, Histogram)
        scale = value.scale
        if not self._exponential:
            counts = scale.decimal_counts(value.counts)
            return HistogramDataPoint(
                labels, *times, value.count, value.sum, counts, scale.decimal, _UNKNOWN, _UNKNOWN
            )
        buckets = scale.exponential(value.counts)
        return ExponentialHistogramDataPoint(
            labels,
            *times,
            count=value.count,
            sum=value.sum,
            scale=buckets.scale,
            zero_count=0,
            positive=Buckets(buckets.offset, buckets.counts),
            negative=Buckets(0, []),
            flags=0,
            min=_UNKNOWN,
            max=_UNKNOWN,
        )


def _add_process(families: Families) -> None:
    """OpenTelemetry's semantic conventions for processes."""
    used = os.times()
    seconds = families.counter("process.cpu.time", "s", "Processor time")
    seconds.add({"cpu.mode": "user"}, used.user)
    seconds.add({"cpu.mode": "system"}, used.system)
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except (OSError, ValueError):  # not Linux
        return
    memory = families.gauge("process.memory.usage", "By", "Resident memory")
    memory.add({}, pages * os.sysconf("SC_PAGE_SIZE"))
