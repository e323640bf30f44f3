"""Sensor streams against one unary call per window, and against one sequence per stream.

Every side asks the same of the same server: `--sessions` signals, each with `--rate` windows a
second, at times that do not depend on the answers. The sides alternate in one run:

- streams: one `headrace.stream.v1` session for each signal, many on one call;
- unary: one ModelInfer for each window, as a client without streams would do it;
- streams with state: a recurrent model, its state kept by the session;
- sequences: the same model by Triton's way: ModelInfer with `sequence_id`, one after the other.

The latency of a window is from handing over its last sample to having its result. The load comes
from `--processes` others, on the same cores as the server: more of them where there are cores to
spare, since one Python process can hardly take more than 3000 windows a second.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import AsyncExitStack, contextmanager
from dataclasses import dataclass, field, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import psutil
from onnx import TensorProto, helper, numpy_helper
from rich.console import Console
from rich.table import Table

from headrace.client import (
    AsyncClient,
    AsyncSensorStream,
    HeadraceError,
    InferOptions,
    RetryPolicy,
    WindowResult,
)

WINDOW, HIDDEN = 160, 64
SESSIONS_OF_A_CLIENT = 1000
STATE_TOML = '[[state]]\ninput = "state"\noutput = "next"\nbatch_axis = 0\n'
ONCE = RetryPolicy(max_attempts=1)


def model(*, stateful: bool) -> Any:
    """next = tanh(x @ weights + state @ recurrent), y = next @ out; without a state it is zero."""
    rng = np.random.default_rng(0)
    shapes = {"weights": (WINDOW, HIDDEN), "recurrent": (HIDDEN, HIDDEN), "out": (HIDDEN, 4)}
    arrays = {n: rng.standard_normal(s).astype(np.float32) / 16 for n, s in shapes.items()}
    inputs = [_value("x", ["batch", WINDOW])]
    outputs = [_value("y", ["batch", 4])]
    if stateful:
        inputs.append(_value("state", ["batch", HIDDEN]))
        outputs.append(_value("next", ["batch", HIDDEN]))
    else:
        arrays["state"] = np.zeros((1, HIDDEN), np.float32)
    nodes = [
        helper.make_node("MatMul", ["x", "weights"], ["seen"]),
        helper.make_node("MatMul", ["state", "recurrent"], ["kept"]),
        helper.make_node("Add", ["seen", "kept"], ["sum"]),
        helper.make_node("Tanh", ["sum"], ["next"]),
        helper.make_node("MatMul", ["next", "out"], ["y"]),
    ]
    constants = [numpy_helper.from_array(array, name) for name, array in arrays.items()]
    graph = helper.make_graph(nodes, "cell", inputs, outputs, constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


def _value(name: str, dims: list[str | int]) -> Any:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, dims)


@dataclass(frozen=True)
class Server:
    address: str
    process: psutil.Process

    def memory(self) -> int:
        """Resident bytes."""
        return int(self.process.memory_info().rss)

    def cpu(self) -> float:
        """Seconds so far."""
        times = self.process.cpu_times()
        return float(times.user + times.system)


@contextmanager
def serving() -> Iterator[Server]:
    """`headrace serve` with both models, on free ports."""
    with tempfile.TemporaryDirectory() as folder:
        for name in ("plain", "cell"):
            target = Path(folder, name, "1", "model.onnx")
            target.parent.mkdir(parents=True)
            onnx.save(model(stateful=name == "cell"), target)
        Path(folder, "cell", "model.toml").write_text(STATE_TOML)
        command = [sys.executable, "-m", "headrace.server.cli", "serve", folder]
        command += ["--grpc-port", "0", "--http-port", "0", "--log-level", "warning"]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        try:
            words = process.stdout.readline().split()
            yield Server(words[words.index("gRPC") + 2], psutil.Process(process.pid))
        finally:
            process.terminate()
            process.wait()
            process.stdout.close()


@dataclass
class Measured:
    """What one side gave. latencies: seconds. elapsed, server_cpu, own_cpu: seconds."""

    latencies: list[float] = field(default_factory=list)
    offered: int = 0
    failed: int = 0
    elapsed: float = 0.0
    server_cpu: float = 0.0
    own_cpu: float = 0.0

    def add(self, other: Measured) -> None:
        """What went on beside it, in another process; `elapsed` is that of the slowest."""
        self.latencies += other.latencies
        self.offered += other.offered
        self.failed += other.failed
        self.elapsed = max(self.elapsed, other.elapsed)
        self.own_cpu += other.own_cpu


@dataclass(frozen=True)
class Load:
    """How much is asked. rate: windows per second of each session. first: the number of the first
    session, where others are another process's."""

    sessions: int
    rate: float
    seconds: float
    first: int = 0

    def split(self, processes: int) -> list[Load]:
        edges = [round(self.sessions * n / processes) for n in range(processes + 1)]
        return [
            replace(self, sessions=end - start, first=start)
            for start, end in itertools.pairwise(edges)
        ]

    async def ticks(self, number: int, began: float, act: Callable[[int], Awaitable[None]]) -> None:
        """`act` with the number of each window of one session when it is due. The sessions are
        spread evenly over a period; one that comes late goes on without a pause."""
        for window in range(int(self.rate * self.seconds)):
            due = began + (window + number / self.sessions) / self.rate
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
            await act(window)


