"""The server on a GPU against ONNX Runtime's own limit there: throughput, and one caller's latency.

    cd benchmarks && python -m gpu                                  # needs a GPU
    cd benchmarks && python -m gpu --provider cpu --size tiny       # shows that it works

For each model ONNX Runtime is called directly, in the ways of `limit.py`; then `headrace serve` is
started on the same file and loaded by closed loops. What it reaches is told as a share of each way
and of the best. The goals: 95 % of the limit at the best number of callers, and one caller's median
within 10 % of a bare session's.
"""

from __future__ import annotations

import argparse
import json
import re
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from statistics import fmean

import numpy as np
import onnxruntime as ort
from rich.console import Console
from rich.table import Table

from gpu import limit
from gpu.limit import Feeds, Provider, Rate
from gpu.models import MAKERS, VOCABULARY
from headrace.bench.machine import machine
from headrace.bench.run import measure
from headrace.bench.spec import ClosedLoad, Job, RequestSpec, Target

GOAL, LATENCY_GOAL = 0.95, 1.10
LENGTHS = (8, 16, 32, 64, 128)
"""Tokens of a text; all are as frequent."""


@dataclass
class Found:
    """Rows per second and seconds. `served` has rows per second by callers."""

    model: str
    limits: list[Rate]
    bare_seconds: float
    served: dict[int, float] = field(default_factory=dict)
    served_seconds: float = 0.0

    def of(self, *ways: str) -> float:
        """The best rate of these ways; of all where none is named."""
        return max(each.rate for each in self.limits if not ways or each.way in ways)

    @property
    def best(self) -> float:
        return max(self.served.values())


def texts(rng: np.random.Generator) -> Feeds:
    """One text, of any of LENGTHS. The load test draws its inputs here as well."""
    return text(int(rng.choice(LENGTHS)), rng, 1)


def text(length: int, rng: np.random.Generator, rows: int) -> Feeds:
    ids = rng.integers(1000, VOCABULARY, (rows, length))
    return {"input_ids": ids, "attention_mask": np.ones((rows, length), np.int64)}


def feeds_of(session: ort.InferenceSession, model: str) -> list[Callable[[int], Feeds]]:
    """What makes inputs of so many rows, for each kind of request that is as frequent as others."""
    rng = np.random.default_rng(0)
    if model == "transformer":
        return [partial(text, length, rng) for length in LENGTHS]
    (x,) = session.get_inputs()
    return [lambda rows: {"x": rng.standard_normal((rows, *x.shape[1:]), np.float32)}]


def limits(path: Path, given: argparse.Namespace) -> tuple[list[Rate], float]:
    """The limit of each way, and the latency of a bare session. Of requests of several kinds, the
    rate is that of each kind by itself, weighted by the time it takes."""
    provider: Provider = given.provider
    session = limit.open_session(path, provider)
    kinds = feeds_of(session, path.stem)
    ways: list[limit.Way] = ["run", "bound"] if provider == "cpu" else ["run", "bound", "resident"]
    found = []
    for way in ways:
        for threads in given.threads:
            rates = [
                limit.best(session, way, kind, given.sizes, provider, threads, given.seconds)
                for kind in kinds
            ]
            found.append(together(rates))
    if provider == "cuda":
        found += [together(_replayed(path, kinds, given))]
    bare = fmean(limit.latency(session, kind(1), given.seconds) for kind in kinds)
    return found, bare


def _replayed(
    path: Path, kinds: Sequence[Callable[[int], Feeds]], given: argparse.Namespace
) -> list[Rate]:
    """By CUDA graphs: a session of its own for each shape, since a graph holds one."""
    best = []
    for kind in kinds:
        rates = []
        for rows in given.sizes:
            session = limit.open_session(path, "cuda", graph=True)
            rates.append(limit.best(session, "graph", kind, [rows], "cuda", 1, given.seconds))
        best.append(max(rates, key=lambda each: each.rate))
    return best


def together(rates: Sequence[Rate]) -> Rate:
    """Of kinds that are as frequent: the harmonic mean. The rows are the largest batch's."""
    rate = len(rates) / sum(1 / each.rate for each in rates)
    return Rate(rates[0].way, max(each.rows for each in rates), rates[0].threads, rate)


