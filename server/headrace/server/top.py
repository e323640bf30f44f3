"""`headrace top`: what a server does now, in a terminal, from two readings of its metrics."""

from __future__ import annotations

import http.client
import math
import os
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from prometheus_client.parser import text_string_to_metric_families
from rich import box
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

_TIMEOUT = 5.0
_CALLS, _INFER = "rpc_server_call_duration_seconds", "inference.GRPCInferenceService/ModelInfer"
_NAN = math.nan
# Two lines each: a terminal of 80 columns has room for them.
_COLUMNS = (
    *("ok\n/s", "not\n/s", "call\np50", "call\np99", "wait\np50", "\nqueue", "\nage"),
    *("batch\n/s", "rows/\nbatch", "\nbusy", "cost\nratio", "\nwaste"),
)
# The variable with the bearer token of who looks, where the server asks for one: not a flag, which
# other users of the machine would see.
TOKEN = "HEADRACE_TOKEN"

Labels = frozenset[tuple[str, str]]


@dataclass(frozen=True, slots=True)
class Reading:
    """The samples of one scrape, by name and labels, and when it was made, in seconds."""

    at: float
    samples: dict[str, dict[Labels, float]] = field(default_factory=dict)

    def each(self, name: str, **wanted: str) -> Iterator[tuple[dict[str, str], float]]:
        """Labels and value of the samples of `name` that have the labels `wanted`."""
        for labels, value in self.samples.get(name, {}).items():
            if wanted.items() <= labels:
                yield dict(labels), value

    def total(self, name: str, **wanted: str) -> float:
        return sum(value for _, value in self.each(name, **wanted))


def parse(text: str, at: float) -> Reading:
    """Raises ValueError for what are no metrics."""
    reading = Reading(at)
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            by_labels = reading.samples.setdefault(sample.name, {})
            by_labels[frozenset(sample.labels.items())] = sample.value
    return reading


def read(address: str) -> Reading:
    """Asks the server whose HTTP port is at `address`, which may begin with https://. Raises
    OSError, ValueError."""
    token = os.environ.get(TOKEN)
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    request = urllib.request.Request(_url(address), headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=_TIMEOUT) as response:
            text = response.read().decode()
    except http.client.HTTPException as error:  # another protocol's port, gRPC's for one
        raise ValueError("what answers there does not speak HTTP/1.1") from error
    return parse(text, time.monotonic())


def _url(address: str) -> str:
    return f"{address if '://' in address else f'http://{address}'}/metrics"


@dataclass(frozen=True, slots=True)
class ModelRow:
    """What a version did between two readings. Rates are per second, times seconds; nan where
    nothing happened that could tell."""

    model: str
    version: str
    answered: float
    failed: float
    median: float
    slowest: float
    waited: float
    queued: int
    oldest: float
    batches: float
    rows: float
    busy: float
    cost: float
    wasted: float


class Change:
    """What counters grew by between two readings. One that has shrunk began anew with a reload."""

    def __init__(self, before: Reading, after: Reading) -> None:
        self.after = after
        self.seconds = max(after.at - before.at, 1e-9)
        self._before = before

    def of(self, name: str, **wanted: str) -> float:
        old, new = self._before.total(name, **wanted), self.after.total(name, **wanted)
        return new - old if new >= old else new

    def rate(self, name: str, **wanted: str) -> float:
        return self.of(name, **wanted) / self.seconds

    def ratio(self, above: float, below: float) -> float:
        return above / below if below > 0 else _NAN

    def quantile(self, share: float, name: str, **wanted: str) -> float:
        """The value below which `share` of what the histogram saw lies."""
        bounds = {labels["le"] for labels, _ in self.after.each(f"{name}_bucket", **wanted)}
        ends = sorted(float(bound) for bound in bounds)
        texts = {float(bound): bound for bound in bounds}
        counts = [self.of(f"{name}_bucket", **wanted, le=texts[end]) for end in ends]
        return quantile(share, ends, counts)


def quantile(share: float, ends: Sequence[float], totals: Sequence[float]) -> float:
    """As Prometheus's histogram_quantile has it: evenly spread within a bucket. `totals` counts
    what is at most each of `ends`, the last of which is infinite; nan where there is nothing."""
    if not totals or totals[-1] <= 0:
        return _NAN
    wanted, below, start = share * totals[-1], 0.0, 0.0
    for end, total in zip(ends, totals, strict=True):
        if total >= wanted and total > below:
            if math.isinf(end):
                return start
            return start + (end - start) * (wanted - below) / (total - below)
        below, start = total, end
    return start


def model_rows(before: Reading, after: Reading) -> list[ModelRow]:
    """A row for each version that serves."""
    change = Change(before, after)
    served = [
        (labels["model"], labels["version"]) for labels, _ in after.each("headrace_queue_requests")
    ]
    return [_row(change, model, version) for model, version in sorted(served)]


