"""Headrace with nothing configured against its own fixed configurations and ONNX Runtime's limit.

One server holds the same model under several names: `auto`, which is not configured, and fixed
configurations that somebody might have chosen. Closed-loop callers load one after the other, in
turns, and between them ONNX Runtime is called directly in this process. For each number of callers
the medians over the turns are compared: `auto` to the best of the fixed ones, which is the best one
in hindsight for that very load, and to the limit. The best of five looks better than it is by what
it was lucky in, so that `auto` is also compared to the one that was best in the other turns.

The callers send messages that were serialised beforehand and leave answers unparsed, by the load
generator's own client, so that they take little of the cores that they share with the server. What
they and the server's front take all the same is measured too: executors can have the rest, and
they are compared to that share of the limit. What ends in the first moments of a turn is not
counted, nor what ends after it: batches begin and end out of step with turns.

With `--apart` the last CPU is the executors' alone, and the limit is that of this CPU: the callers
and all else of the server have the others. So it is where there are more CPUs than these.
"""

from __future__ import annotations

import argparse
import asyncio
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnxruntime as ort
import psutil
from rich.console import Console
from rich.table import Table

from closed_loops import CPUS, Asked, Latencies, Make, Subject, bare, served
from headrace.bench.models import model
from headrace.bench.sides import served as served_by_peer
from headrace.bench.sides import side

LIMIT = "ONNX Runtime alone"
# In the words of model.toml. A delay of 0 is the greedy rule: all that waits, up to the largest
# batch, as soon as an executor is free.
CONFIGURATIONS = {
    "auto": "",
    "greedy, 64 rows, 2 x 1": "max_batch_size = 64\ninstances = 2\nmax_delay = 0",
    "no batching, 2 x 1": "max_batch_size = 1\ninstances = 2\nmax_delay = 0",
    "no batching, 1 x 2": "max_batch_size = 1\ninstances = 1\nintra_op_threads = 2\nmax_delay = 0",
    "8 rows, 1 ms, 2 x 1": "max_batch_size = 8\ninstances = 2\nmax_delay = 0.001",
    "8 rows, 5 ms, 2 x 1": "max_batch_size = 8\ninstances = 2\nmax_delay = 0.005",
}

NICE = 1  # threads of executors give way to all others by at least so much


def _normal(*shape: int) -> Make:
    return lambda rng: rng.standard_normal(shape).astype(np.float32)


# The input of each model, and one request's array for it, of one row.
INPUTS: dict[str, tuple[str, Make]] = {
    "magika": ("bytes", lambda rng: rng.integers(0, 256, (1, 2048), dtype=np.int32)),
    "ocr-classify": ("x", _normal(1, 3, 48, 192)),
    "ocr-recognise": ("x", _normal(1, 3, 48, 320)),
    "lstm": ("x", _normal(1, 50, 64)),
}


@dataclass(frozen=True)
class Turns:
    """How often each side is measured, for how long each time, in seconds, and on which CPUs
    executors run."""

    count: int
    seconds: float
    cpus: frozenset[int]


@dataclass(frozen=True)
class Server:
    """One that runs. `address` is that of gRPC."""

    address: str
    process: int

    def outside(self) -> float:
        """Seconds of processor time that callers and the server's front have taken so far: all
        that no executor did."""
        return time.process_time() + sum(self.front().values())

    def front(self) -> dict[int, float]:
        """The numbers of the threads that are not executors', and the processor time of each."""
        found: dict[int, float] = {}
        for thread in psutil.Process(self.process).threads():
            with suppress(ProcessLookupError):  # it has ended since
                if os.getpriority(os.PRIO_PROCESS, thread.id) < NICE:
                    found[thread.id] = thread.user_time + thread.system_time
        return found


@dataclass
class Side:
    """What was found of one side, a turn after the other. outside: processors that callers and
    our own front took."""

    latencies: list[Latencies] = field(default_factory=list)
    outside: list[float] = field(default_factory=list)


