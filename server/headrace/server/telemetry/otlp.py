"""Traces and metrics to an OpenTelemetry receiver, as OpenTelemetry's own variables say.

Nothing is sent unless OTEL_EXPORTER_OTLP_ENDPOINT, its variant for one signal, or
OTEL_TRACES_EXPORTER or OTEL_METRICS_EXPORTER asks for it. The SDK's reader takes metrics from its
own instruments alone, so ours go to its exporter without one, read by the event loop and sent by a
thread.
"""

from __future__ import annotations

import asyncio
import importlib
import logging
import threading
from collections.abc import Callable, Mapping
from importlib.metadata import version
from typing import Any

from opentelemetry.sdk.metrics.export import MetricExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_ON

from headrace.server.telemetry import sampling
from headrace.server.telemetry.export import METRICS, TRACES, wanted
from headrace.server.telemetry.families import Families
from headrace.server.telemetry.otlp_data import MetricsWriter
from headrace.server.telemetry.tracing import Tracing

_log = logging.getLogger(__name__)

# By protocol and signal: the module and the class.
_EXPORTERS = {
    ("grpc", TRACES): ("opentelemetry.exporter.otlp.proto.grpc.trace_exporter", "OTLPSpanExporter"),
    ("grpc", METRICS): (
        "opentelemetry.exporter.otlp.proto.grpc.metric_exporter",
        "OTLPMetricExporter",
    ),
    ("http/protobuf", TRACES): (
        "opentelemetry.exporter.otlp.proto.http.trace_exporter",
        "OTLPSpanExporter",
    ),
    ("http/protobuf", METRICS): (
        "opentelemetry.exporter.otlp.proto.http.metric_exporter",
        "OTLPMetricExporter",
    ),
}
_INTERVAL_MS = 60_000.0
# A receiver that does not answer holds a stopping server up for no longer.
_LAST_WORDS_SECONDS = 3.0


def exporter(signal: str, environment: Mapping[str, str]) -> Any:
    """The SDK's exporter for `signal`, which reads the rest of the variables itself.

    Raises ValueError for a protocol that is not known, ModuleNotFoundError where the exporters are
    not installed.
    """
    variables = (f"OTEL_EXPORTER_OTLP_{signal}_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
    given = [(name, environment[name].strip()) for name in variables if environment.get(name)]
    name, protocol = given[0] if given else ("", "grpc")
    if (protocol, signal) not in _EXPORTERS:
        raise ValueError(f"{name}: expected grpc or http/protobuf, got {protocol!r}")
    module, kind = _EXPORTERS[protocol, signal]
    return getattr(importlib.import_module(module), kind)()


class Otlp:
    """Sends spans as they end, and metrics at intervals."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        """Raises ValueError for a variable whose value is unfit, ModuleNotFoundError where the
        exporters are not installed."""
        self._environment = environment
        self._provider: TracerProvider | None = None
        self._metrics: MetricExporter | None = None
        self._task: asyncio.Task[None] | None = None
        self._shut = False
        self.tracing: Tracing | None = None
        resource = _resource()
        if wanted(TRACES, environment):
            rule = sampling.from_environment(environment)
            self._trace(exporter(TRACES, environment), rule, resource)
        if wanted(METRICS, environment):
            self._interval = _interval(environment)
            self._metrics = exporter(METRICS, environment)
            self._writer = MetricsWriter(resource, environment)

    def _trace(self, exporter_: SpanExporter, rule: sampling.Rule, resource: Resource) -> None:
        # What comes here has been sampled already.
        self._provider = TracerProvider(ALWAYS_ON, resource, shutdown_on_exit=False)
        self._provider.add_span_processor(BatchSpanProcessor(exporter_))
        tracer = self._provider.get_tracer("headrace", version("headrace"))
        self.tracing = Tracing(tracer, sampling.Sampling(rule))

    def start(self, collect: Callable[[], Families]) -> None:
        """Begins to send metrics. To be called on the event loop."""
        if self._metrics is not None:
            self._task = asyncio.get_running_loop().create_task(self._send_for_ever(collect))
        self._collect = collect

    async def _send_for_ever(self, collect: Callable[[], Families]) -> None:
        while True:
            await asyncio.sleep(self._interval)
            families = collect()
            await asyncio.to_thread(self._send, families)

    def _send(self, families: Families) -> None:
        assert self._metrics is not None
        try:
            self._metrics.export(self._writer.write(families))
        except Exception as error:  # noqa: BLE001 (whatever it is, the next turn comes)
            if not self._shut:  # else its channel was closed while it tried once more
                _log.error("metrics could not be sent", exc_info=error)

    async def stop(self) -> None:
        """Sends what has not been sent, if that is quickly done."""
        if self._task is not None:
            self._task.cancel()
        families = self._collect() if self._metrics is not None and self._task else None
        if not await _in_thread(lambda: self._close(families), _LAST_WORDS_SECONDS):
            _log.warning("the OpenTelemetry receiver did not take the last spans and metrics")

    def _close(self, families: Families | None) -> None:
        if families is not None:
            self._send(families)
        self._shut = True
        if self._metrics is not None:
            self._metrics.shutdown()
        if self._provider is not None:
            self._provider.shutdown()


def _resource() -> Resource:
    resource = Resource.create({"service.version": version("headrace")})
    named = str(resource.attributes.get("service.name", ""))
    unnamed = not named or named.startswith("unknown_service")
    return resource.merge(Resource({"service.name": "headrace"})) if unnamed else resource


def _interval(environment: Mapping[str, str]) -> float:
    """Seconds."""
    text = environment.get("OTEL_METRIC_EXPORT_INTERVAL", "").strip()
    try:
        milliseconds = float(text) if text else _INTERVAL_MS
    except ValueError:
        milliseconds = -1.0
    if milliseconds <= 0:
        message = "expected milliseconds, more than 0, got"
        raise ValueError(f"OTEL_METRIC_EXPORT_INTERVAL: {message} {text!r}")
    return milliseconds / 1e3


async def _in_thread(work: Callable[[], None], seconds: float) -> bool:
    """Whether `work` was done within `seconds`. If not it goes on, and nobody waits for it: the
    interpreter would for a thread of asyncio's own."""
    loop, done = asyncio.get_running_loop(), asyncio.Event()

    def run() -> None:
        try:
            work()
        finally:
            if not loop.is_closed():
                loop.call_soon_threadsafe(done.set)

    threading.Thread(target=run, name="otlp", daemon=True).start()
    try:
        await asyncio.wait_for(done.wait(), seconds)
    except TimeoutError:
        return False
    return True
