"""When requests are due, in open loads: laws of arrival, rates that change, traces and bursts.

An arrival process is made in two parts. First a stationary process of rate 1, whose gaps have the
law asked for. Then its times are carried through the inverse of the expected number of arrivals,
Λ(t), the integral of the rate: this gives a process of exactly that rate, without thinning or small
steps (time rescaling: Çinlar, Introduction to Stochastic Processes, 1975, section 4.7; for
processes other than Poisson, Gerhardt and Nelson, "Transforming Renewal Processes for Simulation of
Nonstationary Arrival Processes", INFORMS Journal on Computing 21(4), 2009).

The first gap of the process of rate 1 is that of a process that began long ago, the forward
recurrence time (Cox, Renewal Theory, 1962, section 5.2). So the expected number of arrivals by any
time t is Λ(t), for every burstiness; only constant gaps begin at 0.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path

import numpy as np

from headrace.bench.errors import BenchError
from headrace.bench.spec import BurstLoad, OpenLoad, SteppedLoad, TraceLoad

Due = tuple[float, int | None]

_BLOCK = 512


class TraceError(BenchError):
    """A trace that cannot be played; the message names the file and the line."""


def schedule(
    load: OpenLoad | SteppedLoad | TraceLoad | BurstLoad, seconds: float, seed: int
) -> Iterator[Due]:
    """Times at which requests are due, in seconds from the start, and which request each is.

    Times ascend (equal ones are possible) and are below `seconds`. The request is its place in
    the job's list, or None where it is to be drawn by weight. The same arguments give the same
    times; a longer schedule begins with the shorter one.

    Raises TraceError, before the first time, for a trace that cannot be read.
    """
    if isinstance(load, TraceLoad):
        return _before(seconds, _played(read_trace(Path(load.file)), load.speed))
    if isinstance(load, BurstLoad):
        return _before(seconds, _bursts(load))
    if isinstance(load, OpenLoad):
        pieces = [_Piece(math.inf, load.rate, load.rate)]
    else:
        pieces = _pieces(load)
    points = _stationary(load.arrivals, load.burstiness, np.random.default_rng(seed))
    return _before(seconds, ((due, None) for due in _rescaled(points, pieces)))


def length(load: OpenLoad | SteppedLoad | TraceLoad | BurstLoad) -> float | None:
    """Seconds after which `load` has nothing more to send; None where it never ends by itself.

    Raises TraceError for a trace that cannot be read.
    """
    if isinstance(load, SteppedLoad):
        return sum(step.seconds for step in load.steps)
    if isinstance(load, TraceLoad):
        *_, (last, _which) = _played(read_trace(Path(load.file)), load.speed)
        return math.nextafter(last, math.inf)
    return None


def _before(seconds: float, dues: Iterator[Due]) -> Iterator[Due]:
    for due, which in dues:
        if due >= seconds:
            return
        yield due, which


def _stationary(law: str, burstiness: float, rng: np.random.Generator) -> Iterator[float]:
    """Arrivals of rate 1 without end. `burstiness` is the squared coefficient of variation of
    gamma gaps; exponential gaps are those of burstiness 1."""
    if law == "constant":
        yield from map(float, count())
    squared = burstiness if law == "gamma" else 1.0
    shape = 1 / squared
    # A gap met at a random moment is drawn in proportion to its length, which makes it
    # gamma(shape + 1), and the moment lies anywhere in it.
    at = rng.uniform() * rng.gamma(shape + 1, squared)
    while True:
        for gap in rng.gamma(shape, squared, _BLOCK).tolist():
            yield at
            at += gap


@dataclass(frozen=True, slots=True)
class _Piece:
    """A stretch of `seconds` in which the rate goes from `start` to `end` in a straight line."""

    seconds: float
    start: float
    end: float

    @property
    def expected(self) -> float:
        """Arrivals expected in it."""
        return self.seconds * (self.start + self.end) / 2

    def when(self, arrivals: float) -> float:
        """Seconds from its beginning until so many arrivals are expected: the positive root of
        start·t + slope·t²/2 = arrivals, in the form that subtracts nothing."""
        slope = (self.end - self.start) / self.seconds
        root = math.sqrt(max(0.0, self.start**2 + 2 * slope * arrivals))
        below = self.start + root
        return min(2 * arrivals / below, self.seconds) if below else 0.0


def _pieces(load: SteppedLoad) -> list[_Piece]:
    before = 0.0
    pieces = []
    for step in load.steps:
        pieces.append(_Piece(step.seconds, before if load.ramp else step.rate, step.rate))
        before = step.rate
    return pieces


def _rescaled(points: Iterator[float], pieces: Sequence[_Piece]) -> Iterator[float]:
    """Arrivals of rate 1 carried to where the pieces expect as many."""
    began, expected = 0.0, 0.0
    point = next(points)
    for piece in pieces:
        while point - expected < piece.expected:
            yield began + piece.when(point - expected)
            point = next(points)
        began += piece.seconds
        expected += piece.expected


def _bursts(load: BurstLoad) -> Iterator[Due]:
    for burst in count() if load.period else range(1):
        for _ in range(load.count):
            yield burst * (load.period or 0.0), None


def _played(trace: Sequence[Due], speed: float) -> Iterator[Due]:
    first = trace[0][0]
    for at, which in trace:
        yield (at - first) / speed, which


def read_trace(path: Path) -> list[Due]:
    """Recorded times in seconds, ascending, as they are in the file, and which request each is.

    A line is a time, or a time, a comma and the request's place in the job's list, from 0. Empty
    lines and those that begin with # are skipped. Lines may be out of order, as those of a log
    often are. Played back, the first time is the start, so that clock times can stay as they are.

    Raises TraceError where the file cannot be read, holds no time, or a line is neither.
    """
    try:
        lines = path.read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise TraceError(f"trace {path}: {error}") from error
    trace = [
        _recorded(path, number, line)
        for number, line in enumerate(lines, 1)
        if line.strip() and not line.lstrip().startswith("#")
    ]
    if not trace:
        raise TraceError(f"trace {path}: expected a time in seconds on each line, got no line")
    return sorted(trace, key=lambda due: due[0])


def _recorded(path: Path, number: int, line: str) -> Due:
    time, comma, which = line.partition(",")
    try:
        due = float(time), int(which) if comma else None
    except ValueError:
        due = math.nan, None
    if not math.isfinite(due[0]) or (due[1] or 0) < 0:
        raise TraceError(
            f"trace {path}, line {number}: expected a time in seconds, or a time, a comma and the "
            f"place of a request from 0, got {line.strip()!r}"
        )
    return due
