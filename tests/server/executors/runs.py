"""Batches for an executor, and its word of how they ended."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import numpy as np
import onnxruntime as ort

from headrace.batcher.executor import Completion
from headrace.batcher.request import Batch, Reason, Request
from headrace.inference.tensors import Array
from headrace.server.executors.onnx import OnnxExecutor
from headrace.server.executors.payload import Key, Payload

Start = Callable[..., OnnxExecutor]


def session_of(model: Any) -> ort.InferenceSession:
    settings = ort.SessionOptions()
    settings.intra_op_num_threads = 1
    settings.log_severity_level = 4
    return ort.InferenceSession(
        model.SerializeToString(), settings, providers=["CPUExecutionProvider"]
    )


def key_of(array: Array, datatype: str = "FP32", outputs: tuple[str, ...] = ("y",)) -> Key:
    return Key((("x", datatype, array.shape[1:]),), outputs, datatype == "BF16")


def batch_of(key: Key, *members: list[Array]) -> Batch:
    requests = [Request(key, Payload(arrays), 0.0, len(arrays[0])) for arrays in members]
    return Batch(key, requests, "e", Reason.FULL, 0.0)


async def run(executor: OnnxExecutor, batch: Batch) -> Completion:
    loop = asyncio.get_running_loop()
    ended: asyncio.Future[Completion] = loop.create_future()

    def done(batch: Batch, completion: Completion, /, *, goes_on: bool = False) -> None:
        loop.call_soon_threadsafe(ended.set_result, completion)

    executor.start(batch, done)
    return await ended


def rows(count: int, value: float, width: int = 3) -> list[Array]:
    return [np.full((count, width), value, np.float32)]


def values(completion: Completion) -> list[Any]:
    assert completion.error is None, completion.error
    return [[array.tolist() for array in result] for result in completion.results]