SIGNAL = np.random.default_rng(1).standard_normal((64, WINDOW)).astype(np.float32)


async def streams(clients: list[AsyncClient], name: str, load: Load, into: Measured) -> None:
    async with AsyncExitStack() as stack:
        opened = [
            clients[n % len(clients)].stream(
                name, window=WINDOW, sample_rate=WINDOW * load.rate, layout="samples", outputs=["y"]
            )
            for n in range(load.sessions)
        ]
        await asyncio.gather(*(stack.enter_async_context(stream) for stream in opened))
        began = time.perf_counter() + 0.2
        await asyncio.gather(
            *(_stream(stream, n, load, began, into) for n, stream in enumerate(opened))
        )


async def _stream(
    stream: AsyncSensorStream, number: int, load: Load, began: float, into: Measured
) -> None:
    handed: list[float] = []

    async def send(window: int) -> None:
        handed.append(time.perf_counter())
        await stream.send(SIGNAL[window % len(SIGNAL)])

    async def feed() -> None:
        await load.ticks(number, began, send)
        stream.end()

    feeding = asyncio.ensure_future(feed())
    async for event in stream:
        if isinstance(event, WindowResult):
            into.latencies.append(time.perf_counter() - handed[event.window])
        else:
            into.failed += event.windows
    await feeding
    into.offered += len(handed)


async def unary(clients: list[AsyncClient], name: str, load: Load, into: Measured) -> None:
    calls: set[asyncio.Task[None]] = set()

    async def call(client: AsyncClient, window: int, came: float) -> None:
        try:
            await client.infer(name, {"x": SIGNAL[None, window % len(SIGNAL)]}, outputs=["y"])
        except HeadraceError:
            into.failed += 1
        else:
            into.latencies.append(time.perf_counter() - came)

    async def session(number: int) -> None:
        client = clients[number % len(clients)]

        async def start(window: int) -> None:
            into.offered += 1
            task = asyncio.ensure_future(call(client, window, time.perf_counter()))
            calls.add(task)
            task.add_done_callback(calls.discard)

        await load.ticks(number, began, start)

    began = time.perf_counter() + 0.2
    await asyncio.gather(*(session(number) for number in range(load.sessions)))
    while calls:
        await asyncio.wait(calls)


async def sequences(clients: list[AsyncClient], name: str, load: Load, into: Measured) -> None:
    """Order matters, so a window waits for the answer to the one before it."""
    last = int(load.rate * load.seconds) - 1

    async def session(number: int) -> None:
        client = clients[number % len(clients)]
        waiting: asyncio.Queue[tuple[int, float]] = asyncio.Queue()

        async def hand_over(window: int) -> None:
            into.offered += 1
            waiting.put_nowait((window, time.perf_counter()))

        feeding = asyncio.ensure_future(load.ticks(number, began, hand_over))
        for _ in range(last + 1):
            window, came = await waiting.get()
            parameters = {
                "sequence_id": load.first + number + 1,
                "sequence_start": window == 0,
                "sequence_end": window == last,
            }
            options = InferOptions(parameters=parameters, outputs=["y"])
            try:
                await client.infer(name, {"x": SIGNAL[None, window % len(SIGNAL)]}, options)
            except HeadraceError:
                into.failed += 1
            else:
                into.latencies.append(time.perf_counter() - came)
        await feeding

    began = time.perf_counter() + 0.2
    await asyncio.gather(*(session(number) for number in range(load.sessions)))


Side = Callable[[list[AsyncClient], str, Load, Measured], Awaitable[None]]
SIDES: dict[str, tuple[Side, str]] = {
    "streams": (streams, "plain"),
    "unary": (unary, "plain"),
    "streams with state": (streams, "cell"),
    "sequences": (sequences, "cell"),
}


