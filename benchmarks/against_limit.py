"""How close a server of a real model comes to ONNX Runtime's own limit on this machine.

For each number of callers, two sides alternate in one run and the medians are compared:

- the limit: ONNX Runtime called directly, as many single-threaded callers as there are CPUs, or as
  there are callers if those are fewer; rows one at a time, no server, no network;
- Headrace: `headrace serve` in a process of its own, closed-loop callers in this one.

The client takes its CPU time from the same cores, so the ratio understates the server.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import magika
import numpy as np
import onnxruntime as ort
from rich.console import Console
from rich.table import Table

from headrace.client import AsyncClient

MODEL = sorted(Path(magika.__file__).parent.glob("models/*/model.onnx"))[-1]
ROWS = np.random.default_rng(0).integers(0, 256, (64, 1, 2048), dtype=np.int32)


@contextmanager
def server() -> Iterator[str]:
    """`headrace serve` on a free port; gives its gRPC address."""
    with tempfile.TemporaryDirectory() as folder:
        version = Path(folder, "magika", "1")
        version.mkdir(parents=True)
        (version / "model.onnx").symlink_to(MODEL)
        command = [sys.executable, "-m", "headrace.server.cli", "serve", folder]
        command += ["--grpc-port", "0", "--http-port", "0", "--log-level", "warning"]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        try:
            words = process.stdout.readline().split()
            yield words[words.index("gRPC") + 2]
        finally:
            process.terminate()
            process.wait()
            process.stdout.close()


def limit(callers: int, seconds: float) -> list[float]:
    """Durations, in seconds, of the runs that ONNX Runtime alone completes in `seconds`."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(MODEL, options, providers=["CPUExecutionProvider"])
    session.run(None, {"bytes": ROWS[0]})
    durations: list[float] = []
    stop = time.perf_counter() + seconds

    def work() -> None:
        index = 0
        while (began := time.perf_counter()) < stop:
            session.run(None, {"bytes": ROWS[index % len(ROWS)]})
            durations.append(time.perf_counter() - began)
            index += 1

    threads = [threading.Thread(target=work) for _ in range(min(callers, os.cpu_count() or 1))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return durations


async def served(address: str, callers: int, seconds: float) -> list[float]:
    """Latencies, in seconds, of the requests that `callers` closed-loop callers complete."""
    latencies: list[float] = []
    async with AsyncClient(address) as client:
        await client.infer("magika", {"bytes": ROWS[0]})
        stop = time.perf_counter() + seconds

        async def call(index: int) -> None:
            while (began := time.perf_counter()) < stop:
                await client.infer("magika", {"bytes": ROWS[index % len(ROWS)]})
                latencies.append(time.perf_counter() - began)
                index += 1

        await asyncio.gather(*(call(index) for index in range(callers)))
    return latencies


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--callers", type=int, nargs="+", default=[1, 8, 32, 128])
    parser.add_argument("--seconds", type=float, default=2.0, help="of each measurement")
    parser.add_argument("--repeats", type=int, default=3, help="alternations; medians are shown")
    arguments = parser.parse_args()
    console = Console()
    table = Table("callers", "limit, rows/s", "Headrace, rows/s", "ratio", "p50 ms", "p99 ms")
    with server() as address:
        for callers in arguments.callers:
            ours, bare, latencies = [], [], []
            for _ in range(arguments.repeats):
                bare.append(len(limit(callers, arguments.seconds)) / arguments.seconds)
                measured = asyncio.run(served(address, callers, arguments.seconds))
                ours.append(len(measured) / arguments.seconds)
                latencies += measured
            ratio = statistics.median(o / b for o, b in zip(ours, bare, strict=True))
            p50, p99 = np.percentile(latencies, [50, 99]) * 1e3
            table.add_row(
                str(callers),
                f"{statistics.median(bare):.0f}",
                f"{statistics.median(ours):.0f}",
                f"{ratio:.2f}",
                f"{p50:.1f}",
                f"{p99:.1f}",
            )
            console.print(f"{callers} callers: ratio {ratio:.2f}")
    console.print(table)
    console.print(
        f"ONNX Runtime {ort.__version__}, {os.cpu_count()} CPUs, medians of {arguments.repeats}"
    )


if __name__ == "__main__":
    main()
