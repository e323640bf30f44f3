"""One server runs at a time: the others are stopped meanwhile.

Some servers spin while they wait for work (LitServe's took 0.4 of a core), and would take that from
whoever is measured beside them.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress

import psutil

from headrace.bench.peer_process import family
from headrace.bench.questions import Measure
from headrace.bench.results import Measurement
from headrace.bench.spec import Job, Target


@contextmanager
def one_at_a_time(measure: Measure, targets: Sequence[Target]) -> Iterator[Measure]:
    """`measure`, with those of `targets` that were started here stopped by SIGSTOP unless they are
    the ones measured. At the end all go on."""
    pids = [target.pid for target in targets if target.pid is not None]
    if len(pids) < 2:
        yield measure
        return

    def measured(job: Job) -> Measurement:
        if job.target.pid is None:
            return measure(job)
        _signal(job.target.pid, signal.SIGCONT)
        try:
            return measure(job)
        finally:
            _signal(job.target.pid, signal.SIGSTOP)

    try:
        for pid in pids:
            _signal(pid, signal.SIGSTOP)
        yield measured
    finally:
        for pid in pids:
            _signal(pid, signal.SIGCONT)


def _signal(pid: int, number: signal.Signals) -> None:
    for process in family(pid):
        with suppress(psutil.NoSuchProcess):
            process.send_signal(number)
