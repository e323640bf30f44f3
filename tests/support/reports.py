"""Reports as a load test would leave them, made without one: latencies of a queue with batches
under a seeded generator, so that percentiles, histograms and intervals agree with each other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from hdrh.histogram import HdrHistogram
from numpy.typing import NDArray

from headrace.bench.results import (
    Batches,
    ClientUse,
    Distribution,
    Interval,
    Measurement,
    Ratio,
    Report,
    Section,
    ServerUse,
)

Times = NDArray[np.float64]


def distribution(times_ms: Sequence[float] | Times) -> Distribution:
    histogram = HdrHistogram(1, 3_600_000_000, 3)
    for value in times_ms:
        histogram.record_value(max(1, round(value * 1000)))
    at = [histogram.get_value_at_percentile(p) / 1000 for p in (50, 90, 99, 99.9)]
    return Distribution(
        count=len(times_ms),
        mean_ms=float(np.mean(times_ms)) if len(times_ms) else 0.0,
        p50_ms=at[0],
        p90_ms=at[1],
        p99_ms=at[2],
        p999_ms=at[3],
        max_ms=histogram.get_max_value() / 1000,
        histogram=histogram.encode().decode(),
    )


@dataclass(frozen=True)
class Served:
    """A server that takes `fixed` + `row` x n milliseconds for a batch of n, one at a time, and
    refuses what finds more than `room` waiting; `pause` is a second in which nothing runs."""

    name: str = "headrace"
    fixed: float = 1.6
    row: float = 0.45
    most: int = 32
    room: int = 400
    pause: float | None = None

    def run(
        self, arrivals: Times, generator: np.random.Generator
    ) -> tuple[Times, Times, dict[int, int]]:
        """Latencies in ms by arrival (NaN: refused), when each ended in s, executions by size."""
        latency = np.full(len(arrivals), np.nan)
        ended = np.array(arrivals)
        sizes: dict[int, int] = {}
        clock, at = 0.0, 0
        while at < len(arrivals):
            clock = max(clock, float(arrivals[at]))
            if self.pause is not None and self.pause <= clock < self.pause + 1:
                clock = self.pause + 1
            waiting = int(np.searchsorted(arrivals, clock, side="right"))
            at += max(0, waiting - at - self.room)
            n = max(1, min(self.most, waiting - at))
            clock += (self.fixed + self.row * n) * float(generator.lognormal(0, 0.25)) / 1000
            latency[at : at + n] = (clock - arrivals[at : at + n]) * 1000 + 0.3
            ended[at : at + n] = clock
            sizes[n] = sizes.get(n, 0) + 1
            at += n
        return latency, ended, sizes


def measurement(
    served: Served = Served(),
    rate: float = 400.0,
    seconds: float = 10.0,
    *,
    seed: int = 0,
    deadline_ms: float | None = None,
    load: dict[str, Any] | None = None,
    **changes: Any,
) -> Measurement:
    """Poisson arrivals at `rate`. `changes` replaces fields at the end."""
    generator = np.random.default_rng(seed)
    arrivals = np.cumsum(generator.exponential(1 / rate, int(rate * seconds)))
    latency, ended, sizes = served.run(arrivals, generator)
    ok = ~np.isnan(latency)
    answered = latency[ok]
    good = int((answered <= deadline_ms).sum()) if deadline_ms else int(ok.sum())
    refused = int((~ok).sum())
    behind = generator.exponential(0.08, len(arrivals))
    fields: dict[str, Any] = {
        "target": served.name,
        "load": load or {"kind": "open", "rate": rate, "arrivals": "poisson", "burstiness": 1.0},
        "seconds": seconds,
        "warm_up_seconds": 2.0,
        "sent": len(arrivals),
        "ok": int(ok.sum()),
        "good": good,
        "unfinished": 0,
        "errors": {"RESOURCE_EXHAUSTED": refused} if refused else {},
        "throughput": ok.sum() / seconds,
        "goodput": good / seconds,
        "latency": distribution(answered),
        "service": distribution(np.minimum(answered, 4 * np.median(answered))),
        "intervals": _intervals(latency, ended, seconds),
        "batches": Batches(sizes=sizes, queue_ms=float(np.mean(answered)) / 2, compute_ms=3.1),
        "server": ServerUse(
            cpu_seconds=seconds * 1.4,
            cpu_us_per_request=1.4e6 * seconds / max(1, int(ok.sum())),
            peak_memory_mb=212.4 + rate / 50,
            threads=11,
        ),
        "client": ClientUse(
            processes=2,
            transport="lean",
            cpu_seconds=rate * seconds * 31e-6,
            cpu_us_per_request=31.2,
            busiest=min(0.99, rate * 31e-6 / 2 + 0.04),
            behind=distribution(behind),
            limiting=False,
        ),
    }
    return Measurement(**{**fields, **changes})


def _intervals(latency: Times, ended: Times, seconds: float) -> tuple[Interval, ...]:
    out = []
    for start in np.arange(0.0, seconds, 0.5):
        here = latency[(ended >= start) & (ended < start + 0.5)]
        ok = here[~np.isnan(here)]
        p50, p99 = (float(np.percentile(ok, p)) if len(ok) else None for p in (50, 99))
        refused = len(here) - len(ok)
        out.append(
            Interval(start=start, seconds=0.5, ok=len(ok), errors=refused, p50_ms=p50, p99_ms=p99)
        )
    return tuple(out)


def ratio(figure: str, median: float, low: float, high: float, **changes: Any) -> Ratio:
    fields: dict[str, Any] = {
        "figure": figure,
        "side": "headrace",
        "base": "triton",
        "median": median,
        "low": low,
        "high": high,
        "confidence": 0.95,
        "turns": 6,
        "real": low > 1 or high < 1,
    }
    return Ratio(**{**fields, **changes})


def section(kind: str = "load", *measurements: Measurement, **changes: Any) -> Section:
    fields: dict[str, Any] = {
        "title": f"A {kind} of requests",
        "kind": kind,
        "measurements": measurements,
    }
    return Section(**{**fields, **changes})


def report(*sections: Section, **changes: Any) -> Report:
    fields: dict[str, Any] = {
        "command": ("headrace", "bench", "127.0.0.1:8001", "--model", "magika", "--find", "50ms"),
        "started": "2025-03-02T10:11:12+00:00",
        "seed": 7,
        "machine": {
            "cpu": "AMD EPYC 7B13 64-Core Processor",
            "cores": 8,
            "memory_gb": 31.3,
            "system": "Linux 6.1.0 x86_64",
            "gpu": None,
            "governor": "performance",
        },
        "versions": {"headrace": "0.1.0", "python": "3.12.4", "grpcio": "1.75.1"},
        "targets": (
            {
                "name": "headrace",
                "address": "127.0.0.1:8001",
                "protocol": "grpc",
                "about": {"onnxruntime": "1.22.0", "threads": 8},
            },
        ),
        "sections": sections,
    }
    return Report(**{**fields, **changes})


def curve(points: int = 8, served: Served = Served(), saturation: float = 2000.0) -> Section:
    """From 10% of `saturation` to 110%."""
    parts = np.linspace(0.1, 1.1, points)
    return section(
        "curve",
        *(measurement(served, float(saturation * p), 5.0, seed=i) for i, p in enumerate(parts)),
        title="Latency from 10% to 110% of saturation",
        labels=tuple(f"{p:.0%}" for p in parts),
        facts={"saturation": saturation},
    )


def versus(turns: int = 6) -> Section:
    """Two sides that alternate."""
    rival = Served("triton", fixed=2.4, row=0.6)
    taken = [
        measurement(side, 1100.0, 4.0, seed=10 * turn + i, deadline_ms=20.0)
        for turn in range(turns)
        for i, side in enumerate((Served(), rival))
    ]
    return section(
        "versus",
        *taken,
        title="headrace against triton",
        labels=tuple(f"turn {1 + i // 2}" for i in range(2 * turns)),
        ratios=(
            ratio("throughput", 1.004, 0.991, 1.013),
            ratio("goodput", 1.21, 1.16, 1.27),
            ratio("p50_ms", 0.71, 0.66, 0.78),
            ratio("p99_ms", 0.58, 0.47, 0.71),
            ratio("cpu_us_per_request", 1.09, 1.05, 1.16),
            ratio("peak_memory_mb", 0.34, 0.33, 0.36),
        ),
        notes=(
            "triton runs the model through its Python backend, which copies tensors once more.",
            "Both sides: onnxruntime 1.22.0, 8 threads. triton: dynamic batching, at most 32 rows.",
        ),
    )


def whole() -> Report:
    """A report with every kind of section, and with things to be wary of."""
    found = [measurement(rate=r, seconds=4.0, seed=int(r)) for r in (400, 800, 1600, 2400, 2000)]
    paused = measurement(Served(pause=9.0), 900.0, 30.0, seed=3, deadline_ms=50.0)
    over = measurement(
        rate=6200.0,
        seconds=12.0,
        deadline_ms=120.0,
        warnings=("The server refused 61% of the requests.",),
    )
    bound = over.model_copy(
        update={
            "client": over.client.model_copy(
                update={
                    "limiting": True,
                    "warnings": ("Fell behind its schedule by up to 41 ms.",),
                }
            )
        }
    )
    return report(
        section(
            "search",
            *found,
            title="Highest rate with p99 under 50 ms",
            facts={"rate": 2000.0, "low": 1962.5, "high": 2037.5, "objective_ms": 50.0},
        ),
        curve(),
        versus(),
        section("load", paused, title="900 requests/s, with a pause of one second"),
        section("load", bound, title="Three times saturation"),
        section(
            "start",
            title="Cold start",
            facts={"ready_s": 1.31, "first_answer_ms": 34.2, "tenth_answer_ms": 3.1},
        ),
    )