@contextmanager
def server(
    subject: Subject, configurations: Sequence[str], engine: str, cpus: frozenset[int]
) -> Iterator[Server]:
    """`headrace serve` with `subject` under each configuration's name, its executors on `cpus`."""
    with tempfile.TemporaryDirectory() as folder:
        for name in configurations:
            version = Path(folder, name, "1")
            version.mkdir(parents=True)
            (version / "model.onnx").symlink_to(subject.path.resolve())
            Path(folder, name, "model.toml").write_text(CONFIGURATIONS[name])
        command = [sys.executable, "-m", "headrace.server.cli", "serve", folder]
        command += ["--grpc-port", "0", "--http-port", "0", "--log-level", "warning"]
        command += ["--rpc-engine", engine]
        command += ["--follow-links", "true"]
        os.sched_setaffinity(0, cpus)  # which the server inherits, and plans for
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        try:
            words = process.stdout.readline().split()
            running = Server(words[words.index("gRPC") + 2], process.pid)
            os.sched_setaffinity(0, CPUS)
            if cpus != CPUS:
                for thread in running.front():
                    os.sched_setaffinity(thread, CPUS - cpus)
                os.sched_setaffinity(0, CPUS - cpus)
            yield running
        finally:
            process.terminate()
            process.wait()
            process.stdout.close()


def measure(
    subject: Subject, server: Server, sides: Mapping[str, Asked], callers: int, turns: Turns
) -> dict[str, Side]:
    """What each side did in each turn."""
    found: dict[str, Side] = defaultdict(Side)
    names = list(sides)
    for turn in range(turns.count + 1):
        # Nobody always comes after the same side, or first after ONNX Runtime alone.
        first = turn % len(names)
        for name in [*names[first:], *names[:first]]:
            before, began = server.outside(), time.perf_counter()
            latencies = asyncio.run(served(sides[name], subject, callers, turns.seconds))
            seconds = time.perf_counter() - began
            found[name].latencies.append(latencies)
            found[name].outside.append((server.outside() - before) / seconds)
        found[LIMIT].latencies.append(bare(subject, callers, turns.seconds, turns.cpus))
        if turn == 0:
            found.clear()  # the first turn warms up: sessions, and what is learned
    return found


def report(subject: Subject, callers: int, found: dict[str, Side], turns: Turns) -> list[str]:
    """The row of the table for this load: rates, and what `auto` makes of them."""
    rates = {
        name: [len(turn) / turns.seconds for turn in side.latencies] for name, side in found.items()
    }
    medians = {name: statistics.median(turns) for name, turns in rates.items()}
    fixed = {name: medians[name] for name in CONFIGURATIONS if name in medians and name != "auto"}
    peers = {n: rate for n, rate in medians.items() if n not in CONFIGURATIONS and n != LIMIT}
    auto, outside = rates["auto"], found["auto"].outside
    # Of a CPU that executors have to themselves all is left.
    left = [1 - taken / len(CPUS) if turns.cpus == CPUS else 1.0 for taken in outside]
    possible = [limit * share for limit, share in zip(rates[LIMIT], left, strict=True)]
    row = [subject.name, str(callers), f"{medians[LIMIT]:.0f}", f"{medians['auto']:.0f}"]
    row += [f"{_ratio(auto, rates[LIMIT]):.2f}", f"{statistics.median(outside):.2f}"]
    row.append(f"{_ratio(auto, possible):.2f}")
    if fixed:
        best = max(fixed, key=lambda name: fixed[name])
        row += [f"{fixed[best]:.0f} ({best})", f"{_ratio(auto, rates[best]):.2f}"]
        row.append(f"{_chosen_before(auto, {name: rates[name] for name in fixed}):.2f}")
    else:
        row += ["", "", ""]
    if peers:
        best = max(peers, key=lambda name: peers[name])
        row += [f"{peers[best]:.0f} ({best})", f"{_ratio(rates[best], rates[LIMIT]):.2f}"]
        row.append(f"{_ratio(auto, rates[best]):.2f}")
    else:
        row += ["", "", ""]
    latencies = [latency for turn in found["auto"].latencies for latency in turn]
    p50, p99 = np.percentile(latencies, [50, 99]) * 1e3
    return [*row, f"{p50:.1f} / {p99:.1f}"]


