"""What telemetry costs: the server's processor time for each request, with it on and off.

The same model, one that does next to nothing, is served by a server of each kind at once. A client
loads them in short turns, a closed loop over one connection each. A request's cost is what all
threads of the server's process ran for (Linux' schedstat) over the requests of its turn; each kind
is compared with `off` in the same round, and the median of the rounds is told, with the quartiles.

The model being so small, nearly all that is measured is the server's own work: the worst case.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import re
import statistics
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper
from rich.console import Console
from rich.table import Table

from headrace.bench.transports import OK, Prepared
from headrace.bench.transports.lean import Lean
from headrace.inference.v2 import grpc_service_pb2 as pb

METHOD = "/inference.GRPCInferenceService/ModelInfer"
WIDTH = 64
BASE = "off"
WARM_UP = 2000


@dataclass(frozen=True)
class Kind:
    """A way to run the server. `share` of its calls are traced, none where it is None."""

    name: str
    arguments: tuple[str, ...] = ()
    share: float | None = None

    def environment(self, receiver: str) -> Mapping[str, str]:
        if self.share is None:
            return {}
        return {
            "OTEL_EXPORTER_OTLP_ENDPOINT": receiver,
            "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf",
            "OTEL_TRACES_SAMPLER": "parentbased_traceidratio",
            "OTEL_TRACES_SAMPLER_ARG": str(self.share),
        }


KINDS = (
    Kind(BASE, ("--telemetry=off",)),
    Kind("off, again", ("--telemetry=off",)),
    Kind("on (default)"),
    Kind("on, an access log", ("--access-log=true",)),
    Kind("on, OTLP, 0% traced", share=0.0),
    Kind("on, OTLP, 1% traced", share=0.01),
    Kind("on, OTLP, all traced", share=1.0),
)


@dataclass
class Server:
    """A running server, and the seconds of processor time for a request in each of its turns."""

    kind: Kind
    process: subprocess.Popen[str]
    address: str
    costs: list[float] = field(default_factory=list)

    def processor_seconds(self) -> float:
        """What its threads have run for; those that have ended are not among them."""
        total = 0
        for thread in Path(f"/proc/{self.process.pid}/task").iterdir():
            try:
                total += int((thread / "schedstat").read_text().split()[0])
            except OSError:  # it has just ended
                continue
        return total / 1e9


def write_model(path: Path) -> None:
    """y = x + x, (batch, WIDTH)."""
    dims = ("batch", WIDTH)
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        [helper.make_node("Add", ["x", "x"], ["y"])],
        "small",
        [value("x", TensorProto.FLOAT, dims)],
        [value("y", TensorProto.FLOAT, dims)],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    onnx.save(model, path)


def request() -> Prepared:
    message = pb.ModelInferRequest(model_name="small")
    message.inputs.add(name="x", datatype="FP32", shape=(1, WIDTH))
    message.raw_input_contents.append(np.ones(WIDTH, np.float32).tobytes())
    return Prepared(METHOD, message.SerializeToString())


@contextmanager
def receiver() -> Iterator[str]:
    """An address where OTLP is taken and forgotten."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


@contextmanager
def serving(kind: Kind, model: Path, receiver_: str) -> Iterator[Server]:
    command = [sys.executable, "-m", "headrace.server.cli", "serve", str(model)]
    process = subprocess.Popen(
        [*command, "--grpc-port=0", "--http-port=0", *kind.arguments],
        env={**os.environ, **kind.environment(receiver_)},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        assert process.stdout is not None
        found = re.search(r"gRPC on (\S+)", process.stdout.readline())
        if found is None:
            raise RuntimeError(f"the server that is {kind.name} did not start")
        yield Server(kind, process, found[1])
    finally:
        process.terminate()
        process.wait(30)


async def turn(transport: Lean, requests: int, at_once: int) -> None:
    """Sends `requests`, `at_once` in flight, and waits for their answers."""
    prepared = request()
    ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    left, waiting = requests, 0

    def done(status: str) -> None:
        nonlocal waiting
        waiting -= 1
        if status != OK:
            if not ended.done():
                ended.set_exception(RuntimeError(f"a request ended with {status}"))
        elif left:
            send()
        elif not waiting and not ended.done():
            ended.set_result(None)

    def send() -> None:
        nonlocal left, waiting
        left, waiting = left - 1, waiting + 1
        transport.send(prepared, None, done)

    for _ in range(min(at_once, requests)):
        send()
    await ended


async def measure(servers: list[Server], rounds: int, requests: int, at_once: int) -> None:
    transports = [Lean(server.address) for server in servers]
    for transport in transports:
        await transport.open()
        await turn(transport, WARM_UP, at_once)
    for number in range(rounds):
        # Each in another place of each round: what the machine does meanwhile hits all alike.
        for place in range(len(servers)):
            index = (place + number) % len(servers)
            before = servers[index].processor_seconds()
            await turn(transports[index], requests, at_once)
            seconds = servers[index].processor_seconds() - before
            servers[index].costs.append(seconds / requests)
    for transport in transports:
        await transport.close()


def show(servers: list[Server]) -> None:
    base = next(server for server in servers if server.kind.name == BASE)
    table = Table("telemetry", "us of processor per request", f"over {BASE}", "quartiles")
    for server in servers:
        pairs = zip(server.costs, base.costs, strict=True)
        ratios = sorted(cost / reference for cost, reference in pairs)
        table.add_row(
            server.kind.name,
            f"{statistics.median(server.costs) * 1e6:.1f}",
            f"{statistics.median(ratios):.3f}",
            "{:.3f} {:.3f}".format(*statistics.quantiles(ratios)[::2]),
        )
    Console().print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--requests", type=int, default=500, help="of each turn (default 500)")
    parser.add_argument("--at-once", type=int, default=16, help="in flight (default 16)")
    parser.add_argument("--only", nargs="*", help="of the kinds, beside off")
    given = parser.parse_args()
    kinds = [k for k in KINDS if not given.only or k.name == BASE or k.name in given.only]
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        write_model(folder / "small.onnx")
        address = stack.enter_context(receiver())
        servers = [
            stack.enter_context(serving(kind, folder / "small.onnx", address)) for kind in kinds
        ]
        asyncio.run(measure(servers, given.rounds, given.requests, given.at_once))
        show(servers)


if __name__ == "__main__":
    main()
