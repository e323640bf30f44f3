"""Closed loops of callers on a server, and of threads on ONNX Runtime alone."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from headrace.bench.transports import OK, Prepared
from headrace.bench.transports.lean import Lean
from headrace.client import InferOptions
from headrace.client.messages import infer_request

METHOD = "/inference.GRPCInferenceService/ModelInfer"

Latencies = list[float]  # seconds
Make = Callable[[np.random.Generator], npt.NDArray[np.generic]]
CPUS = frozenset(os.sched_getaffinity(0))
LEAD = 0.3  # seconds before answers are counted


@dataclass(frozen=True)
class Subject:
    """A model to be measured. `make` gives the array of one request, of one row."""

    name: str
    path: Path
    input: str
    make: Make


@dataclass(frozen=True)
class Asked:
    """Where callers find a side: gRPC's address, and the model's name there."""

    address: str
    model: str


def bare(subject: Subject, callers: int, seconds: float, cpus: frozenset[int] = CPUS) -> Latencies:
    """What ONNX Runtime alone does in `seconds` on `cpus`: a thread for each caller, but no more
    than there are CPUs; one caller has every CPU for its request, more have one each."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = len(cpus) if callers == 1 else 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = ort.InferenceSession(subject.path, options, providers=["CPUExecutionProvider"])
    feeds = {subject.input: subject.make(np.random.default_rng(0))}
    session.run(None, feeds)
    latencies: Latencies = []
    stop = time.perf_counter() + seconds

    def work() -> None:
        os.sched_setaffinity(0, cpus)  # of this thread
        while (began := time.perf_counter()) < stop:
            session.run(None, feeds)
            ended = time.perf_counter()
            if ended <= stop:
                latencies.append(ended - began)

    threads = [threading.Thread(target=work) for _ in range(min(callers, len(cpus)))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return latencies


async def served(asked: Asked, subject: Subject, callers: int, seconds: float) -> Latencies:
    """Latencies of the requests that `callers` closed-loop callers complete in `seconds`."""
    rng = np.random.default_rng(0)
    messages = [
        infer_request(asked.model, {subject.input: subject.make(rng)}, InferOptions())
        for _ in range(16)
    ]
    requests = [Prepared(METHOD, each.SerializeToString()) for each in messages]
    client = Lean(asked.address)
    await client.open()
    try:
        return await _loops(client, requests, callers, seconds)
    finally:
        await client.close()


async def _loops(
    client: Lean, requests: Sequence[Prepared], callers: int, seconds: float
) -> Latencies:
    latencies: Latencies = []
    running = callers
    ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    start = time.perf_counter() + LEAD
    stop = start + seconds

    def send(index: int) -> None:
        began = time.perf_counter()
        client.send(requests[index % len(requests)], None, partial(answered, index, began))

    def answered(index: int, began: float, status: str) -> None:
        nonlocal running
        now = time.perf_counter()
        if status != OK and not ended.done():
            ended.set_exception(RuntimeError(f"a request ended with {status}"))
        if now <= stop:
            if now > start:
                latencies.append(now - began)
            send(index + 1)
            return
        running -= 1
        if not running and not ended.done():
            ended.set_result(None)

    for index in range(callers):
        send(index)
    await ended
    return latencies
