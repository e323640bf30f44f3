"""`headrace demo`: serves a real model, calls it from many callers at once, shows how it batched.

The model is Magika's (Apache-2.0, carried by its package): it tells a file's type from its content.
Magika itself runs unchanged, once with its own ONNX Runtime session and once with a session that
sends its tensors to a Headrace server; both must say the same of every file.
"""

from __future__ import annotations

import contextlib
import os
import pathlib
import shutil
import signal
import statistics
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from headrace.client import Client, InferResult

MODEL = "magika"
_CLIENT_DEADLINE = 30.0
_MOST_ENTRIES_WALKED = 20_000
_SHOWN_FILES = 12


@dataclass(frozen=True, slots=True)
class Identified:
    """What Magika said of one file: the label, and the score from 0 to 1."""

    path: pathlib.Path
    label: str
    score: float


class RemoteSession:
    """Stands in for Magika's ONNX Runtime session: the run happens on a Headrace server."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self.answers: list[InferResult] = []

    def run(self, outputs: Sequence[str], feeds: dict[str, Any]) -> list[Any]:
        inputs = {name: np.asarray(rows, np.int32) for name, rows in feeds.items()}
        result = self._client.infer(
            MODEL,
            inputs,
            outputs=outputs,
            deadline=_CLIENT_DEADLINE,
            parameters={"headrace_explain": True},
        )
        self.answers.append(result)
        return [result[name] for name in outputs]


def main(files: int, callers: int) -> int:
    """Runs the demo and returns its exit code: 0 when every answer agrees."""
    console = Console()
    try:
        from magika import Magika
    except ModuleNotFoundError:
        missing = "headrace demo: install its model: pip install 'headrace[demo]'"
        Console(stderr=True).print(missing, markup=False)
        return 1
    paths = collect(files)
    reference = Magika()
    remote = Magika()
    with serving(_model_path()) as address, Client(address) as client:
        console.print(f"Magika's model is served on {address}")
        session = RemoteSession(client)
        remote._onnx_session = session  # noqa: SLF001 (Magika has no public way to replace it)
        began = time.monotonic()
        served = _identify(remote, paths, callers, console, f"{callers} callers, through Headrace")
        seconds = time.monotonic() - began
        batches = client.model_statistics(MODEL)[0]
    local = _identify(reference, paths, 1, console, "Magika itself, for comparison")
    agreeing = sum(a.label == b.label for a, b in zip(served, local, strict=True))
    apart = max(abs(a.score - b.score) for a, b in zip(served, local, strict=True))
    _show_files(console, served)
    _show_batches(console, batches, session.answers)
    console.print(
        f"[bold]{len(served)} files[/] by {callers} callers in {seconds:.1f} s "
        f"({len(served) / seconds:.0f}/s); {len(session.answers)} needed the model, the others "
        "Magika knows by rule"
    )
    # ONNX Runtime multiplies a single row by another kernel than several, so scores may differ in
    # their last digits between a row alone (as the library runs it) and a row in a batch.
    console.print(
        f"[bold]{agreeing} of {len(served)}[/] agree with the magika library itself "
        f"(scores within {apart:.4f})"
    )
    return 0 if agreeing == len(served) else 1


def _model_path() -> pathlib.Path:
    import magika

    found = pathlib.Path(magika.__file__).parent.glob("models/*/model.onnx")
    return sorted(found)[-1]


@contextlib.contextmanager
def serving(model: pathlib.Path) -> Iterator[str]:
    """A Headrace server of `model`, in a process of its own; gives its gRPC address."""
    with tempfile.TemporaryDirectory(prefix="headrace-demo-") as folder:
        version = pathlib.Path(folder) / MODEL / "1"
        version.mkdir(parents=True)
        shutil.copyfile(model, version / "model.onnx")
        command = [sys.executable, "-m", "headrace.server.cli", "serve", folder]
        command += ["--grpc-port", "0", "--http-port", "0", "--log-level", "warning"]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        try:
            words = process.stdout.readline().split()
            if not words:
                raise RuntimeError(f"the server did not start: exit code {process.wait()}")
            yield words[words.index("gRPC") + 2]
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait()
            process.stdout.close()


def collect(count: int) -> list[pathlib.Path]:
    """Real files found on this machine, of as many kinds as there are, in a stable order."""
    roots = [
        sysconfig.get_path("stdlib"),
        str(pathlib.Path.cwd()),
        sysconfig.get_path("purelib"),
        "/usr/share/doc",
        "/usr/share/icons",
        "/usr/share/perl",
    ]
    kinds: dict[str, list[pathlib.Path]] = defaultdict(list)
    for root in roots:
        for path in _walk(root):
            kinds[path.suffix.lower()].append(path)
    chosen: list[pathlib.Path] = []
    for place in range(count):
        layer = [files[place] for files in kinds.values() if place < len(files)]
        chosen += layer[: count - len(chosen)]
        if len(chosen) == count:
            break
    return chosen


def _walk(root: str) -> Iterator[pathlib.Path]:
    walked = 0
    for folder, names, files in os.walk(root):
        names[:] = sorted(n for n in names if not n.startswith(".") and n != "__pycache__")
        for name in sorted(files):
            walked += 1
            path = pathlib.Path(folder, name)
            if path.is_file() and os.access(path, os.R_OK):
                yield path
        if walked > _MOST_ENTRIES_WALKED:
            return


def _identify(
    magika: Any, paths: Sequence[pathlib.Path], callers: int, console: Console, what: str
) -> list[Identified]:
    """Identifies every file, `callers` at a time; the results are in the order of `paths`."""
    with ThreadPoolExecutor(callers) as pool, Progress(console=console) as progress:
        task = progress.add_task(what, total=len(paths))

        def one(path: pathlib.Path) -> Identified:
            result = magika.identify_path(path)
            progress.advance(task)
            return Identified(path, str(result.output.label), float(result.score))

        return list(pool.map(one, paths))


def _show_files(console: Console, found: Sequence[Identified]) -> None:
    table = Table("file", "label", "score", title="Some of the files")
    seen: Counter[str] = Counter()
    for one in found:
        seen[one.label] += 1
        if seen[one.label] == 1 and len(table.rows) < _SHOWN_FILES:
            table.add_row(one.path.name, one.label, f"{one.score:.3f}")
    console.print(table)
    common = ", ".join(f"{label} {count}" for label, count in seen.most_common(8))
    console.print(f"{len(seen)} types were seen: {common}, ...")


def _show_batches(console: Console, statistics_: Any, answers: Sequence[InferResult]) -> None:
    """How requests were batched, as the server counts it and as each answer explains it."""
    table = Table(title="How the requests were batched")
    for column in ("batch size", "batches", "requests", "compute ms per batch"):
        table.add_column(column, justify="right")
    for size in statistics_.batch_stats:
        count = size.compute_infer.count
        milliseconds = size.compute_infer.ns / count / 1e6
        table.add_row(
            str(size.batch_size), str(count), str(size.batch_size * count), f"{milliseconds:.1f}"
        )
    console.print(table)
    queued = sorted(int(answer.parameters["headrace_queue_us"]) / 1e3 for answer in answers)
    compute = sorted(int(answer.parameters["headrace_compute_us"]) / 1e3 for answer in answers)
    reasons = Counter(str(answer.parameters["headrace_reason"]) for answer in answers)
    console.print(
        f"queue ms: median {statistics.median(queued):.1f}, longest {queued[-1]:.1f};  "
        f"compute ms: median {statistics.median(compute):.1f}, longest {compute[-1]:.1f}"
    )
    told = ", ".join(f"{reason} ({count})" for reason, count in reasons.most_common())
    console.print(f"why their batches closed, by request: {told}")
