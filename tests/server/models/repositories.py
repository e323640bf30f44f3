"""A repository on disk to change, and a registry over it to watch."""

from __future__ import annotations

import asyncio
import pathlib
import threading
from typing import Any

import numpy as np

from headrace.server.contract import InputTensor
from headrace.server.exchange import InferenceRequest
from headrace.server.executors.running import run_session
from headrace.server.inference import infer
from headrace.server.models.registry import ModelListener, Registry
from server import graphs

ALL = "version_policy { all {} }"


class Listener(ModelListener):
    def __init__(self) -> None:
        self.told: list[tuple[str, bool]] = []

    async def set_model(self, name: str, ready: bool) -> None:
        self.told.append((name, ready))


class Gate:
    """Runs on executors wait while it is closed. Probes at load do not pass it."""

    def __init__(self) -> None:
        self._open = threading.Event()
        self._open.set()

    def close(self) -> None:
        self._open.clear()

    def open(self) -> None:
        self._open.set()

    def run(self, *arguments: Any) -> Any:
        self._open.wait()
        return run_session(*arguments)


def put(repository: pathlib.Path, version: int, constant: float, name: str = "m") -> None:
    graphs.save(graphs.plus(constant), repository / name / str(version) / "model.onnx")


def spoil(repository: pathlib.Path, version: int, name: str = "m") -> None:
    path = repository / name / str(version) / "model.onnx"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"not a model")


def configure(repository: pathlib.Path, text: str, name: str = "m") -> None:
    (repository / name / "config.pbtxt").write_text(text)


def told(registry: Registry) -> list[tuple[str, bool]]:
    assert isinstance(registry.listener, Listener)
    return registry.listener.told


def index(registry: Registry) -> dict[tuple[str, str], tuple[str, str]]:
    return {(e.name, e.version): (e.state, e.reason) for e in registry.index()}


async def ask(registry: Registry, version: str = "") -> float:
    """What the model makes of 0: the constant that it adds."""
    x = InputTensor("x", "FP32", np.zeros((1, 3), np.float32))
    result = await infer(registry, InferenceRequest("m", version, [x], 0.0))
    return float(result.outputs[0][1][0, 0])


async def turns() -> None:
    """Lets what is ready run."""
    for _ in range(10):
        await asyncio.sleep(0)
