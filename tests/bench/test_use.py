"""What client and server took, and what is said of it."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest

from headrace.bench.errors import BenchError
from headrace.bench.own_use import client_use
from headrace.bench.recorder import GOOD, Recorder, Totals
from headrace.bench.statistics import between
from headrace.bench.watch import ServerWatch
from headrace.inference.v2 import grpc_service_pb2 as pb


def totals(latency: float = 0.1, behind: float = 0.0) -> Totals:
    """Of 100 requests, all the same."""
    recorder = Recorder(0.0, 10.0)
    recorder.add(np.array([[1.0, 1.0 + behind, 1.0 + latency, GOOD]] * 100), ())
    return recorder.totals()


def test_a_client_that_kept_up_is_not_the_limit() -> None:
    use = client_use([5.0, 4.0], 10.0, totals(), "fake", is_open=True)
    assert not use.limiting
    assert use.warnings == ()
    assert (use.processes, use.busiest, use.cpu_seconds) == (2, 0.5, 9.0)
    assert use.cpu_us_per_request == pytest.approx(90_000)


def test_one_busy_process_is_enough_to_be_the_limit() -> None:
    use = client_use([1.0, 9.5], 10.0, totals(), "fake", is_open=True)
    assert use.limiting
    assert "95% of a CPU" in use.warnings[0]


@pytest.mark.parametrize(
    ("latency", "behind", "words"),
    [(1.0, 0.002, "over 2.0 ms after"), (0.001, 0.0001, "10% of the median latency")],
)
def test_being_behind_is_said(latency: float, behind: float, words: str) -> None:
    use = client_use([1.0], 10.0, totals(latency, behind), "fake", is_open=True)
    assert use.limiting
    assert words in use.warnings[0]


def test_callers_that_wait_are_never_behind() -> None:
    use = client_use([1.0], 10.0, totals(1.0, 0.5), "fake", is_open=False)
    assert use.behind is None
    assert not use.limiting


def test_a_server_is_watched_with_its_children() -> None:
    """A process with a child that both hold 50 MB and have burnt CPU time when they say so."""
    burn = "x = bytearray(50 << 20); sum(range(3_000_000)); print('done', flush=True); input()"
    parent = (
        "import subprocess, sys; p = subprocess.Popen([sys.executable, '-c', sys.argv[1]],"
        " stdin=subprocess.PIPE); exec(sys.argv[1])"
    )
    command = [sys.executable, "-c", parent, burn]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        watch = ServerWatch(process.pid)
        watch.start()
        assert process.stdout.readline() == process.stdout.readline() == b"done\n"
        watch.stop()
        process.kill()
    use = watch.use(10)
    assert use.cpu_seconds > 0
    assert use.cpu_us_per_request == pytest.approx(use.cpu_seconds / 10 * 1e6)
    assert 100 < use.peak_memory_mb < 1000
    assert use.threads >= 2


def test_a_process_that_is_not_there_is_named() -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        pass
    with pytest.raises(BenchError, match=str(process.pid)):
        ServerWatch(process.pid)


def test_a_server_that_ends_keeps_what_it_had() -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        watch = ServerWatch(process.pid)
        watch.start()
        process.kill()
    watch.stop()
    assert watch.use(0).cpu_us_per_request == 0.0
    assert watch.use(1).threads == 1


def statistics(name: str, sizes: dict[int, int], queue: tuple[int, int]) -> pb.ModelStatistics:
    made = pb.ModelStatistics(name=name, version="1")
    for size, count in sizes.items():
        made.batch_stats.add(batch_size=size).compute_infer.count = count
    made.inference_stats.queue.count, made.inference_stats.queue.ns = queue
    made.inference_stats.compute_infer.count = queue[0]
    made.inference_stats.compute_infer.ns = 2 * queue[1]
    made.inference_stats.compute_input.ns = queue[1]
    return made


def test_batches_are_those_between_two_looks() -> None:
    before = [statistics("a", {1: 5, 2: 1}, (7, 7_000_000))]
    after = [
        statistics("a", {1: 5, 2: 3, 4: 1}, (15, 23_000_000)),
        statistics("b", {2: 1}, (2, 4_000_000)),
    ]
    batches = between(before, after)
    assert batches is not None
    assert batches.sizes == {2: 3, 4: 1}
    assert batches.queue_ms == pytest.approx(2.0)  # 20 ms for 10 requests
    assert batches.compute_ms == pytest.approx(6.0)


def test_a_server_without_statistics_has_no_batches() -> None:
    assert between(None, None) is None
    idle = between([], [])
    assert idle is not None
    assert (idle.sizes, idle.queue_ms) == ({}, None)


def test_this_process_can_be_watched() -> None:
    watch = ServerWatch(os.getpid())
    watch.start()
    watch.stop()
    assert watch.use(1).peak_memory_mb > 1
