"""What every report shows of a measurement, and the words for it, so that the terminal, the page
and the Markdown say the same."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any, TypeGuard

from headrace.bench.results import Batches, Distribution, Measurement, Section

NOTHING = "–"


def number(value: float | None, digits: int = 3) -> str:
    """To `digits` significant digits, never in powers of ten; a dash for what is not known."""
    if value is None or not math.isfinite(value):
        return NOTHING
    if abs(value) < 1e-4:
        return "<0.0001" if value else "0"
    # The exponent after rounding: 9.996 is 10.0, not 10.00.
    exponent = math.floor(math.log10(abs(float(f"{value:.{digits}g}"))))
    return f"{value:,.{max(digits - 1 - exponent, 0)}f}"


def share(value: float | None) -> str:
    """A fraction as a percentage. What is not nothing is never shown as 0%."""
    if value is None or not math.isfinite(value):
        return NOTHING
    if 0 < value < 0.0001:
        return "<0.01%"
    return f"{number(100 * value, 2 if value < 0.1 else 3)}%"


def seconds(value: float) -> str:
    """A length of time as it is spoken of: "0.5 s", "42 s", "3 min 20 s"."""
    if value < 120:
        return f"{value:.1f} s" if value < 10 and value != round(value) else f"{value:.0f} s"
    minutes, rest = divmod(round(value), 60)
    return f"{minutes} min {rest} s" if rest else f"{minutes} min"


@dataclass(frozen=True, slots=True)
class Column:
    """One figure of a measurement. `of` gives None where it is not known; `meaning` is for those
    who ask what exactly it is."""

    title: str
    unit: str
    of: Callable[[Measurement], float | None]
    meaning: str
    write: Callable[[float | None], str] = number
    of_all: bool = False  # told of several measurements only where each has it

    @property
    def heading(self) -> str:
        return f"{self.title}, {self.unit}" if self.unit else self.title


def _latency(field: str) -> Callable[[Measurement], float | None]:
    def of(measurement: Measurement) -> float | None:
        return _field(measurement.latency, field)

    return of


def _field(distribution: Distribution | None, field: str) -> float | None:
    if distribution is None or not distribution.count:
        return None
    value = getattr(distribution, field)
    return float(value) if math.isfinite(value) else None


def _deep(measurement: Measurement) -> float | None:
    """p99.9, where there are requests enough for it to be more than the maximum's other name."""
    latency = measurement.latency
    return _field(latency, "p999_ms") if latency and latency.count >= 1000 else None


def failed(measurement: Measurement) -> float | None:
    """The share of requests sent that were answered with an error, or not at all."""
    bad = sum(measurement.errors.values()) + measurement.unfinished
    return bad / measurement.sent if measurement.sent else None


def mean_batch(batches: Batches | None) -> float | None:
    """Rows per execution, or None where the server does not tell."""
    runs = sum(batches.sizes.values()) if batches else 0
    if not batches or not runs:
        return None
    return sum(size * count for size, count in batches.sizes.items()) / runs


def _joules(measurement: Measurement) -> float | None:
    joules = measurement.server.energy_joules if measurement.server else None
    return 1000 * joules / measurement.ok if joules is not None and measurement.ok else None


# fmt: off
P50 = Column("p50", "ms", _latency("p50_ms"), "median latency, from when a request was due")
P99 = Column("p99", "ms", _latency("p99_ms"), "one request in 100 took longer")
ANSWERS = (
    Column("throughput", "/s", lambda m: m.throughput, "OK answers per second"),
    Column("goodput", "/s", lambda m: m.goodput, "OK answers within their deadline, per second"),
    P50,
    Column("p90", "ms", _latency("p90_ms"), "one request in 10 took longer"),
    P99,
    Column("p99.9", "ms", _deep, "one request in 1,000 took longer; not told of fewer than 1,000",
           of_all=True),
    Column("max", "ms", _latency("max_ms"), "the slowest request answered OK"),
    Column("failed", "", failed, "errors and requests without an answer, of all sent", share),
)
COSTS = (
    Column("server CPU", "µs/request", lambda m: m.server.cpu_us_per_request if m.server else None,
           "CPU time of the server's processes per request that ended, refused ones too"),
    Column("pulse p50", "ms", lambda m: _field(m.pulse, "p50_ms"),
           "median time of a small call, ServerLive or its like, beside the load"),
    Column("pulse p99", "ms", lambda m: _field(m.pulse, "p99_ms"),
           "one such call in 100 took longer: for so long the front was not to be spoken to"),
    Column("peak memory", "MB", lambda m: m.server.peak_memory_mb if m.server else None,
           "the largest resident memory of the server's processes together"),
    Column("energy", "mJ/request", _joules, "what the GPU drew, per OK answer"),
    Column("mean batch", "", lambda m: mean_batch(m.batches),
           "rows per execution, as the server counts them"),
    Column("queue", "ms", lambda m: m.batches.queue_ms if m.batches else None,
           "mean time in the server's queue, as the server measures it"),
    Column("compute", "ms", lambda m: m.batches.compute_ms if m.batches else None,
           "mean time of the execution, as the server measures it"),
    Column("client CPU", "µs/request", lambda m: m.client.cpu_us_per_request,
           "what the load generator itself took"),
    Column("client busy", "", lambda m: m.client.busiest,
           "share of one CPU that the busiest client process used: near 100%, the client is what "
           "was measured", share),
    Column("sent late p99", "ms", lambda m: _field(m.client.behind, "p99_ms"),
           "how long after its due time a request was sent; latency includes it"),
)
# fmt: on


