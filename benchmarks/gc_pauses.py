"""How long Python's garbage collector stops a server under load.

`headrace serve` runs in a process that notes each collection (gc.callbacks): its generation and how
long it took, during which no other Python code ran. A closed loop loads it, on each RPC engine in
turn; what was collected outside the measured stretch is left out. `--no-freeze` shows what the
collector would do to a server that keeps the objects of its start among those it looks at.
"""

from __future__ import annotations

import argparse
import gc
import json
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from headrace.bench import models
from headrace.bench.results import Measurement
from headrace.bench.run import measure
from headrace.bench.spec import ClosedLoad, Job, RequestSpec, Target

ENGINES = ("grpcio", "native")
_SERVE = "--serve"  # the first argument of the process that serves


@dataclass(frozen=True)
class Pause:
    """One collection: seconds of the monotonic clock at which it began, and how long it took."""

    began: float
    seconds: float
    generation: int
    collected: int


class Notes:
    """Notes the collections of this process."""

    def __init__(self) -> None:
        self.pauses: list[tuple[float, float, int, int]] = []
        self._began = 0.0

    def __call__(self, phase: str, info: dict[str, int]) -> None:
        if phase == "start":
            self._began = time.monotonic()
            return
        took = time.monotonic() - self._began
        self.pauses.append((self._began, took, info["generation"], info["collected"]))


def serve(notes_file: Path, freeze: bool, arguments: list[str]) -> int:
    """`headrace serve` with `arguments`; what was noted is written at its end."""
    from headrace.server.cli import main as headrace

    notes = Notes()
    gc.callbacks.append(notes)
    if not freeze:
        gc.freeze = lambda: None
    try:
        return headrace(["serve", *arguments])
    finally:
        gc.callbacks.remove(notes)
        notes_file.write_text(json.dumps(notes.pauses))


@contextmanager
def serving(engine: str, model: Path, notes_file: Path, *, freeze: bool) -> Iterator[Target]:
    command = [sys.executable, __file__, _SERVE, str(notes_file), str(int(freeze)), str(model)]
    process = subprocess.Popen(
        [*command, "--grpc-port=0", "--http-port=0", f"--rpc-engine={engine}"],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        assert process.stdout is not None
        found = re.search(r"gRPC on (\S+)", process.stdout.readline())
        if found is None:
            raise SystemExit(f"the server on {engine} did not start")
        yield Target(name=engine, address=found[1], pid=process.pid)
    finally:
        process.terminate()
        process.wait(60)


def run(
    engine: str, model: models.Model, given: argparse.Namespace
) -> tuple[Measurement, list[Pause]]:
    with tempfile.TemporaryDirectory() as folder:
        notes_file = Path(folder, "pauses.json")
        with serving(engine, model.path, notes_file, freeze=given.freeze) as target:
            request = RequestSpec.model_validate({"model": model.name, "shapes": given.shape})
            load = ClosedLoad(callers=given.callers)
            job = Job(target=target, load=load, requests=(request,), duration=given.seconds)
            found = measure(job.model_copy(update={"warm_up": 1.0}))
            ended = time.monotonic()
        pauses = [Pause(*each) for each in json.loads(notes_file.read_text())]
    # The measured stretch is the last; what followed it took far less than the warm-up before.
    return found, [each for each in pauses if ended - given.seconds - 1.0 <= each.began <= ended]


def show(results: dict[str, tuple[Measurement, list[Pause]]], seconds: float) -> None:
    head = ("engine", "requests/s", "generation", "pauses", "median ms", "longest ms")
    table = Table(*head, "of the time", "collected")
    for engine, (found, pauses) in results.items():
        for generation in range(3):
            took = [each.seconds for each in pauses if each.generation == generation]
            row = [engine if generation == 0 else "", "", str(generation), str(len(took))]
            if generation == 0:
                row[1] = f"{found.throughput:.0f}"
            if took:
                row += [f"{statistics.median(took) * 1e3:.2f}", f"{max(took) * 1e3:.2f}"]
                row += [f"{sum(took) / (seconds + 1.0):.2%}"]
                row += [str(sum(e.collected for e in pauses if e.generation == generation))]
            table.add_row(*row)
    Console(width=100).print(table)


def main() -> int:
    if sys.argv[1:2] == [_SERVE]:
        notes_file, freeze, *arguments = sys.argv[2:]
        return serve(Path(notes_file), bool(int(freeze)), arguments)
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--callers", type=int, default=32)
    parser.add_argument("--seconds", type=float, default=5.0, help="(default 5)")
    parser.add_argument("--engines", nargs="+", choices=ENGINES, default=ENGINES)
    parser.add_argument("--no-freeze", dest="freeze", action="store_false")
    given: Any = parser.parse_args()
    model = models.model("tiny")
    given.shape = {"x": [1, 16]}
    results = {engine: run(engine, model, given) for engine in given.engines}
    show(results, given.seconds)
    return 0


if __name__ == "__main__":
    sys.exit(main())
