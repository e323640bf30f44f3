"""What a collection gives: metrics as plain data, for whoever writes them down."""

from __future__ import annotations

import enum
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

from headrace.server.telemetry.histogram import Histogram

Labels = Mapping[str, str]


class Kind(enum.Enum):
    """COUNTERs only grow; GAUGEs go up and down; UNTYPED are written under their bare names."""

    COUNTER = "counter"
    GAUGE = "gauge"
    HISTOGRAM = "histogram"
    UNTYPED = "unknown"


@dataclass(slots=True)
class Family:
    """One metric: its OpenTelemetry name and unit (UCUM), and a point for each set of labels.
    began: of each point, when its counter was last 0, in nanoseconds of the wall clock; 0 where
    that was when the process started. era: what the next one's is."""

    name: str
    kind: Kind
    unit: str
    help: str
    points: list[tuple[Labels, float | Histogram]] = field(default_factory=list)
    began: list[int] = field(default_factory=list)
    era: int = 0

    def add(self, labels: Labels, value: float | Histogram) -> None:
        """A histogram is copied: it may go on counting."""
        self.began.append(self.era)
        self.points.append((labels, value.copy() if isinstance(value, Histogram) else value))


class Families:
    """The metrics of one collection, in the order in which they first came."""

    def __init__(self) -> None:
        self._by_name: dict[str, Family] = {}
        self._era = 0

    @contextmanager
    def since(self, began: int) -> Iterator[None]:
        """Points that are added inside the block began to count then."""
        self._era = began
        try:
            yield
        finally:
            self._era = 0

    def __iter__(self) -> Iterator[Family]:
        return (family for family in self._by_name.values() if family.points)

    def declare(self, name: str, kind: Kind, unit: str, help_: str) -> Family:
        """The family called `name`, a new one where there is none yet."""
        family = self._by_name.get(name)
        if family is None:
            family = self._by_name[name] = Family(name, kind, unit, help_)
        family.era = self._era
        return family

    def counter(self, name: str, unit: str, help_: str) -> Family:
        return self.declare(name, Kind.COUNTER, unit, help_)

    def gauge(self, name: str, unit: str, help_: str) -> Family:
        return self.declare(name, Kind.GAUGE, unit, help_)

    def histogram(self, name: str, unit: str, help_: str) -> Family:
        return self.declare(name, Kind.HISTOGRAM, unit, help_)
