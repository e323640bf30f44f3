"""The server under test: what it serves, and its process."""

from __future__ import annotations

import contextlib
import os
import pathlib
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import psutil
from onnx import TensorProto, helper, numpy_helper

# Floats of a row of `echo`: answers that fill a slow reader's windows.
ECHO_WIDTH = 4096
_SIZE = 256
_FAULTY = pathlib.Path(__file__).with_name("faulty.py")
_CONFIG = 'instances = 2\nintra_op_threads = 1\npadding = "off"\n'


def work(steps: int) -> onnx.ModelProto:
    """y = 2x + 1, (batch, 1), by way of `steps` products with a permutation: exact, and slow."""
    info, make = helper.make_tensor_value_info, helper.make_node
    state = info("state", TensorProto.FLOAT, ("batch", _SIZE))
    body = helper.make_graph(
        [make("MatMul", ["state", "shift"], ["next"]), make("Identity", ["go"], ["go_on"])],
        "step",
        [info("number", TensorProto.INT64, ()), info("go", TensorProto.BOOL, ()), state],
        [info("go_on", TensorProto.BOOL, ()), info("next", TensorProto.FLOAT, ("batch", _SIZE))],
    )
    nodes = [
        make("MatMul", ["x", "first"], ["start"]),
        make("Loop", ["steps", "", "start"], ["end"], body=body),
        make("ReduceSum", ["end", "inner"], ["back"], keepdims=1),
        make("Mul", ["back", "two"], ["twice"]),
        make("Add", ["twice", "one"], ["y"]),
    ]
    constants = {
        "first": np.eye(1, _SIZE, dtype=np.float32),
        "shift": np.roll(np.eye(_SIZE, dtype=np.float32), 1, axis=1),
        "steps": np.array(steps, np.int64),
        "inner": np.array([1], np.int64),
        "two": np.array(2, np.float32),
        "one": np.array(1, np.float32),
    }
    return _model(nodes, 1, constants)


def echo() -> onnx.ModelProto:
    """y = x + x, (batch, ECHO_WIDTH)."""
    return _model([helper.make_node("Add", ["x", "x"], ["y"])], ECHO_WIDTH, {})


def _model(nodes: list[Any], width: int, constants: Mapping[str, Any]) -> onnx.ModelProto:
    info, dims = helper.make_tensor_value_info, ("batch", width)
    graph = helper.make_graph(
        nodes,
        "soak",
        [info("x", TensorProto.FLOAT, dims)],
        [info("y", TensorProto.FLOAT, dims)],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)


def steps_for(seconds: float) -> int:
    """How many steps of `work` take so long for one row on one thread of this machine."""
    settings = ort.SessionOptions()
    settings.intra_op_num_threads = 1
    session = ort.InferenceSession(
        work(200).SerializeToString(), settings, providers=["CPUExecutionProvider"]
    )
    x, taken = np.ones((1, 1), np.float32), []
    for _ in range(7):
        began = time.perf_counter()
        session.run(None, {"x": x})
        taken.append(time.perf_counter() - began)
    return max(1, round(200 * seconds / min(taken)))


def write_repository(folder: pathlib.Path, steps: int) -> None:
    """The models `work` and `echo`, laid out so that no load measures anew how many executors."""
    for name, model in (("work", work(steps)), ("echo", echo())):
        version = folder / name / "1"
        version.mkdir(parents=True, exist_ok=True)
        onnx.save(model, version / "model.onnx")
        (folder / name / "model.toml").write_text(_CONFIG)


@dataclass
class Server:
    """A running server and where it listens."""

    process: subprocess.Popen[str]
    grpc: str
    http: str

    def resident(self) -> int:
        """Bytes of memory that it holds."""
        return int(psutil.Process(self.process.pid).memory_info().rss)

    def stop(self) -> int:
        """Tells it to. Returns its exit code; raises TimeoutExpired where it does not end."""
        self.process.terminate()
        return self.process.wait(60)


def part_from_callers() -> set[int] | None:
    """Leaves this process, whose threads are the callers, one processor, and returns the others for
    the server: what callers cost must not be taken for what the server does. None, and nothing is
    changed, where there is only one or it cannot be chosen (Linux alone lets us)."""
    if sys.platform != "linux" or len(every := os.sched_getaffinity(0)) < 2:
        return None
    own = max(every)
    os.sched_setaffinity(0, {own})
    return every - {own}


@contextlib.contextmanager
def serving(
    models: pathlib.Path,
    log: pathlib.Path,
    *arguments: str,
    environment: Mapping[str, str] | None = None,
    cpus: set[int] | None = None,
) -> Iterator[Server]:
    """The faulty server on free ports, its log in `log`, killed at the end if it has not ended.
    `cpus`: the processors that it may use, None for all of them."""
    command = [sys.executable, str(_FAULTY), "serve", str(models), *arguments]
    command += ["--grpc-port=0", "--http-port=0", "--cache-dir=off", "--log-format=json"]
    with log.open("w") as stderr:
        process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
            # Output that is not buffered cannot fail at the end: a server must end well without.
            env={**os.environ, "PYTHONUNBUFFERED": "", **(environment or {})},
        )
    if cpus is not None:  # long before it counts them: Python has not begun yet
        os.sched_setaffinity(process.pid, cpus)
    assert process.stdout is not None
    try:
        words = process.stdout.readline().split()
        if "gRPC" not in words:
            raise RuntimeError(f"the server did not start: see {log}")
        yield Server(process, words[words.index("gRPC") + 2], words[words.index("HTTP") + 2])
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
        process.stdout.close()


@contextlib.contextmanager
def jumping_clock(folder: pathlib.Path) -> Iterator[tuple[dict[str, str], pathlib.Path]]:
    """The environment of a process whose wall clock can be moved, and the file that moves it: eight
    bytes, the seconds to add. An empty environment where there is no C compiler."""
    offset, library = folder / "offset", folder / "clock.so"
    offset.write_bytes(bytes(8))
    source = pathlib.Path(__file__).with_name("clock.c")
    command = ["cc", "-shared", "-fPIC", "-O1", "-o", str(library), str(source), "-ldl"]
    try:
        subprocess.run(command, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        yield {}, offset
        return
    yield {"LD_PRELOAD": str(library), "SOAK_CLOCK": str(offset)}, offset
