"""Whether the load generator itself was the limit, said in words."""

from __future__ import annotations

from collections.abc import Sequence

from headrace.bench.recorder import Totals
from headrace.bench.results import ClientUse

_BUSY = 0.9  # of one CPU
_BEHIND_MS, _BEHIND_SHARE = 1.0, 0.05


def client_use(
    cpu_seconds: Sequence[float], seconds: float, totals: Totals, transport: str, *, is_open: bool
) -> ClientUse:
    """`cpu_seconds` of each load process over `seconds`. is_open: requests had due times, so that
    being behind them says something."""
    busiest = max(cpu_seconds) / seconds
    behind = totals.behind if is_open else None
    warnings = []
    if busiest > _BUSY:
        warnings.append(
            f"a load process used {busiest:.0%} of a CPU: the client may have been the limit; "
            "give it more processes"
        )
    if behind is not None and totals.latency is not None:
        median = totals.latency.p50_ms
        if behind.p99_ms > _BEHIND_MS:
            warnings.append(
                f"the client fell behind its schedule: 1% of requests were sent over "
                f"{behind.p99_ms:.1f} ms after they were due, at most {behind.max_ms:.1f} ms; "
                "latencies include this"
            )
        elif behind.p99_ms > _BEHIND_SHARE * median:
            warnings.append(
                f"1% of requests were sent over {behind.p99_ms:.2f} ms after they were due, "
                f"{behind.p99_ms / median:.0%} of the median latency; latencies include this"
            )
    total = sum(cpu_seconds)
    return ClientUse(
        processes=len(cpu_seconds),
        transport=transport,
        cpu_seconds=total,
        cpu_us_per_request=total / totals.sent * 1e6 if totals.sent else 0.0,
        busiest=busiest,
        behind=behind,
        limiting=bool(warnings),
        warnings=tuple(warnings),
    )
