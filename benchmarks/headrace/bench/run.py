"""One load on one target, from the first connection to the result."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from contextlib import ExitStack, closing
from pathlib import Path

import numpy as np

from headrace.bench import warm_up
from headrace.bench.arrivals import TraceError, read_trace
from headrace.bench.errors import BenchError
from headrace.bench.fleet import Fleet
from headrace.bench.loads import Share
from headrace.bench.own_use import client_use
from headrace.bench.prepare import Requests, prepare, probe
from headrace.bench.progress import Phase, Progress
from headrace.bench.pulse import Pulse
from headrace.bench.recorder import Recorder, Rows
from headrace.bench.results import Measurement
from headrace.bench.spec import ClosedLoad, Job, SensorLoad, TraceLoad
from headrace.bench.statistics import Statistics
from headrace.bench.watch import ServerWatch
from headrace.bench.worker import Assignment, Begin, Drain, Drained, Ended, Notes, Report, Sensors

Watcher = Callable[[Progress], None]

# Seconds from a command to the time it names, so that every process has read it by then.
_LEAD = 0.1
# What an answer may take after the end: longer than the longest deadline, where all have one.
_GRACE, _AFTER_DEADLINE = 5.0, 0.5
# A process is late by this much when something is badly wrong.
_PATIENCE = 30.0


def measure(job: Job, watch: Watcher | None = None) -> Measurement:
    """Runs `job` and returns what was found. `watch` is called about once a second.

    `recorder` says what is counted, and how. Raises BenchError, naming what was wrong: nobody
    answers at the address, the server does not have the model or refuses the very first request,
    inputs or traces cannot be read, the process to be watched is not there.
    """
    _check_trace(job)
    requests = prepare(job)
    if job.warm_up != 0:
        probe(job, requests)
    server = ServerWatch(job.target.pid) if job.target.pid is not None else None
    assignments = [_assignment(job, requests, number) for number in range(job.processes)]
    with ExitStack() as stack:
        statistics = Statistics(job.target, [request.model for request in job.requests])
        stack.enter_context(closing(statistics))
        fleet = stack.enter_context(Fleet(assignments))
        found = _Run(job, fleet, server, statistics, watch or _nobody)
        if job.pulse is not None:
            found.pulse = stack.enter_context(Pulse(job.target, job.pulse))
        return found.measure()


def _assignment(job: Job, requests: Requests, number: int) -> Assignment:
    sensors = None
    if isinstance(job.load, SensorLoad):
        sensors = Sensors(job.load, requests.streams, job.seed)
    weights = tuple(request.weight for request in job.requests)
    return Assignment(job.target, requests.kinds, weights, Share(number, job.processes), sensors)


def _check_trace(job: Job) -> None:
    if not isinstance(job.load, TraceLoad):
        return
    most = len(job.requests) - 1
    try:
        trace = read_trace(Path(job.load.file))
    except TraceError as error:
        raise BenchError(str(error)) from error
    for due, which in trace:
        if which is not None and which > most:
            raise BenchError(
                f"{job.load.file}: the request at {due:g} s: expected one of 0 to {most}, "
                f"got {which}"
            )


def grace(job: Job) -> float:
    """Seconds after the end in which answers are still waited for."""
    deadlines = [request.deadline for request in job.requests]
    given = [deadline for deadline in deadlines if deadline is not None]
    return max(given) + _AFTER_DEADLINE if len(given) == len(deadlines) else _GRACE


class _Run:
    def __init__(
        self,
        job: Job,
        fleet: Fleet,
        server: ServerWatch | None,
        statistics: Statistics,
        watch: Watcher,
    ) -> None:
        self._job, self._fleet, self._server, self._watch = job, fleet, server, watch
        self._statistics = statistics
        self._grace = grace(job)
        self._until = [-math.inf] * len(fleet)
        self._cpu_seconds = [0.0] * len(fleet)
        self._shown = 0
        self.pulse: Pulse | None = None

    def measure(self) -> Measurement:
        transport = self._fleet.ready()
        began, warmed, warnings = self._warm_up()
        recorder = self._measure(began)
        return self._result(recorder, transport, warmed, warnings)

    def _warm_up(self) -> tuple[float, float, list[str]]:
        """Returns when the measurement begins, the seconds of warm-up, and warnings."""
        asked, warnings = self._job.warm_up, list[str]()
        began = time.monotonic() + _LEAD
        if asked == 0:
            return began, 0.0, warnings
        load, goes_on = warm_up.steady(self._job.load)
        self._fleet.tell(Begin(load, began, math.inf, self._job.seed + 1))
        if asked == "auto":
            warnings += self._until_stable(began)
            at = time.monotonic() + _LEAD
        else:
            at = began + asked
            self._follow(Recorder(began, math.inf), "warm-up", asked, at - _LEAD)
        warmed = at - began
        if not goes_on:
            self._fleet.tell(Drain(self._grace))
            list(self._fleet.reports(time.monotonic() + self._grace + _PATIENCE, Drained))
            at = time.monotonic() + _LEAD
        return at, warmed, warnings

    def _until_stable(self, began: float) -> list[str]:
        recorder, windows = Recorder(began, math.inf), warm_up.Windows(began)
        end = began + warm_up.MOST * warm_up.WINDOW
        for number, report in self._fleet.reports(end):
            rows = self._note(number, report, recorder)
            if rows is None:
                continue
            windows.add(rows)
            self._show(recorder, "warm-up", None)
            if warm_up.stable(windows.means(min(self._until))):
                return []
        return [
            f"the latency did not become stable within {end - began:g} s of warm-up: the server "
            "may still have been warming up, or its queue was growing"
        ]

    def _measure(self, began: float) -> Recorder:
        job, seconds = self._job, self._job.duration
        self._shown = 0
        recorder = Recorder(began, seconds)
        self._fleet.tell(Begin(job.load, began, seconds, job.seed, self._grace))
        if self.pulse is not None:
            self.pulse.begin(began, seconds)
        self._follow(recorder, "measure", seconds, began)
        self._statistics.ask()
        if self._server is not None:
            self._server.start()
        for second in range(math.ceil(seconds)):
            self._follow(recorder, "measure", seconds, began + recorder.edge(second))
            if self._server is not None:
                self._server.sample()
        if self._server is not None:
            self._server.stop()
        self._statistics.ask()
        until = began + seconds + self._grace + _PATIENCE
        ended = 0
        for number, report in self._fleet.reports(until, Ended):
            self._note(number, report, recorder)
            self._show(recorder, "measure", seconds)
            ended += isinstance(report, Ended)
        if ended < len(self._fleet):
            raise BenchError(f"{len(self._fleet) - ended} load processes did not end in time")
        return recorder

    def _follow(self, recorder: Recorder, phase: Phase, total: float, until: float) -> None:
        """Takes reports until then."""
        for number, report in self._fleet.reports(until):
            self._note(number, report, recorder)
            self._show(recorder, phase, total)

    def _note(self, number: int, report: Report, recorder: Recorder) -> Rows | None:
        if isinstance(report, Ended):
            self._cpu_seconds[number] = report.cpu_seconds
        if not isinstance(report, Notes):
            return None
        self._until[number] = report.until
        rows = np.frombuffer(report.rows).reshape(-1, 4)
        recorder.add(rows, report.statuses)
        return rows

    def _show(self, recorder: Recorder, phase: Phase, total: float | None) -> None:
        """Tells the watcher of every second of which all processes have reported."""
        known = min(self._until) - recorder.began
        while self._shown < recorder.seconds and recorder.edge(self._shown) <= known:
            interval = recorder.interval(self._shown)
            self._shown += 1
            self._watch(Progress(phase, interval.start + interval.seconds, total, interval))

    def _result(
        self,
        recorder: Recorder,
        transport: str,
        warmed: float,
        warnings: list[str],
    ) -> Measurement:
        job, totals = self._job, recorder.totals()
        if totals.unfinished:
            warnings.append(
                f"{totals.unfinished} requests had no answer {self._grace:g} s after the end; they "
                "are in the latencies with their age by then, which is less than the truth"
            )
        if totals.sent and not totals.ok:
            warnings.append("no request was answered OK")
        is_open = not isinstance(job.load, ClosedLoad)
        ended = sum(interval.ok + interval.errors for interval in recorder.intervals())
        return Measurement(
            target=job.target.name,
            load=job.load.model_dump(mode="json"),
            seconds=job.duration,
            warm_up_seconds=warmed,
            sent=totals.sent,
            ok=totals.ok,
            good=totals.good,
            unfinished=totals.unfinished,
            errors=totals.errors,
            throughput=totals.throughput,
            goodput=totals.goodput,
            latency=totals.latency,
            service=totals.service,
            intervals=recorder.intervals(),
            batches=self._statistics.batches(),
            server=self._server.use(ended) if self._server is not None else None,
            pulse=self.pulse.found() if self.pulse is not None else None,
            client=client_use(self._cpu_seconds, job.duration, totals, transport, is_open=is_open),
            warnings=tuple(warnings),
        )


def _nobody(progress: Progress) -> None:
    """Nobody watches."""
