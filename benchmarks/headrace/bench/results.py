"""What a load test found, as it is kept: JSON, with the schema that these models give.

Times are milliseconds in the fields called `_ms`, else seconds since the measurement's start.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict


class Result(BaseModel):
    """The base of all: immutable. Unknown keys are ignored, so that older tools read newer
    files."""

    model_config = ConfigDict(frozen=True)


class Distribution(Result):
    """Times of many requests. `histogram` is the whole, in HdrHistogram's encoding (V2, compressed,
    base64; unit 1 µs, three significant digits); percentiles are taken from it."""

    count: int
    mean_ms: float
    p50_ms: float
    p90_ms: float
    p99_ms: float
    p999_ms: float
    max_ms: float
    histogram: str


class Interval(Result):
    """What happened in one stretch of the measurement: requests by when they ended."""

    start: float
    seconds: float
    ok: int
    errors: int
    p50_ms: float | None
    p99_ms: float | None


class Batches(Result):
    """What the server says of its own work during the measurement, by ModelStatistics: executions
    by batch size, and mean times per request."""

    sizes: dict[int, int]
    queue_ms: float | None
    compute_ms: float | None


class ServerUse(Result):
    """The server's process and its children, where they are on this machine."""

    cpu_seconds: float
    cpu_us_per_request: float
    peak_memory_mb: float
    threads: int
    energy_joules: float | None = None


class ClientUse(Result):
    """What the load generator itself took, and whether it kept up. `busiest` is the share of one
    CPU that the busiest process used; `behind` are delays of sending after the due time."""

    processes: int
    transport: str
    cpu_seconds: float
    cpu_us_per_request: float
    busiest: float
    behind: Distribution | None
    limiting: bool
    warnings: tuple[str, ...] = ()


class Measurement(Result):
    """One load on one target. `latency` counts from when a request was due (open loads) or sent
    (closed ones) to its answer; `service` from when it was sent. They are those of requests
    answered OK, and of `unfinished` ones, without an answer some time after the end, with their age
    by then. `good` are the OK answers within their deadline. What was due in the measured stretch
    is counted in `sent` and in one of `ok`, `errors`, `unfinished`; `throughput` and `goodput`
    count what ended in it."""

    target: str
    load: dict[str, Any]
    seconds: float
    warm_up_seconds: float
    sent: int
    ok: int
    good: int
    unfinished: int
    errors: dict[str, int]  # by gRPC status name, or "HTTP 503"
    throughput: float  # OK answers per second
    goodput: float  # good answers per second
    latency: Distribution | None
    service: Distribution | None
    intervals: tuple[Interval, ...]
    batches: Batches | None
    server: ServerUse | None
    client: ClientUse
    warnings: tuple[str, ...] = ()
    pulse: Distribution | None = None  # of small calls beside the load


class Ratio(Result):
    """How one figure of `side` compares with that of `base`, over turns that alternated: the median
    of the ratios of neighbouring turns, and a bootstrap interval. `real` says that the interval
    excludes 1."""

    figure: str
    side: str
    base: str
    median: float
    low: float
    high: float
    confidence: float
    turns: int
    real: bool


class Section(Result):
    """One question and its answer: the measurements in the order they were taken, and what follows
    from them.

    `kind` says which question: "load", "search" (highest rate under an objective), "curve" (latency
    by share of saturation), "versus" (sides alternating) or "start" (cold start). `facts` are
    scalar answers, such as {"rate": 512.0, "low": 500.0, "high": 524.0}."""

    title: str
    kind: Literal["load", "search", "curve", "versus", "start"]
    measurements: tuple[Measurement, ...]
    labels: tuple[str, ...] = ()  # one for each measurement: "8 callers", "50%"
    ratios: tuple[Ratio, ...] = ()
    facts: dict[str, float | str | None] = {}
    notes: tuple[str, ...] = ()  # what differs between sides, what could not be measured, and why


class Report(Result):
    """A whole run: enough to know what was measured, on what, and how to do it again."""

    schema_name: Literal["headrace-bench/1"] = "headrace-bench/1"
    command: tuple[str, ...]
    started: str  # ISO 8601, UTC
    seed: int
    machine: dict[str, Any]
    versions: dict[str, str]
    targets: tuple[dict[str, Any], ...]
    sections: tuple[Section, ...]
