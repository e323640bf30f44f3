"""A burst far beyond what a model can do in time: how soon do the refused know, and what is wasted?

400 requests with a deadline of one second are sent at once to a model that can do 64 rows a second.
`headrace serve` runs in a process of its own, the client in this one; the model is built here, so
heavy that all executors together do 64 rows a second by ONNX Runtime's own time on this machine.

Times are the client's, from the moment the burst begins: they hold its own work for 400 calls and
whatever else the machine does, and are upper bounds of the server's. The client is the load
generator's own, which takes little of the cores that it shares with the server. After each burst
the same is sent to a bare grpc.aio server that refuses every call unread (`refusing.py`): sooner
nobody can know on that engine, with this client on these cores.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import re
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper
from rich.console import Console
from rich.table import Table

from headrace.batcher.request import Why
from headrace.bench.transports import OK, Prepared
from headrace.bench.transports.lean import Lean
from headrace.client import InferOptions
from headrace.client.messages import infer_request

METHOD = "/inference.GRPCInferenceService/ModelInfer"
SIZE = 96


def heavy(steps: int) -> onnx.ModelProto:
    """y = x, (batch, 1), after `steps` products of a 96 x 96 matrix for each row."""
    matrix = ("batch", SIZE, SIZE)
    info = helper.make_tensor_value_info
    body = helper.make_graph(
        [
            helper.make_node("MatMul", ["state", "weights"], ["next"]),
            helper.make_node("Identity", ["go"], ["go_on"]),
        ],
        "step",
        [
            info("number", TensorProto.INT64, ()),
            info("go", TensorProto.BOOL, ()),
            info("state", TensorProto.FLOAT, matrix),
        ],
        [info("go_on", TensorProto.BOOL, ()), info("next", TensorProto.FLOAT, matrix)],
    )
    nodes = [
        helper.make_node("Reshape", ["x", "as_matrix"], ["scalar"]),
        helper.make_node("Mul", ["scalar", "zeros"], ["start"]),
        helper.make_node("Loop", ["steps", "", "start"], ["end"], body=body),
        helper.make_node("ReduceSum", ["end", "inner"], ["nothing"], keepdims=0),
        helper.make_node("Reshape", ["nothing", "as_row"], ["zero"]),
        helper.make_node("Add", ["x", "zero"], ["y"]),
    ]
    weights = np.random.default_rng(0).standard_normal((SIZE, SIZE)) / SIZE**0.5
    constants = {
        "weights": weights.astype(np.float32),
        "zeros": np.zeros((1, SIZE, SIZE), np.float32),
        "steps": np.array(steps, np.int64),
        "inner": np.array([1, 2], np.int64),
        "as_matrix": np.array([-1, 1, 1], np.int64),
        "as_row": np.array([-1, 1], np.int64),
    }
    graph = helper.make_graph(
        nodes,
        "heavy",
        [info("x", TensorProto.FLOAT, ("batch", 1))],
        [info("y", TensorProto.FLOAT, ("batch", 1))],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)


def seconds_of(steps: int) -> float:
    """What a row of `heavy(steps)` takes on one thread: the median of nine runs."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    model = heavy(steps).SerializeToString()
    session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    durations = []
    for _ in range(9):
        began = time.perf_counter()
        session.run(None, {"x": np.ones((1, 1), np.float32)})
        durations.append(time.perf_counter() - began)
    return float(np.median(durations))


@contextmanager
def server(rows_per_second: float, engine: str) -> Iterator[tuple[str, str]]:
    """`headrace serve` of a model of that speed; gives its gRPC and HTTP addresses."""
    wanted = len(os.sched_getaffinity(0)) / rows_per_second
    steps = 200
    for _ in range(3):
        steps = max(1, round(steps * wanted / seconds_of(steps)))
    with tempfile.TemporaryDirectory() as folder:
        version = Path(folder, "heavy", "1")
        version.mkdir(parents=True)
        onnx.save_model(heavy(steps), version / "model.onnx")
        command = [sys.executable, "-m", "headrace.server.cli", "serve", folder]
        command += ["--grpc-port", "0", "--http-port", "0", "--log-level", "warning"]
        command += ["--rpc-engine", engine]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        try:
            words = process.stdout.readline().split()
            yield words[words.index("gRPC") + 2], words[words.index("HTTP") + 2]
        finally:
            process.terminate()
            process.wait()
            process.stdout.close()