@dataclass(frozen=True, slots=True)
class Row:
    """One line of a table: a measurement, or the median of several of one target under one load."""

    label: str
    target: str
    measurements: tuple[Measurement, ...]

    def value(self, column: Column) -> float | None:
        known = [value for m in self.measurements if _known(value := column.of(m))]
        if column.of_all and len(known) < len(self.measurements):
            return None
        return median(known) if known else None

    def text(self, column: Column) -> str:
        return column.write(self.value(column))

    @property
    def limiting(self) -> bool:
        return any(m.client.limiting for m in self.measurements)

    @property
    def errors(self) -> Counter[str]:
        """Of all measurements together, by status; what was not answered as "unfinished"."""
        total: Counter[str] = Counter()
        for measurement in self.measurements:
            total.update(measurement.errors)
            total["unfinished"] += measurement.unfinished
        return +total


def _known(value: float | None) -> TypeGuard[float]:
    return value is not None and math.isfinite(value)


def rows(section: Section) -> list[Row]:
    """One for each measurement, in the order taken."""
    return [
        Row(label(section, place), measurement.target, (measurement,))
        for place, measurement in enumerate(section.measurements)
    ]


def sides(section: Section) -> list[Row]:
    """One for each target and load, in the order of their first turns."""
    groups: dict[tuple[str, str], list[Measurement]] = {}
    for measurement in section.measurements:
        key = (measurement.target, json.dumps(measurement.load, sort_keys=True, default=str))
        groups.setdefault(key, []).append(measurement)
    return [
        Row(load_words(turns[0].load), target, tuple(turns))
        for (target, _), turns in groups.items()
    ]


def summary(section: Section) -> list[Row]:
    """What a section's main table shows: the sides where they alternate, else each measurement."""
    return sides(section) if section.kind == "versus" else rows(section)


def shown(columns: Iterable[Column], lines: Sequence[Row]) -> list[Column]:
    """The columns of which anything is known."""
    return [column for column in columns if any(line.value(column) is not None for line in lines)]


def unknown(lines: Sequence[Row]) -> list[str]:
    """The titles of the figures of which nothing is known, but for those that only some ask for."""
    known = shown((*ANSWERS, *COSTS), lines)
    wanted = [c for c in (*ANSWERS, *COSTS) if not c.title.startswith("pulse")]
    return [column.title for column in wanted if column not in known]


def label(section: Section, place: int) -> str:
    """The section's own label for a measurement, or its load in words."""
    if place < len(section.labels):
        return section.labels[place]
    return load_words(section.measurements[place].load)


def names(lines: Sequence[Row]) -> list[str]:
    """The shortest names that tell the lines apart: by target, by label, or by both."""
    targets, labels = {line.target for line in lines}, {line.label for line in lines}
    if len(targets) == 1:
        return [line.label for line in lines]
    if len(labels) == 1 and len(targets) == len(lines):
        return [line.target for line in lines]
    # The label first: where room is short, it is the end that is cut off.
    return [f"{line.label}, {line.target}" for line in lines]


def load_words(load: dict[str, Any]) -> str:
    """A load in a few words: "8 callers", "500/s poisson"."""
    kind = str(load.get("kind", "load"))
    words = {
        "closed": "{callers} callers",
        "open": "{rate}/s {arrivals}",
        "burst": "{count} at once",
        "sensor": "{sessions} sessions",
        "trace": "trace {file}",
    }
    values = {key: _plain(value) for key, value in load.items()}
    try:
        said = words.get(kind, kind).format(**values)
    except KeyError:
        return kind
    return said.removesuffix("s") if said.startswith("1 ") else said


def _plain(value: Any) -> str:
    """A given number as it was given, but for the commas."""
    if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
        return f"{value:,.6g}" if abs(value) < 1e6 else f"{value:,.0f}"
    return str(value)


def errors_words(errors: Counter[str]) -> str:
    """ "UNAVAILABLE 12, unfinished 3", the most frequent first."""
    return ", ".join(f"{status} {count:,}" for status, count in errors.most_common())
