"""Tiny ONNX models of one variable length, each with one trait that padding meets."""

from __future__ import annotations

from typing import Any

import numpy as np
from onnx import TensorProto, helper

from support.models import build

VOCABULARY, WIDTH = 20, 6


def _weights(*shape: int, seed: int = 0) -> Any:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def text() -> Any:
    """pooled = tanh of the mean embedding of the tokens that the mask keeps; tokens = their own.

    Two inputs share the length, and only the mask makes padding harmless.
    """
    nodes = [
        helper.make_node("Gather", ["table", "input_ids"], ["embedded"]),
        helper.make_node("Cast", ["attention_mask"], ["kept"], to=TensorProto.FLOAT),
        helper.make_node("Unsqueeze", ["kept", "last"], ["column"]),
        helper.make_node("Mul", ["embedded", "column"], ["tokens"]),
        helper.make_node("ReduceSum", ["tokens", "time"], ["sum"], keepdims=0),
        helper.make_node("ReduceSum", ["column", "time"], ["count"], keepdims=0),
        helper.make_node("Div", ["sum", "count"], ["mean"]),
        helper.make_node("Tanh", ["mean"], ["pooled"]),
    ]
    dims = ("batch", "length")
    return build(
        nodes,
        [("input_ids", "INT64", dims), ("attention_mask", "INT64", dims)],
        [("pooled", "FP32", ("batch", WIDTH)), ("tokens", "FP32", (*dims, WIDTH))],
        {
            "table": _weights(VOCABULARY, WIDTH),
            "last": np.array([2], np.int64),
            "time": np.array([1], np.int64),
        },
    )


def recurrent(direction: str = "forward") -> Any:
    """y = the states of a GRU at every step. Forward ones do not know what comes after them.

    Without its biases a backward one would not either, of zeros: it would stay at zero.
    """
    ways = 2 if direction == "bidirectional" else 1
    hidden = 4
    nodes = [
        helper.make_node("Transpose", ["x"], ["steps"], perm=[1, 0, 2]),
        helper.make_node(
            "GRU",
            ["steps", "w", "r", "b"],
            ["states"],
            direction=direction,
            hidden_size=hidden,
        ),
        helper.make_node("Transpose", ["states"], ["by_row"], perm=[2, 0, 1, 3]),
        helper.make_node("Reshape", ["by_row", "flat"], ["y"]),
    ]
    return build(
        nodes,
        [("x", "FP32", ("batch", "length", 3))],
        [("y", "FP32", ("batch", "length", ways * hidden))],
        {
            "w": _weights(ways, 3 * hidden, 3),
            "r": _weights(ways, 3 * hidden, hidden, seed=1),
            "b": _weights(ways, 6 * hidden, seed=2),
            "flat": np.array([0, 0, -1], np.int64),
        },
    )


def softmax_over_time() -> Any:
    """y = softmax of x along its length: every step counts in every other's answer."""
    node = helper.make_node("Softmax", ["x"], ["y"], axis=1)
    dims = ("batch", "length", 2)
    return build([node], [("x", "FP32", dims)], [("y", "FP32", dims)])


def convolutions(layers: int, margin: str = "zeros", stride: int = 1) -> Any:
    """y = x through `layers` convolutions over its length, 3 wide, each with a bias.

    At its end the row is continued by zeros, or by its last value (`margin` "edge"). One layer sees
    no difference between that and padding of the same kind; a second sees the first one's biases.
    """
    nodes, constants = [], {}
    before = "x"
    for layer in range(layers):
        after = "y" if layer == layers - 1 else f"h{layer}"
        pads = [1, 1]
        if margin == "edge":
            nodes.append(helper.make_node("Pad", [before, "pads"], [f"p{layer}"], mode="edge"))
            constants["pads"] = np.array([0, 0, 1, 0, 0, 1], np.int64)
            before, pads = f"p{layer}", [0, 0]
        names = [before, f"w{layer}", f"b{layer}"]
        node = helper.make_node("Conv", names, [after], pads=pads, strides=[stride])
        constants |= {f"w{layer}": _weights(2, 2, 3, seed=layer), f"b{layer}": _weights(2, seed=9)}
        nodes.append(node)
        before = after
    inputs = [("x", "FP32", ("batch", 2, "length"))]
    return build(nodes, inputs, [("y", "FP32", ("batch", 2, "shorter"))], constants)