@contextmanager
def refusing() -> Iterator[str]:
    """A bare server that refuses everything; gives its address."""
    command = [sys.executable, str(Path(__file__).with_name("refusing.py"))]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield process.stdout.readline().strip()
        finally:
            process.terminate()


async def burst(address: str, calls: int, deadline: float) -> list[tuple[str, float]]:
    """How each of `calls` calls ended, and after how many seconds from the burst's beginning."""
    inputs = {"x": np.ones((1, 1), np.float32)}
    request = Prepared(METHOD, infer_request("heavy", inputs, InferOptions()).SerializeToString())
    client = Lean(address)
    await client.open()
    try:
        for _ in range(3):
            await _sent(client, request, 1, None)
        return await _sent(client, request, calls, deadline)
    finally:
        await client.close()


async def _sent(
    client: Lean, request: Prepared, calls: int, deadline: float | None
) -> list[tuple[str, float]]:
    ends: list[tuple[str, float]] = []
    all_ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    began = time.perf_counter()

    def done(status: str) -> None:
        ends.append((status, time.perf_counter() - began))
        if len(ends) == calls:
            all_ended.set_result(None)

    for _ in range(calls):
        client.send(request, deadline, done)
    await all_ended
    return ends


def figures(address: str) -> Counter[str]:
    """The server's counters that are of interest here: totals, and requests by how they ended."""
    with urllib.request.urlopen(f"http://{address}/metrics") as response:
        text = response.read().decode()
    found: Counter[str] = Counter()
    for name, labels, value in re.findall(r"^headrace_(\w+?)_total\{(.*)\} (\S+)$", text, re.M):
        outcome = re.search(r'outcome="([^"]*)"', labels)
        found[outcome[1] if outcome else name] += int(float(value))
    return found


def row(
    ends: list[tuple[str, float]], told: Counter[str], bare: list[tuple[str, float]]
) -> list[str]:
    """Of the table: how the calls of a burst ended, what the server counted meanwhile, and how soon
    those of a `bare` one knew."""
    count = Counter(end for end, _ in ends)
    known = sorted(1e3 * after for end, after in ends if end == "RESOURCE_EXHAUSTED")
    on_arrival = told[Why.TOO_LATE.value]  # the others were let in first, and told later
    first, later = known[:on_arrival] or [0.0], known[on_arrival:]
    return [
        str(count[OK]),
        str(on_arrival),
        *(f"{np.percentile(first, share):.0f}" for share in (50, 99, 100)),
        str(len(later) + count["DEADLINE_EXCEEDED"]),
        str(told["wasted_rows"]),
        str(told["batches"]),
        " / ".join(f"{1e3 * np.percentile([end for _, end in bare], q):.0f}" for q in (50, 100)),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--calls", type=int, default=400)
    parser.add_argument("--deadline", type=float, default=1.0, help="seconds")
    parser.add_argument("--rate", type=float, default=64.0, help="rows/s that the model can do")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--rpc-engine", choices=("grpcio", "native"), default="grpcio")
    arguments = parser.parse_args()
    table = Table(
        "answered", "refused", "p50 ms", "p99 ms", "max ms", "let go", "for nobody", "batches",
        "bare p50 / max ms",
    )  # fmt: skip
    with server(arguments.rate, arguments.rpc_engine) as (address, http), refusing() as bare:
        for _ in range(arguments.repeats):
            before = figures(http)
            ends = asyncio.run(burst(address, arguments.calls, arguments.deadline))
            time.sleep(2 * arguments.deadline)  # what still runs is counted when it ends
            told = figures(http) - before
            refused = asyncio.run(burst(bare, arguments.calls, arguments.deadline))
            table.add_row(*row(ends, told, refused))
    console = Console(width=120)
    console.print(table)
    console.print(
        "refused: on arrival; ms: from the burst's beginning until those callers knew; let go: "
        "accepted, and told on the way that the deadline cannot be met any more"
    )


if __name__ == "__main__":
    main()
