"""Tiny ONNX models, each with one trait that a test needs, and the repositories to hold them."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

# One that every ONNX Runtime of the last years reads.
_OPSET, _IR = 20, 9

ONNX_TYPES: dict[str, int] = {
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

Dims = Sequence[int | str]
Value = tuple[str, str, Dims]

# Steps of `lab` that no test waits for: the caller is cancelled, and the run with it.
ENDLESS = 50_000_000
TABLE_SIZE = 10


def build(
    nodes: Sequence[Any],
    inputs: Sequence[Value],
    outputs: Sequence[Value],
    constants: Mapping[str, Any] | None = None,
) -> Any:
    """A checked model. Tensors are (name, datatype, dims), constants NumPy arrays."""
    graph = helper.make_graph(
        list(nodes),
        "test",
        [_info(*value) for value in inputs],
        [_info(*value) for value in outputs],
        [numpy_helper.from_array(value, name) for name, value in (constants or {}).items()],
    )
    opsets = [helper.make_opsetid("", _OPSET)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=_IR)
    onnx.checker.check_model(model)
    return model


def _info(name: str, datatype: str, dims: Dims) -> Any:
    return helper.make_tensor_value_info(name, ONNX_TYPES[datatype], list(dims))


def identity(datatype: str = "FP32", dims: Dims = ("batch", "n")) -> Any:
    """y = x."""
    node = helper.make_node("Identity", ["x"], ["y"])
    return build([node], [("x", datatype, dims)], [("y", datatype, dims)])


def scaled(factor: float = 2.0, dims: Dims = ("batch", "n")) -> Any:
    """y = x * factor."""
    node = helper.make_node("Mul", ["x", "factor"], ["y"])
    constants = {"factor": np.array(factor, np.float32)}
    return build([node], [("x", "FP32", dims)], [("y", "FP32", dims)], constants)


def arithmetic() -> Any:
    """total = a + b, difference = a - b, doubled = a + a: several inputs, several outputs."""
    nodes = [
        helper.make_node("Add", ["a", "b"], ["total"]),
        helper.make_node("Sub", ["a", "b"], ["difference"]),
        helper.make_node("Add", ["a", "a"], ["doubled"]),
    ]
    dims = ("batch", "n")
    names = ("total", "difference", "doubled")
    inputs = [("a", "FP32", dims), ("b", "FP32", dims)]
    return build(nodes, inputs, [(name, "FP32", dims) for name in names])


def optional_input() -> Any:
    """y = x * scale, where the graph has scale = 3 unless the caller says otherwise."""
    node = helper.make_node("Mul", ["x", "scale"], ["y"])
    dims = ("batch", "n")
    inputs: list[Value] = [("x", "FP32", dims), ("scale", "FP32", (1,))]
    constants = {"scale": np.array([3.0], np.float32)}
    return build([node], inputs, [("y", "FP32", dims)], constants)


def mixes_rows() -> Any:
    """y = x minus the mean over all rows: it must not be batched."""
    nodes = [
        helper.make_node("ReduceMean", ["x", "axes"], ["mean"], keepdims=1),
        helper.make_node("Sub", ["x", "mean"], ["y"]),
    ]
    dims = ("batch", 4)
    constants = {"axes": np.array([0], np.int64)}
    return build(nodes, [("x", "FP32", dims)], [("y", "FP32", dims)], constants)


def projection(width: int = 8, seed: int = 0) -> Any:
    """y = tanh(x @ weights): an answer that takes arithmetic, with weights to store."""
    weights = np.random.default_rng(seed).standard_normal((width, width)).astype(np.float32)
    nodes = [
        helper.make_node("MatMul", ["x", "weights"], ["z"]),
        helper.make_node("Tanh", ["z"], ["y"]),
    ]
    dims = ("batch", width)
    return build(nodes, [("x", "FP32", dims)], [("y", "FP32", dims)], {"weights": weights})


def sequence_model() -> Any:
    """y = softmax(x) over the last of three dimensions, the middle one of any length."""
    node = helper.make_node("Softmax", ["x"], ["y"], axis=-1)
    dims = ("batch", "length", 5)
    return build([node], [("x", "FP32", dims)], [("y", "FP32", dims)])


def recurrent(width: int = 4, size: int = 3, layers: int = 2, seed: int = 0) -> Any:
    """A network with state: x [batch, width], state [layers, batch, size]: rows second.

    stateN = tanh(x @ weights + state * decay), with a decay for each layer; y sums the layers up.
    """
    rng = np.random.default_rng(seed)
    nodes = [
        helper.make_node("MatMul", ["x", "weights"], ["seen"]),
        helper.make_node("Mul", ["state", "decay"], ["kept"]),
        helper.make_node("Add", ["kept", "seen"], ["sum"]),
        helper.make_node("Tanh", ["sum"], ["stateN"]),
        helper.make_node("ReduceSum", ["stateN", "first"], ["y"], keepdims=0),
    ]
    state: Dims = (layers, "batch", size)
    return build(
        nodes,
        [("x", "FP32", ("batch", width)), ("state", "FP32", state)],
        [("y", "FP32", ("batch", size)), ("stateN", "FP32", state)],
        {
            "weights": rng.standard_normal((width, size)).astype(np.float32),
            "decay": np.linspace(0.5, 0.9, layers, dtype=np.float32).reshape(layers, 1, 1),
            "first": np.array([0], np.int64),
        },
    )


def accumulate() -> Any:
    """y = x + 0.5 state, which is also the next state."""
    nodes = [
        helper.make_node("Mul", ["state", "half"], ["kept"]),
        helper.make_node("Add", ["x", "kept"], ["y"]),
        helper.make_node("Identity", ["y"], ["next"]),
    ]
    dims = ("batch", 1)
    names = ("y", "next")
    inputs = [("x", "FP32", dims), ("state", "FP32", dims)]
    constants = {"half": np.array(0.5, np.float32)}
    return build(nodes, inputs, [(name, "FP32", dims) for name in names], constants)


def controlled() -> Any:
    """Triton's way: y = x where START is set, else y = x + state; seen = [START, READY, END, ID].

    The state holds what was never reset, so that only START begins a sequence anew.
    """
    nodes = [
        helper.make_node("Cast", ["START"], ["starts"], to=TensorProto.BOOL),
        helper.make_node("Add", ["x", "state"], ["sum"]),
        helper.make_node("Where", ["starts", "x", "sum"], ["y"]),
        helper.make_node("Add", ["y", "nothing"], ["next"]),
        helper.make_node("Cast", ["ID"], ["id"], to=TensorProto.INT32),
        helper.make_node("Cast", ["END"], ["end"], to=TensorProto.INT32),
        helper.make_node("Concat", ["START", "READY", "end", "id"], ["seen"], axis=1),
    ]
    column = ("batch", 1)
    inputs: list[Value] = [
        ("x", "FP32", column),
        ("state", "FP32", column),
        ("START", "INT32", column),
        ("READY", "INT32", column),
        ("END", "BOOL", column),
        ("ID", "UINT64", column),
    ]
    outputs: list[Value] = [
        ("y", "FP32", column),
        ("seen", "INT32", ("batch", 4)),
        ("next", "FP32", column),
    ]
    return build(nodes, inputs, outputs, {"nothing": np.array(0, np.float32)})


CONTROLLED = """
sequence_batching {
  control_input [
    { name: "START" control [{ kind: CONTROL_SEQUENCE_START int32_false_true: [0, 1] }] },
    { name: "READY" control [{ kind: CONTROL_SEQUENCE_READY int32_false_true: [0, 1] }] },
    { name: "END" control [{ kind: CONTROL_SEQUENCE_END bool_false_true: [false, true] }] },
    { name: "ID" control [{ kind: CONTROL_SEQUENCE_CORRID data_type: TYPE_UINT64 }] }
  ]
  state [{ input_name: "state" output_name: "next" data_type: TYPE_FP32 dims: [1] }]
}
"""

RECURRENT = """
[[state]]
input = "state"
output = "stateN"
batch_axis = 1
"""


def shout() -> Any:
    """y = x with "!" after each string."""
    node = helper.make_node("StringConcat", ["x", "mark"], ["y"])
    dims = ("batch", "n")
    mark = np.array(["!"], dtype=object)
    return build([node], [("x", "BYTES", dims)], [("y", "BYTES", dims)], {"mark": mark})


def lab(steps_factor: int = 1) -> Any:
    """A model whose duration and failure are data, so that tests need no clock.

    y = 2x + 1, after as many matrix products as the largest of `steps` says, times `steps_factor`;
    picked = 100 + index, and the run fails when any `index` is outside -10..9.
    """
    loop, constants = _work("count", "lab")
    nodes = [
        helper.make_node("ReduceMax", ["steps"], ["longest"], keepdims=0),
        helper.make_node("Mul", ["longest", "steps_factor"], ["count"]),
        *loop,
        helper.make_node("Mul", ["x", "two"], ["twice"]),
        helper.make_node("Add", ["twice", "one"], ["more"]),
        helper.make_node("Add", ["more", "lab_nothing"], ["y"]),
        helper.make_node("Gather", ["table", "index"], ["picked"], axis=0),
    ]
    constants |= {
        "steps_factor": np.array(steps_factor, np.int64),
        "two": np.array(2, np.float32),
        "one": np.array(1, np.float32),
        "table": np.arange(100, 100 + TABLE_SIZE, dtype=np.int64),
    }
    inputs: list[Value] = [
        ("x", "FP32", ("batch", "n")),
        ("steps", "INT64", ("batch",)),
        ("index", "INT64", ("batch",)),
    ]
    outputs: list[Value] = [("y", "FP32", ("batch", "n")), ("picked", "INT64", ("batch",))]
    return build(nodes, inputs, outputs, constants)


def slowed(model: Any, steps: int = 400) -> Any:
    """`model`, doing so many matrix products first at every run, whatever the number of rows.

    So requests that come together must wait, and it pays to run them together.
    """
    slow = onnx.ModelProto()
    slow.CopyFrom(model)
    graph = slow.graph
    loop, constants = _work("work_steps", "work")
    constants["work_steps"] = np.array(steps, np.int64)
    # The first output takes its shape from the loop, which adds zero: that works for any datatype.
    first = graph.output[0].name
    for node in graph.node:
        node.output[:] = ["work_raw" if name == first else name for name in node.output]
    graph.node.extend(
        [
            *loop,
            helper.make_node("Cast", ["work_nothing"], ["work_zero"], to=TensorProto.INT64),
            helper.make_node("Shape", ["work_raw"], ["work_shape"]),
            helper.make_node("Add", ["work_shape", "work_zero"], ["work_same_shape"]),
            helper.make_node("Reshape", ["work_raw", "work_same_shape"], [first]),
        ]
    )
    graph.initializer.extend(
        numpy_helper.from_array(value, name) for name, value in constants.items()
    )
    onnx.checker.check_model(slow)
    return slow


def _work(count: str, prefix: str) -> tuple[list[Any], dict[str, Any]]:
    """Nodes that multiply matrices `count` times and give `<prefix>_nothing`, a float zero; and the
    constants they need.

    Some microseconds a step, and ONNX Runtime can stop between two.
    """
    size = 96
    body = helper.make_graph(
        [
            helper.make_node("MatMul", ["state", f"{prefix}_weights"], ["next"]),
            helper.make_node("Identity", ["go"], ["go_on"]),
        ],
        "step",
        [
            _info("number", "INT64", ()),
            _info("go", "BOOL", ()),
            _info("state", "FP32", (size, size)),
        ],
        [_info("go_on", "BOOL", ()), _info("next", "FP32", (size, size))],
    )
    nodes = [
        helper.make_node("Loop", [count, "", f"{prefix}_zeros"], [f"{prefix}_end"], body=body),
        # Zero, but only the loop knows: without this the loop would be nobody's business.
        helper.make_node("ReduceSum", [f"{prefix}_end"], [f"{prefix}_nothing"], keepdims=0),
    ]
    weights = np.random.default_rng(0).standard_normal((size, size)).astype(np.float32)
    return nodes, {
        f"{prefix}_weights": weights,
        f"{prefix}_zeros": np.zeros((size, size), np.float32),
    }


def write(
    repository: pathlib.Path,
    name: str,
    model: Any,
    *,
    version: int = 1,
    config: str = "",
    toml: str = "",
    files: Mapping[str, str] | None = None,
    external_data: bool = False,
) -> pathlib.Path:
    """Puts `model` into `repository` as Triton lays it out, and returns the model's folder.

    `config` is the text of config.pbtxt, `toml` that of model.toml, `files` lie beside them.
    A `model` of bytes is written as it is.
    """
    folder = repository / name
    target = folder / str(version) / "model.onnx"
    target.parent.mkdir(parents=True, exist_ok=True)
    save(model, target, external_data=external_data)
    texts = {"config.pbtxt": config, "model.toml": toml, **(files or {})}
    for file, text in texts.items():
        if text:
            (folder / file).write_text(text)
    return folder


def save(model: Any, target: pathlib.Path, *, external_data: bool = False) -> None:
    """Writes one file; with `external_data` the weights lie in weights.bin beside it."""
    if isinstance(model, bytes):
        target.write_bytes(model)
    elif external_data:
        moved = onnx.ModelProto()  # saving takes the weights out of what is saved
        moved.CopyFrom(model)
        onnx.save_model(
            moved,
            target,
            save_as_external_data=True,
            location="weights.bin",
            size_threshold=0,
        )
    else:
        onnx.save_model(model, target)
