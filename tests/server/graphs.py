"""Tiny ONNX models, made on the spot."""

from __future__ import annotations

import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

Dims = Sequence[int | str]

ELEMENT = {
    "BOOL": TensorProto.BOOL,
    "UINT8": TensorProto.UINT8,
    "UINT16": TensorProto.UINT16,
    "UINT32": TensorProto.UINT32,
    "UINT64": TensorProto.UINT64,
    "INT8": TensorProto.INT8,
    "INT16": TensorProto.INT16,
    "INT32": TensorProto.INT32,
    "INT64": TensorProto.INT64,
    "FP16": TensorProto.FLOAT16,
    "FP32": TensorProto.FLOAT,
    "FP64": TensorProto.DOUBLE,
    "BYTES": TensorProto.STRING,
    "BF16": TensorProto.BFLOAT16,
}


def tensor(name: str, dims: Dims | None, datatype: str = "FP32") -> Any:
    return helper.make_tensor_value_info(name, ELEMENT[datatype], dims)


def build(
    nodes: Sequence[Any],
    inputs: Sequence[Any],
    outputs: Sequence[Any],
    constants: dict[str, Any] | None = None,
) -> Any:
    made = [numpy_helper.from_array(np.asarray(v), k) for k, v in (constants or {}).items()]
    graph = helper.make_graph(list(nodes), "tiny", list(inputs), list(outputs), made)
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8)


def save(model: Any, path: pathlib.Path) -> pathlib.Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(model, str(path))
    return path


def identity(dims: Dims = ("batch", 3), datatype: str = "FP32") -> Any:
    """y = x."""
    node = helper.make_node("Identity", ["x"], ["y"])
    return build([node], [tensor("x", dims, datatype)], [tensor("y", dims, datatype)])


def plus(constant: float, dims: Dims = ("batch", 3)) -> Any:
    """y = x + `constant`."""
    node = helper.make_node("Add", ["x", "c"], ["y"])
    value = np.array(constant, np.float32)
    return build([node], [tensor("x", dims)], [tensor("y", dims)], {"c": value})


def two_by_two() -> Any:
    """total = a + b, difference = a - b."""
    nodes = [
        helper.make_node("Add", ["a", "b"], ["total"]),
        helper.make_node("Sub", ["a", "b"], ["difference"]),
    ]
    dims = ("batch", 2)
    inputs = [tensor("a", dims), tensor("b", dims)]
    return build(nodes, inputs, [tensor("total", dims), tensor("difference", dims)])


def scaled() -> Any:
    """y = x * scale, where scale is a constant of the graph that a caller may replace."""
    node = helper.make_node("Mul", ["x", "scale"], ["y"])
    inputs = [tensor("x", ("batch", 2)), tensor("scale", (1,))]
    constants = {"scale": np.array([2.0], np.float32)}
    return build([node], inputs, [tensor("y", ("batch", 2))], constants)


def centred() -> Any:
    """y = x - mean over the rows: mixes rows, though its shapes follow the batch."""
    nodes = [
        helper.make_node("ReduceMean", ["x"], ["m"], axes=[0], keepdims=1),
        helper.make_node("Sub", ["x", "m"], ["y"]),
    ]
    return build(nodes, [tensor("x", ("batch", 3))], [tensor("y", ("batch", 3))])


def quantized() -> Any:
    """One quantisation scale over all rows: a row's answer depends on its neighbours."""
    nodes = [
        helper.make_node("DynamicQuantizeLinear", ["x"], ["q", "s", "z"]),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["y"]),
    ]
    return build(nodes, [tensor("x", ("batch", 8))], [tensor("y", ("batch", 8))])


def totals() -> Any:
    """y sums over the rows: its one dimension is open, and is not the batch."""
    node = helper.make_node("ReduceSum", ["x", "axes"], ["y"], keepdims=0)
    constants = {"axes": np.array([0], np.int64)}
    return build([node], [tensor("x", ("batch", "n"))], [tensor("y", ("n",))], constants)


def slow() -> Any:
    """Millions of sines of x: seconds, time enough to be told to stop."""
    turn = helper.make_graph(
        [helper.make_node("Identity", ["go"], ["on"]), helper.make_node("Sin", ["v"], ["w"])],
        "turn",
        [tensor("i", (), "INT64"), tensor("go", (), "BOOL"), tensor("v", None)],
        [tensor("on", (), "BOOL"), tensor("w", None)],
    )
    loop = helper.make_node("Loop", ["turns", "true", "x"], ["y"], body=turn)
    constants = {"turns": np.array(5_000_000, np.int64), "true": np.array(True)}
    return build([loop], [tensor("x", ("batch", 3))], [tensor("y", ("batch", 3))], constants)


def reshaping(shape: Sequence[int]) -> Any:
    """y = x reshaped: fails at run time when the elements do not fit."""
    node = helper.make_node("Reshape", ["x", "shape"], ["y"])
    constants = {"shape": np.array(shape, np.int64)}
    dims = ("batch", *[f"d{i}" for i in range(len(shape) - 1)])
    return build([node], [tensor("x", ("batch", "n"))], [tensor("y", dims)], constants)