def _row(change: Change, model: str, version: str) -> ModelRow:
    which = {"model": model, "version": version}
    after = change.after
    answered = change.of("headrace_requests_total", **which, outcome="answered")
    ended = change.of("headrace_requests_total", **which)
    batches = change.of("headrace_batch_rows_count", **which)
    executors = after.total("headrace_executors", **which)
    actual = change.of("headrace_cost_time_seconds_total", **which, kind="actual")
    predicted = change.of("headrace_cost_time_seconds_total", **which, kind="predicted")
    busy = change.of("headrace_executor_time_seconds_total", **which)
    calls = {**which, "rpc_method": _INFER, "rpc_response_status_code": "OK"}
    return ModelRow(
        model,
        version,
        answered / change.seconds,
        (ended - answered) / change.seconds,
        change.quantile(0.5, _CALLS, **calls),
        change.quantile(0.99, _CALLS, **calls),
        change.quantile(0.5, "headrace_queue_duration_seconds", **which),
        int(after.total("headrace_queue_requests", **which)),
        after.total("headrace_queue_age_seconds", **which),
        batches / change.seconds,
        change.ratio(change.of("headrace_batch_rows_sum", **which), batches),
        change.ratio(busy, executors * change.seconds),
        change.ratio(actual, predicted),
        # Counted when a run ends, which may have begun before the last reading.
        min(change.ratio(change.of("headrace_wasted_time_seconds_total", **which), busy), 1.0),
    )


def show(address: str, before: Reading, after: Reading) -> RenderableType:
    """The whole screen."""
    title = f"headrace at {address}; times in ms"
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=0)
    table.add_column("model", overflow="fold", min_width=12)
    for name in _COLUMNS:
        table.add_column(name, justify="right", no_wrap=True)
    rows = model_rows(before, after)
    for row in rows:
        table.add_row(
            f"{row.model} {row.version}",
            f"{row.answered:.1f}",
            f"{row.failed:.1f}",
            *(_number(value * 1e3) for value in (row.median, row.slowest, row.waited)),
            str(row.queued),
            _number(row.oldest * 1e3),
            f"{row.batches:.1f}",
            _number(row.rows),
            _percent(row.busy),
            _number(row.cost),
            _percent(row.wasted),
        )
    change = Change(before, after)
    lines = [_ends(change, row.model, row.version) for row in rows]
    lines += [_calls(change), _footer(change)]
    return Group(table, Text("\n".join(filter(None, lines))))


def _ends(change: Change, model: str, version: str) -> str:
    """How the requests of a version ended that were not answered; empty where all were."""
    which = {"model": model, "version": version}
    found = _rates(change, "headrace_requests_total", "outcome", **which)
    found.pop("answered", None)
    return f"{model} {version}, not answered: {_shares(found)}" if found else ""


def _calls(change: Change) -> str:
    """How calls ended that were not OK, also those that came to no model; empty where all were."""
    found = _rates(change, "headrace_calls_total", "reason")
    found.pop("OK", None)
    return f"calls, not OK: {_shares(found)}" if found else ""


def _rates(change: Change, name: str, by: str, **wanted: str) -> dict[str, float]:
    """What grew, a second, by the label `by`."""
    values = {labels[by] for labels, _ in change.after.each(name, **wanted)}
    rates = {value: change.rate(name, **wanted, **{by: value}) for value in values}
    return {value: rate for value, rate in rates.items() if rate > 0}


def _shares(rates: dict[str, float]) -> str:
    ordered = sorted(rates.items(), key=lambda each: (-each[1], each[0]))
    return ", ".join(f"{rate:.1f}/s {value}" for value, rate in ordered)


def _footer(change: Change) -> str:
    after = change.after
    words = [
        f"{change.rate('headrace_calls_total'):.1f} inference calls/s",
        f"{after.total('headrace_sessions'):.0f} stream sessions, "
        f"{change.rate('headrace_windows_total'):.1f} windows/s",
        f"{after.total('process_resident_memory_bytes') / 2**20:.0f} MiB resident",
        f"{_percent(change.rate('process_cpu_seconds_total'))} of a core",
    ]
    for labels, used in after.each("hw_gpu_utilization_ratio"):
        watts = after.total("hw_power_watts", hw_id=labels["hw_id"])
        words.append(f"GPU {labels['hw_name']}: {_percent(used)}, {watts:.0f} W")
    return "; ".join(words)


def _number(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.3g}"


def _percent(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.0%}"


def _views(address: str, interval: float) -> Iterator[RenderableType]:
    before = read(address)
    while True:
        time.sleep(interval)
        after = read(address)
        yield show(address, before, after)
        before = after


def main(address: str, interval: float, *, once: bool) -> int:
    """Shows the server at `address` each `interval` seconds, one below the other where that is no
    terminal; or `once`, after the first. Returns 1 when it cannot be asked."""
    console = Console()
    views = _views(address, interval)
    try:
        if once:
            console.print(next(views))
        elif not console.is_terminal:
            for view in views:
                console.print(view)
        else:
            with Live(console=console, screen=True, auto_refresh=False) as live:
                for view in views:
                    live.update(view, refresh=True)
        return 0
    except KeyboardInterrupt:
        return 0
    except (OSError, ValueError) as error:
        reason = error.reason if isinstance(error, urllib.error.URLError) else error
        Console(stderr=True).print(
            f"headrace top: no metrics from {_url(address)}: {reason}; "
            "the address is that of the server's HTTP port, a token comes from HEADRACE_TOKEN",
            markup=False,
            highlight=False,
            soft_wrap=True,
        )
        return 1
