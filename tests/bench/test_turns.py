from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack

import psutil
import pytest

from bench import fakes
from bench.fakes import measurement
from headrace.bench.results import Measurement
from headrace.bench.spec import Job, Target
from headrace.bench.turns import one_at_a_time

# A server with a child, as most have; both wait for ever.
PROGRAM = """
import subprocess, sys, time
sleep = "import time; print('up', flush=True); time.sleep(600)"
child = subprocess.Popen([sys.executable, "-c", sleep])
child.wait()
"""


@pytest.fixture
def pids() -> Iterator[list[int]]:
    with ExitStack() as stack:
        started = []
        for _ in range(2):
            process = stack.enter_context(
                subprocess.Popen(
                    [sys.executable, "-c", PROGRAM], stdout=subprocess.PIPE, start_new_session=True
                )
            )
            assert process.stdout is not None
            assert process.stdout.readline() == b"up\n"
            started.append(process.pid)
        yield started
        for pid in started:
            for each in (*psutil.Process(pid).children(), psutil.Process(pid)):
                each.kill()


def stopped(pid: int) -> set[bool]:
    """Whether the process is, and its child: asked until both say the same, since the system takes
    its time to stop what runs."""
    process = psutil.Process(pid)
    for _ in range(1000):
        states = [each.status() for each in (process, *process.children())]
        found = {state == psutil.STATUS_STOPPED for state in states}
        if len(found) == 1 and psutil.STATUS_RUNNING not in states:
            break
        time.sleep(0.001)
    return found


def job(name: str, pid: int | None) -> Job:
    target = Target(name=name, address="nowhere:1", pid=pid)
    return fakes.job(name).model_copy(update={"target": target})


def test_only_who_is_measured_runs(pids: list[int]) -> None:
    jobs = [job("a", pids[0]), job("b", pids[1])]
    seen = []

    def measure(job: Job) -> Measurement:
        seen.append((job.target.name, *(stopped(pid) for pid in pids)))
        return measurement(job)

    with one_at_a_time(measure, [each.target for each in jobs]) as alone:
        for each in (*jobs, jobs[0], job("elsewhere", None)):
            alone(each)
    assert seen == [
        ("a", {False}, {True}),
        ("b", {True}, {False}),
        ("a", {False}, {True}),
        ("elsewhere", {True}, {True}),
    ]
    assert [stopped(pid) for pid in pids] == [{False}, {False}]


def test_all_go_on_after_an_error(pids: list[int]) -> None:
    def measure(job: Job) -> Measurement:
        raise RuntimeError("no answer")

    jobs = [job("a", pids[0]), job("b", pids[1])]
    with (
        pytest.raises(RuntimeError, match="no answer"),
        one_at_a_time(measure, [each.target for each in jobs]) as alone,
    ):
        alone(jobs[0])
    assert [stopped(pid) for pid in pids] == [{False}, {False}]


def test_a_server_alone_is_never_stopped(pids: list[int]) -> None:
    with one_at_a_time(measurement, [job("a", pids[0]).target]) as alone:
        assert alone is measurement
        assert stopped(pids[0]) == {False}
