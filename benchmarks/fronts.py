"""What front processes cost and save: processor time for each request, by process.

A model that does nothing is served by servers with 0, 1, 2, ... front processes, by either RPC
engine, all at once. A client loads them in short turns, closed loops over several connections. A
request's cost is what all threads of a process ran for (Linux' schedstat) over the requests of its
turn; told are medians of the turns, and the lowest in brackets. The event loop's thread of the
process that runs models is the one thing that there is only one of: what it takes for a request
says how many a second one server can come to, given enough cores for all else.
"""

from __future__ import annotations

import argparse
import asyncio
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnx
import psutil
from onnx import TensorProto, helper
from rich.console import Console
from rich.table import Table

from headrace.bench.transports import OK, Prepared
from headrace.bench.transports.lean import Lean
from headrace.inference.v2 import grpc_service_pb2 as pb

METHOD = "/inference.GRPCInferenceService/ModelInfer"
CONNECTIONS = 8
WARM_UP_SECONDS = 1.0


@dataclass
class Figures:
    """Of one server and number of callers; microseconds a request, one figure for each turn."""

    model: list[float] = field(default_factory=list)
    loop: list[float] = field(default_factory=list)
    fronts: list[float] = field(default_factory=list)
    rates: list[float] = field(default_factory=list)


@dataclass
class Server:
    name: str
    root: psutil.Process
    address: str
    transports: list[Lean] = field(default_factory=list)
    figures: dict[int, Figures] = field(default_factory=dict)

    def processor_seconds(self) -> tuple[float, float, float]:
        """Of the process that runs models, of its event loop's thread, and of the fronts."""
        children = self.root.children()
        fronts = [c for c in children if any(a.endswith("front_process") for a in c.cmdline())]
        (model,) = set(children) - set(fronts) or {self.root}
        return _ran(model), _ran(model, model.pid), sum(map(_ran, fronts))


def _ran(process: psutil.Process, only: int | str = "*") -> float:
    """What the threads of `process` have run for, or the `only` one that counts; in seconds."""
    total = 0
    for thread in Path(f"/proc/{process.pid}/task").glob(f"{only}"):
        try:
            total += int((thread / "schedstat").read_text().split()[0])
        except OSError:  # it has just ended
            continue
    return total / 1e9


@contextmanager
def serving(engine: str, fronts: int, model: Path) -> Iterator[Server]:
    command = [sys.executable, "-m", "headrace.server.cli", "serve", f"m={model}"]
    options = [f"--rpc-engine={engine}", f"--front-processes={fronts}"]
    process = subprocess.Popen(
        [*command, *options, "--grpc-port=0", "--http-port=0"],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        assert process.stdout is not None
        found = re.search(r"gRPC on (\S+)", process.stdout.readline())
        if found is None:
            raise RuntimeError(f"{engine} with {fronts} front processes did not start")
        yield Server(f"{engine}, {fronts}", psutil.Process(process.pid), found[1])
    finally:
        process.terminate()
        process.wait(30)


def request(size: int) -> Prepared:
    """`size`: bytes of the one tensor."""
    message = pb.ModelInferRequest(model_name="m")
    message.inputs.add(name="x", datatype="FP32", shape=(1, size // 4))
    message.raw_input_contents.append(np.ones(size // 4, np.float32).tobytes())
    return Prepared(METHOD, message.SerializeToString())


async def turn(server: Server, prepared: Prepared, callers: int, seconds: float) -> int:
    """Sends for so long, `callers` requests in flight; returns how many were answered."""
    ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    end = time.monotonic() + seconds
    waiting = answered = 0

    def send(transport: Lean) -> None:
        nonlocal waiting
        waiting += 1

        def done(status: str) -> None:
            nonlocal waiting, answered
            waiting -= 1
            if status != OK:
                if not ended.done():
                    ended.set_exception(RuntimeError(f"a request ended with {status}"))
                return
            answered += 1
            if time.monotonic() < end:
                send(transport)
            elif not waiting and not ended.done():
                ended.set_result(None)

        transport.send(prepared, None, done)

    for number in range(callers):
        send(server.transports[number % len(server.transports)])
    await ended
    return answered


async def measure(servers: list[Server], given: argparse.Namespace) -> None:
    prepared = request(given.size)
    for server in servers:
        server.transports = [Lean(server.address) for _ in range(CONNECTIONS)]
        for transport in server.transports:
            await transport.open()
        await turn(server, prepared, max(given.callers), WARM_UP_SECONDS)
    for number in range(given.turns):
        for callers in given.callers:
            # Each in another place of each round: what the machine does meanwhile hits all alike.
            for place in range(len(servers)):
                server = servers[(place + number) % len(servers)]
                figures = server.figures.setdefault(callers, Figures())
                began, before = time.monotonic(), server.processor_seconds()
                answered = await turn(server, prepared, callers, given.seconds)
                after, took = server.processor_seconds(), time.monotonic() - began
                lists = (figures.model, figures.loop, figures.fronts)
                for costs, now, then in zip(lists, after, before, strict=True):
                    costs.append((now - then) / answered * 1e6)
                figures.rates.append(answered / took)
    for server in servers:
        for transport in server.transports:
            await transport.close()


def show(servers: list[Server]) -> None:
    columns = ("model process, us", "its event loop, us", "fronts, us", "requests/s")
    table = Table("engine, fronts", "callers", *columns)
    for server in servers:
        for callers, figures in server.figures.items():
            lists = (figures.model, figures.loop, figures.fronts)
            row = [f"{statistics.median(of):.0f} ({min(of):.0f})" for of in lists]
            rate = f"{statistics.median(figures.rates):.0f}"
            table.add_row(server.name, f"{callers}", *row, rate)
    Console().print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--engines", nargs="+", default=["grpcio", "native"])
    parser.add_argument("--fronts", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--callers", nargs="+", type=int, default=[32, 128])
    parser.add_argument("--turns", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=1.0, help="of each turn (default 1)")
    parser.add_argument("--size", type=int, default=64, help="bytes of the tensor (default 64)")
    given = parser.parse_args()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        _write_model(folder / "model.onnx")
        servers = [
            stack.enter_context(serving(engine, fronts, folder / "model.onnx"))
            for engine in given.engines
            for fronts in given.fronts
        ]
        asyncio.run(measure(servers, given))
        show(servers)


def _write_model(path: Path) -> None:
    """y = x, (batch, any)."""
    value, dims = helper.make_tensor_value_info, ("batch", "width")
    graph = helper.make_graph(
        [helper.make_node("Identity", ["x"], ["y"])],
        "identity",
        [value("x", TensorProto.FLOAT, dims)],
        [value("y", TensorProto.FLOAT, dims)],
    )
    opset = [helper.make_opsetid("", 20)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=9), path)


if __name__ == "__main__":
    main()