@contextmanager
def serving(path: Path, given: argparse.Namespace) -> Iterator[Target]:
    """`headrace serve` with the model, and what --serve adds."""
    command = [sys.executable, "-m", "headrace.server.cli", "serve", str(path)]
    command += [f"--provider={given.provider}", "--grpc-port=0", "--http-port=0"]
    process = subprocess.Popen(
        [*command, *shlex.split(given.serve)], stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        found = re.search(r"gRPC on (\S+)", process.stdout.readline())
        if found is None:
            raise SystemExit("the server did not start; its reasons are above")
        yield Target(name="headrace", address=found[1], pid=process.pid)
    finally:
        process.terminate()
        process.wait(60)


def load(
    target: Target, model: str, callers: int, given: argparse.Namespace
) -> tuple[float, float]:
    """Rows per second and the median seconds, by so many callers in a closed loop."""
    inputs = "gpu.__main__:texts" if model == "transformer" else "random"
    found = measure(
        Job(
            target=target,
            load=ClosedLoad(callers=callers),
            requests=(RequestSpec(model=model, inputs=inputs),),
            duration=given.seconds * 4,
            warm_up=given.seconds * 2,
            processes=min(given.processes, callers),
        )
    )
    if found.latency is None or found.errors:
        raise SystemExit(f"{model}, {callers} callers: {found.errors or 'nothing was answered'}")
    return found.throughput, found.latency.p50_ms / 1e3


def run(model: str, folder: Path, given: argparse.Namespace) -> Found:
    path = folder / f"{model}.onnx"
    MAKERS[model](path, given.size)
    found = Found(model, *limits(path, given))
    with serving(path, given) as target:
        for callers in given.callers:
            rate, seconds = load(target, model, callers, given)
            found.served[callers] = rate
            if callers == min(given.callers):
                found.served_seconds = seconds
    return found


def show(results: Sequence[Found]) -> None:
    console = Console(width=110)
    table = Table("rows/s", "way", "batch", "threads", "rate", "server at its best", "share")
    for each in results:
        for number, one in enumerate(each.limits):
            name, best = ("", "") if number else (each.model, f"{each.best:.0f}")
            row = (name, one.way, str(one.rows), str(one.threads), f"{one.rate:.0f}", best)
            table.add_row(*row, f"{each.best / one.rate:.2f}")
    console.print(table)
    table = Table("callers", *[str(callers) for callers in results[0].served])
    for each in results:
        table.add_row(each.model, *[f"{rate:.0f}" for rate in each.served.values()])
    console.print(table)
    for each in results:
        share, slower = each.best / each.of(), each.served_seconds / each.bare_seconds
        console.print(
            f"{each.model}: {share:.1%} of the limit ({_judged(share >= GOAL)} {GOAL:.0%}); "
            "one caller "
            f"{each.served_seconds * 1e3:.2f} ms, a bare session {each.bare_seconds * 1e3:.2f} ms: "
            f"{slower:.2f} times ({_judged(slower <= LATENCY_GOAL)} {LATENCY_GOAL:.2f})"
        )


def _judged(reached: bool) -> str:
    return "reaches" if reached else "misses"


def written(results: Sequence[Found], given: Mapping[str, object]) -> str:
    """Everything, as JSON."""
    about = {
        "arguments": {name: str(value) for name, value in given.items()},
        "machine": machine(),
        "onnxruntime": ort.__version__,
        "providers": ort.get_available_providers(),
    }
    return json.dumps({**about, "found": [asdict(each) for each in results]}, indent=1)


def numbers(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


def main() -> int:
    parser = argparse.ArgumentParser(prog="gpu", description=__doc__.splitlines()[0])
    parser.add_argument("--provider", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--size", choices=("full", "tiny"), default="full")
    parser.add_argument("--models", nargs="+", choices=list(MAKERS), default=list(MAKERS))
    parser.add_argument("--sizes", type=numbers, default=[1, 8, 32, 64, 128], help="of batches")
    parser.add_argument("--threads", type=numbers, default=[1, 2], help="batches in flight")
    parser.add_argument("--callers", type=numbers, default=[1, 32, 128, 512])
    parser.add_argument("--processes", type=int, default=4, help="that send (default 4)")
    parser.add_argument("--seconds", type=float, default=1.0, help="of each direct measurement")
    parser.add_argument("--serve", default="", help="more options of headrace serve, in one word")
    parser.add_argument("--out", type=Path, help="a file for everything, as JSON")
    given = parser.parse_args()
    print(f"ONNX Runtime {ort.__version__}: {', '.join(ort.get_available_providers())}")
    if given.provider == "cuda" and "CUDAExecutionProvider" not in ort.get_available_providers():
        raise SystemExit("no CUDA execution provider here: see README.md, or --provider cpu")
    with tempfile.TemporaryDirectory() as folder:
        results = [run(model, Path(folder), given) for model in given.models]
    show(results)
    if given.out is not None:
        given.out.write_text(written(results, vars(given)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