async def _measure(address: str, name: str, load: Load) -> Measured:
    side, model_name = SIDES[name]
    into = Measured()
    async with AsyncExitStack() as stack:
        clients = [
            await stack.enter_async_context(AsyncClient(address, retry=ONCE))
            for _ in range(-(-load.sessions // SESSIONS_OF_A_CLIENT))
        ]
        for client in clients:
            await client.server_ready()
        own, began = time.process_time(), time.perf_counter()
        await side(clients, model_name, load, into)
        into.elapsed = time.perf_counter() - began
        into.own_cpu = time.process_time() - own
    return into


def run_load(address: str, name: str, load: Load) -> Measured:
    """One process's part of one measurement."""
    return asyncio.run(_measure(address, name, load))


def measure(
    server: Server, pool: ProcessPoolExecutor, name: str, loads: list[Load], into: Measured
) -> None:
    """All parts at once, one in each process."""
    cpu = server.cpu()
    together = Measured()
    for part in [pool.submit(run_load, server.address, name, load) for load in loads]:
        together.add(part.result())
    elapsed = into.elapsed + together.elapsed
    into.add(together)
    into.elapsed = elapsed
    into.server_cpu += server.cpu() - cpu


async def idle(server: Server, sessions: int) -> tuple[float, float]:
    """Bytes of the server's memory for each open session that has half a window, with and without
    state; the second half of the sessions counts, so that what is made once does not."""
    found = []
    for name in ("plain", "cell"):
        async with AsyncExitStack() as stack:
            before = 0
            for part in range(2):
                for first in range(0, sessions, SESSIONS_OF_A_CLIENT):
                    client = await stack.enter_async_context(AsyncClient(server.address))
                    opened = [
                        client.stream(name, window=WINDOW, sample_rate=1600.0, layout="samples")
                        for _ in range(min(SESSIONS_OF_A_CLIENT, sessions - first))
                    ]
                    await asyncio.gather(*(stack.enter_async_context(s) for s in opened))
                    for stream in opened:
                        await stream.send(SIGNAL[0, : WINDOW // 2])
                await asyncio.sleep(1.0)
                if not part:
                    before = server.memory()
            found.append((server.memory() - before) / sessions)
    return found[0], found[1]


def report(console: Console, load: Load, results: dict[str, Measured]) -> None:
    table = Table(
        "side", "windows/s", "of offered", "p50 ms", "p99 ms", "server µs/window", "client µs"
    )
    for name, m in results.items():
        done = len(m.latencies)
        p50, p99 = np.percentile(m.latencies, [50, 99]) * 1e3 if done else (np.nan, np.nan)
        table.add_row(
            name,
            f"{done / m.elapsed:.0f}",
            f"{done / max(1, m.offered):.1%}",
            f"{p50:.2f}",
            f"{p99:.2f}",
            f"{m.server_cpu / max(1, done) * 1e6:.0f}",
            f"{m.own_cpu / max(1, done) * 1e6:.0f}",
        )
    console.print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sessions", type=int, default=200)
    parser.add_argument("--rate", type=float, default=10.0, help="windows a second, of each")
    parser.add_argument("--seconds", type=float, default=5.0, help="of each measurement")
    parser.add_argument("--repeats", type=int, default=2, help="alternations of the sides")
    parser.add_argument("--idle", type=int, default=500, help="sessions to measure memory by")
    parser.add_argument("--processes", type=int, default=1, help="that make the load")
    parser.add_argument("--sides", nargs="+", choices=SIDES, default=list(SIDES))
    arguments = parser.parse_args()
    load = Load(arguments.sessions, arguments.rate, arguments.seconds)
    console = Console()
    results = {name: Measured() for name in arguments.sides}
    loads = load.split(arguments.processes)
    with (
        serving() as server,
        ProcessPoolExecutor(len(loads), mp_context=get_context("spawn")) as pool,
    ):
        warm = [replace(part, sessions=1, rate=10.0, seconds=0.5) for part in loads]
        for name in results:  # connections, imports, and the first runs of the models
            measure(server, pool, name, warm, Measured())
        for _ in range(arguments.repeats):
            for name, measured in results.items():
                measure(server, pool, name, loads, measured)
        report(console, load, results)
        if arguments.idle:
            plain, stateful = asyncio.run(idle(server, arguments.idle))
            console.print(
                f"memory of an idle session: {plain / 1024:.1f} KiB, with state "
                f"{stateful / 1024:.1f} KiB (by {arguments.idle} of each)"
            )
    console.print(
        f"{load.sessions} sessions, {load.rate:g} windows/s each, {load.seconds:g} s, "
        f"{arguments.repeats} times; windows of {WINDOW} samples; {os.cpu_count()} CPUs for server "
        f"and load, the load from {arguments.processes} processes"
    )


if __name__ == "__main__":
    main()
