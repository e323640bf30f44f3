"""ONNX Runtime's own limit: the same session options and inputs, and no server.

Ways to run a session, each with as many threads as there are batches in flight:

run       `run` with NumPy arrays: inputs go to the device and outputs come back at each call. What
          a server can reach whose executor does just that.
bound     IO binding: inputs are copied to the device by an OrtValue, outputs come back into memory
          of ONNX Runtime's.
resident  IO binding with inputs and outputs that stay on the device: no copies, the limit of the
          device itself.
graph     resident, replayed as a CUDA graph; one thread, and a size of batch for each session.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

Provider = Literal["cpu", "cuda"]
Way = Literal["run", "bound", "resident", "graph"]
Feeds = dict[str, npt.NDArray[Any]]

WARM_UP = 5


@dataclass(frozen=True)
class Rate:
    """The most rows per second of one way, and the batch and threads that gave it."""

    way: Way
    rows: int
    threads: int
    rate: float


def open_session(model: Path, provider: Provider, *, graph: bool = False) -> ort.InferenceSession:
    """As the server opens it, except that a lone session on the CPU takes one thread here too."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if provider == "cpu":
        return ort.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
    ort.preload_dlls()
    cuda = {
        "arena_extend_strategy": "kSameAsRequested",
        "cudnn_conv_algo_search": "HEURISTIC",
        "enable_cuda_graph": "1" if graph else "0",
    }
    session = ort.InferenceSession(
        str(model), options, providers=[("CUDAExecutionProvider", cuda), "CPUExecutionProvider"]
    )
    if "CUDAExecutionProvider" not in session.get_providers():
        raise SystemExit("ONNX Runtime could not start the CUDA execution provider")
    return session


def runner(session: ort.InferenceSession, way: Way, feeds: Feeds, provider: Provider) -> Any:
    """What one thread calls again and again. The bound memory is this runner's alone."""
    if way == "run":
        return lambda: session.run(None, feeds)
    binding = session.io_binding()
    values = {n: ort.OrtValue.ortvalue_from_numpy(a, provider, 0) for n, a in feeds.items()}
    for name, value in values.items():
        binding.bind_ortvalue_input(name, value)
    if way == "graph":  # a replay writes where the capture wrote: the memory must be given
        rows = len(next(iter(feeds.values())))
        for output in session.get_outputs():  # all of our models: FP32 [batch, known]
            shape = (rows, *output.shape[1:])
            value = ort.OrtValue.ortvalue_from_shape_and_type(shape, np.float32, provider, 0)
            binding.bind_ortvalue_output(output.name, value)
    else:
        for output in session.get_outputs():
            binding.bind_output(output.name, provider if way == "resident" else "cpu", 0)

    def call() -> None:
        if way == "bound":
            for name, array in feeds.items():
                values[name].update_inplace(array)
        session.run_with_iobinding(binding)
        binding.synchronize_outputs()

    return call


def rate(calls: Sequence[Callable[[], Any]], rows: int, seconds: float) -> float:
    """Rows per second of threads that each repeat one of `calls`, a batch of `rows`."""
    counts = [0] * len(calls)
    until = 0.0
    together = threading.Barrier(len(calls) + 1)

    def work(number: int) -> None:
        for _ in range(WARM_UP):
            calls[number]()
        together.wait()
        while time.perf_counter() < until:
            calls[number]()
            counts[number] += 1

    threads = [threading.Thread(target=work, args=(number,)) for number in range(len(calls))]
    for thread in threads:
        thread.start()
    until = float("inf")
    together.wait()
    began = time.perf_counter()
    until = began + seconds
    for thread in threads:
        thread.join()
    return rows * sum(counts) / (time.perf_counter() - began)


def best(
    session: ort.InferenceSession,
    way: Way,
    feeds_of: Callable[[int], Feeds],
    sizes: Sequence[int],
    provider: Provider,
    threads: int,
    seconds: float,
) -> Rate:
    """The best of batches of `sizes`, each measured for `seconds`."""
    found = []
    for rows in sizes:
        calls = [runner(session, way, feeds_of(rows), provider) for _ in range(threads)]
        found.append(Rate(way, rows, threads, rate(calls, rows, seconds)))
    return max(found, key=lambda each: each.rate)


def latency(session: ort.InferenceSession, feeds: Feeds, seconds: float) -> float:
    """The median seconds of a `run` of one row by one thread."""
    for _ in range(WARM_UP):
        session.run(None, feeds)
    took: list[float] = []
    until = time.perf_counter() + seconds
    while time.perf_counter() < until or len(took) < WARM_UP:
        began = time.perf_counter()
        session.run(None, feeds)
        took.append(time.perf_counter() - began)
    return median(took)
