"""What the programs of all peers share: their arguments, and the ONNX model behind the server.

This runs in the peer's own environment, where there is NumPy and ONNX Runtime, and no Headrace.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnxruntime as ort

Tensors = Mapping[str, Any]  # arrays by name

# The most that a message may have, in bytes, where a server has a lower limit of its own: they are
# 4 to 10 MB.
LARGEST_MESSAGE = 64 << 20

_VARIABLE = "PEER_ARGUMENTS"
_DTYPES = {
    "tensor(bool)": np.bool_,
    "tensor(uint8)": np.uint8,
    "tensor(uint16)": np.uint16,
    "tensor(uint32)": np.uint32,
    "tensor(uint64)": np.uint64,
    "tensor(int8)": np.int8,
    "tensor(int16)": np.int16,
    "tensor(int32)": np.int32,
    "tensor(int64)": np.int64,
    "tensor(float16)": np.float16,
    "tensor(float)": np.float32,
    "tensor(double)": np.float64,
}
_FLOATS = {"float16": "FP16", "float32": "FP32", "float64": "FP64"}
_DATATYPES = {
    name: _FLOATS.get(name, name.upper())
    for name in (np.dtype(dtype).name for dtype in _DTYPES.values())
}


@dataclass(frozen=True)
class Arguments:
    """What a peer is asked to serve, and where. `settings` are those of a configuration in
    peer.toml; `folder` is the peer's to write to."""

    model: str
    name: str
    host: str
    ports: tuple[int, ...]
    folder: str
    settings: Mapping[str, Any]

    @property
    def instances(self) -> int:
        """How many copies of the model run at the same time."""
        return int(self.settings.get("instances", 1))

    @property
    def threads(self) -> int:
        """ONNX Runtime's threads of each copy."""
        return int(self.settings["threads"])

    @property
    def max_batch(self) -> int:
        """The most requests in one run; 1 is no batching."""
        return int(self.settings.get("max_batch", 1))

    @property
    def max_delay(self) -> float:
        """Seconds that the first request of a batch waits for others."""
        return float(self.settings.get("max_delay", 0.0))


def arguments() -> Arguments:
    """The command line's, which `inherited` gives to the processes that this one starts."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", required=True, help="the .onnx file")
    parser.add_argument("--name", required=True, help="what clients call the model")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, action="append", required=True, dest="ports")
    parser.add_argument("--folder", required=True, help="for files of the server's own")
    parser.add_argument("--settings", type=json.loads, default={}, help="a JSON object")
    found = parser.parse_args()
    os.environ[_VARIABLE] = json.dumps(vars(found))
    return inherited()


def inherited() -> Arguments:
    """The arguments of the process that started this one."""
    given = json.loads(os.environ[_VARIABLE])
    return Arguments(**{**given, "ports": tuple(given["ports"])})


@dataclass(frozen=True)
class Tensor:
    """An input or output. Open dimensions are -1."""

    name: str
    dtype: Any
    shape: tuple[int, ...]


class OnnxModel:
    """One session of ONNX Runtime on the CPU, with `threads` threads and all else as it comes."""

    def __init__(self, path: str, threads: int) -> None:
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        self._session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        self.inputs = [_tensor(node) for node in self._session.get_inputs()]
        self.outputs = [_tensor(node) for node in self._session.get_outputs()]
        self._names = [tensor.name for tensor in self.outputs]
        every = [*self.inputs, *self.outputs]
        # A first dimension that is open everywhere is taken for the batch.
        self.batches = all(tensor.shape[:1] == (-1,) for tensor in every)

    def run(self, feeds: Tensors) -> dict[str, Any]:
        """The outputs of one request, or of rows that were put together before."""
        return dict(zip(self._names, self._session.run(None, dict(feeds)), strict=True))

    def run_many(self, requests: Sequence[Tensors]) -> list[dict[str, Any]]:
        """The outputs of each of `requests`, computed in one run."""
        if len(requests) == 1:
            return [self.run(requests[0])]
        if not self.batches:
            raise ValueError("the model has no batch dimension: serve it without batching")
        names = [tensor.name for tensor in self.inputs]
        joined = self.run({name: np.concatenate([r[name] for r in requests]) for name in names})
        ends = np.cumsum([len(request[names[0]]) for request in requests])[:-1]
        parts = {name: np.split(array, ends) for name, array in joined.items()}
        return [{name: parts[name][i] for name in parts} for i in range(len(requests))]


def _tensor(node: Any) -> Tensor:
    shape = tuple(size if isinstance(size, int) else -1 for size in node.shape)
    return Tensor(node.name, _DTYPES[node.type], shape)


def declared(tensors: Iterable[Tensor]) -> list[dict[str, Any]]:
    """Inputs or outputs as the Open Inference Protocol's model metadata has them."""
    return [
        {"name": t.name, "datatype": _DATATYPES[np.dtype(t.dtype).name], "shape": list(t.shape)}
        for t in tensors
    ]
