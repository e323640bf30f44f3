"""A receiver of OTLP, over gRPC and HTTP at once, that keeps what it was sent."""

from __future__ import annotations

import contextlib
import gzip
import http.server
import threading
from collections.abc import Callable, Iterator
from concurrent import futures
from dataclasses import dataclass, field
from typing import Any

import grpc
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import (
    ExportMetricsServiceRequest,
    ExportMetricsServiceResponse,
)
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2_grpc import (
    MetricsServiceServicer,
    add_MetricsServiceServicer_to_server,
)
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.collector.trace.v1.trace_service_pb2_grpc import (
    TraceServiceServicer,
    add_TraceServiceServicer_to_server,
)

from support.server import PATIENCE


@dataclass(frozen=True)
class ReceivedSpan:
    """A span, its ids in hexadecimal. `links`: (trace id, span id) of each. Times in nanoseconds
    since the epoch."""

    name: str
    trace_id: str
    span_id: str
    parent_id: str
    kind: int
    start: int
    end: int
    status: int
    attributes: dict[str, Any]
    links: list[tuple[str, str]]
    resource: dict[str, Any]


@dataclass
class Receiver:
    """`grpc` and `http` are where it listens, as the exporters' variables want them."""

    grpc: str = ""
    http: str = ""
    spans: list[ReceivedSpan] = field(default_factory=list)
    metrics: list[ExportMetricsServiceRequest] = field(default_factory=list)
    changed: threading.Condition = field(default_factory=threading.Condition)

    def take(self, request: Any) -> None:
        with self.changed:
            if isinstance(request, ExportTraceServiceRequest):
                self.spans.extend(_spans(request))
            else:
                self.metrics.append(request)
            self.changed.notify_all()

    def until(self, condition: Callable[[], bool]) -> None:
        """Waits until `condition`, which is asked whenever something has come."""
        with self.changed:
            assert self.changed.wait_for(condition, PATIENCE), self.spans

    def named(self, name: str) -> list[ReceivedSpan]:
        return [span for span in self.spans if span.name == name]

    def points(self, name: str) -> list[tuple[dict[str, Any], Any]]:
        """Attributes and data points of a metric, in the latest message that has it."""
        for request in reversed(self.metrics):
            for metric in request.resource_metrics[0].scope_metrics[0].metrics:
                if metric.name == name:
                    data = getattr(metric, str(metric.WhichOneof("data")))
                    return [(_attributes(p.attributes), p) for p in data.data_points]
        return []


def _spans(request: ExportTraceServiceRequest) -> Iterator[ReceivedSpan]:
    for resource in request.resource_spans:
        for scope in resource.scope_spans:
            for span in scope.spans:
                yield ReceivedSpan(
                    span.name,
                    span.trace_id.hex(),
                    span.span_id.hex(),
                    span.parent_span_id.hex(),
                    span.kind,
                    span.start_time_unix_nano,
                    span.end_time_unix_nano,
                    span.status.code,
                    _attributes(span.attributes),
                    [(link.trace_id.hex(), link.span_id.hex()) for link in span.links],
                    _attributes(resource.resource.attributes),
                )


def _attributes(pairs: Any) -> dict[str, Any]:
    return {p.key: getattr(p.value, str(p.value.WhichOneof("value"))) for p in pairs}


class _Traces(TraceServiceServicer):
    def __init__(self, receiver: Receiver) -> None:
        self._receiver = receiver

    def Export(self, request: Any, context: Any) -> ExportTraceServiceResponse:
        self._receiver.take(request)
        return ExportTraceServiceResponse()


class _Metrics(MetricsServiceServicer):
    def __init__(self, receiver: Receiver) -> None:
        self._receiver = receiver

    def Export(self, request: Any, context: Any) -> ExportMetricsServiceResponse:
        self._receiver.take(request)
        return ExportMetricsServiceResponse()


def _handler(receiver: Receiver) -> type[http.server.BaseHTTPRequestHandler]:
    kinds: dict[str, Any] = {
        "/v1/traces": ExportTraceServiceRequest,
        "/v1/metrics": ExportMetricsServiceRequest,
    }

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            if self.headers.get("Content-Encoding") == "gzip":
                body = gzip.decompress(body)
            receiver.take(kinds[self.path].FromString(body))
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    return Handler


@contextlib.contextmanager
def receiving() -> Iterator[Receiver]:
    """A receiver that listens inside the block."""
    receiver = Receiver()
    over_grpc = grpc.server(futures.ThreadPoolExecutor(2))
    add_TraceServiceServicer_to_server(_Traces(receiver), over_grpc)  # type: ignore[no-untyped-call]
    add_MetricsServiceServicer_to_server(_Metrics(receiver), over_grpc)  # type: ignore[no-untyped-call]
    receiver.grpc = f"http://127.0.0.1:{over_grpc.add_insecure_port('127.0.0.1:0')}"
    over_grpc.start()
    over_http = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _handler(receiver))
    receiver.http = f"http://127.0.0.1:{over_http.server_port}"
    thread = threading.Thread(target=over_http.serve_forever, daemon=True)
    thread.start()
    try:
        yield receiver
    finally:
        over_grpc.stop(None).wait()
        over_http.shutdown()
        over_http.server_close()
        thread.join()