def _ratio(ours: Sequence[float], theirs: Sequence[float]) -> float:
    return statistics.median(a / b for a, b in zip(ours, theirs, strict=True))


def _chosen_before(ours: Sequence[float], fixed: Mapping[str, Sequence[float]]) -> float:
    """Ours over the fixed configuration that does best in every other turn, in the turns between,
    and the other way round. The best of several that are equally good owes it to its luck in the
    turns that it was chosen by."""
    if len(ours) < 2:
        return math.nan
    ratios: list[float] = []
    for half in (0, 1):
        chosen = max(fixed, key=lambda name: statistics.median(fixed[name][half::2]))
        ratios += [a / b for a, b in zip(ours, fixed[chosen], strict=True)][1 - half :: 2]
    return statistics.median(ratios)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", choices=INPUTS, default=list(INPUTS))
    parser.add_argument("--callers", type=int, nargs="+", default=[1, 8, 32, 128])
    parser.add_argument("--seconds", type=float, default=1.5, help="of each measurement")
    parser.add_argument("--turns", type=int, default=5, help="alternations; medians are shown")
    parser.add_argument("--only-auto", action="store_true", help="leave out fixed configurations")
    parser.add_argument("--peers", nargs="+", default=[], help="for example triton:tuned")
    parser.add_argument("--rpc-engine", choices=("grpcio", "native"), default="grpcio")
    parser.add_argument("--apart", action="store_true", help="executors have the last CPU alone")
    parser.add_argument("--details", action="store_true", help="print every side's rate")
    given = parser.parse_args()
    if given.apart and (given.peers or len(CPUS) < 2):
        parser.error("--apart: expected two CPUs or more, and no --peers: theirs are not set apart")
    return given


def main() -> None:
    given = arguments()
    names = ["auto"] if given.only_auto else list(CONFIGURATIONS)
    cpus = frozenset({max(CPUS)}) if given.apart else CPUS
    turns = Turns(given.turns, given.seconds, cpus)
    console = Console(width=200)
    table = Table(
        "model", "callers", "limit, rows/s", "auto", "/ limit", "outside, CPUs", "/ what is left",
        "best fixed", "auto / best", "/ chosen before", "best peer", "peer / limit", "auto / peer",
        "p50 / p99 ms",
    )  # fmt: skip
    for wanted in given.models:
        subject = Subject(wanted, model(wanted).path, *INPUTS[wanted])
        with ExitStack() as stack:
            running = stack.enter_context(server(subject, names, given.rpc_engine, cpus))
            sides = {name: Asked(running.address, name) for name in names}
            for peer in given.peers:
                target = stack.enter_context(served_by_peer(side(peer), model(wanted)))
                if target.protocol != "grpc":
                    raise SystemExit(f"--peers: expected one that speaks gRPC, got {peer}")
                sides[peer] = Asked(target.address, wanted)
            for callers in given.callers:
                found = measure(subject, running, sides, callers, turns)
                row = report(subject, callers, found, turns)
                table.add_row(*row)
                console.print(", ".join(row))
                if given.details:
                    for name, of in found.items():
                        rates = [f"{len(turn) / turns.seconds:.0f}" for turn in of.latencies]
                        console.print(f"    {name}: {' '.join(rates)}")
    console.print(table)
    whose = "the last one for executors alone" if given.apart else "shared with the client"
    console.print(
        f"ONNX Runtime {ort.__version__}, {len(CPUS)} CPUs, {whose}, "
        f"medians of {turns.count} turns of {turns.seconds} s"
    )


if __name__ == "__main__":
    main()
