"""Measurements that no server made, and a server that is nothing but queueing theory."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from headrace.bench.arrivals import schedule
from headrace.bench.results import ClientUse, Distribution, Measurement, Report, Section, ServerUse
from headrace.bench.spec import ClosedLoad, Job, OpenLoad, RequestSpec, Target


def job(name: str = "server", *, deadline: float | None = None, duration: float = 10.0) -> Job:
    return Job(
        target=Target(name=name, address="nowhere:1"),
        load=ClosedLoad(),
        requests=(RequestSpec(model="m", deadline=deadline),),
        duration=duration,
    )


def distribution(seconds: Any) -> Distribution:
    values = np.asarray(seconds) * 1e3
    p50, p90, p99, p999 = (float(p) for p in np.percentile(values, [50, 90, 99, 99.9]))
    return Distribution(
        count=len(values),
        mean_ms=float(values.mean()),
        p50_ms=p50,
        p90_ms=p90,
        p99_ms=p99,
        p999_ms=p999,
        max_ms=float(values.max()),
        histogram="",
    )


def measurement(job: Job, latencies: Any = (0.001,), **changes: Any) -> Measurement:
    """As if every request of `latencies`, in seconds, had been answered."""
    count = len(latencies)
    deadline = job.requests[0].deadline or math.inf
    good = int((np.asarray(latencies) <= deadline).sum())
    fields: dict[str, Any] = {
        "target": job.target.name,
        "load": job.load.model_dump(),
        "seconds": job.duration,
        "warm_up_seconds": 0.0,
        "sent": count,
        "ok": count,
        "good": good,
        "unfinished": 0,
        "errors": {},
        "throughput": count / job.duration,
        "goodput": good / job.duration,
        "latency": distribution(latencies) if count else None,
        "service": None,
        "intervals": (),
        "batches": None,
        "server": None,
        "client": ClientUse(
            processes=1,
            transport="none",
            cpu_seconds=0,
            cpu_us_per_request=0,
            busiest=0,
            behind=None,
            limiting=False,
        ),
    }
    return Measurement(**fields | changes)


def use(cpu_us: float) -> ServerUse:
    """A server that took so many microseconds for each request."""
    return ServerUse(cpu_seconds=1.0, cpu_us_per_request=cpu_us, peak_memory_mb=1.0, threads=1)


def deterministic_server(job: Job, service: float) -> Measurement:
    """One server that takes `service` seconds for each request, first come, first served."""
    if isinstance(job.load, ClosedLoad):
        count = round(job.duration / service)
        return measurement(job, np.full(count, service * job.load.callers))
    assert isinstance(job.load, OpenLoad)
    free, latencies = 0.0, []
    for due, _ in schedule(job.load, job.duration, job.seed):
        free = max(free, due) + service
        if free <= job.duration:
            latencies.append(free - due)
    return measurement(job, latencies)


def report(*sections: Section, **changes: Any) -> Report:
    fields: dict[str, Any] = {
        "command": ("headrace", "bench"),
        "started": "2026-01-01T00:00:00+00:00",
        "seed": 0,
        "machine": {"cpu": "one"},
        "versions": {"onnxruntime": "1"},
        "targets": (job().target.model_dump(),),
        "sections": sections,
    }
    return Report(**fields | changes)
