"""Models of random weights, made with onnx.helper: a CNN, a transformer and an MLP.

What they answer means nothing; what they cost is what such a network costs. Each comes in two
sizes: `full`, which is what is measured, and `tiny`, which shows on any machine that the programs
work.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

Size = Literal["full", "tiny"]

VOCABULARY = 30_522
OPSET = 17


@dataclass
class Graph:
    """A graph that grows by one node at a time. Names of tensors are given out as it goes."""

    seed: int = 0
    nodes: list[Any] = field(default_factory=list)
    constants: list[Any] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._rng = np.random.default_rng(self.seed)

    def add(self, op: str, *inputs: str, name: str = "", **attributes: Any) -> str:
        """A node with one output; returns its name."""
        output = name or f"{op.lower()}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, inputs, [output], **attributes))
        return output

    def constant(self, value: Any, dtype: Any = np.float32) -> str:
        name = f"constant_{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.asarray(value, dtype), name))
        return name

    def weights(self, *shape: int, fan_in: int) -> str:
        """Normal with variance 2 / fan_in (He et al., arXiv:1502.01852), so that nothing explodes
        on its way through many layers."""
        values = self._rng.standard_normal(shape, np.float32)
        return self.constant(values * np.float32(np.sqrt(2 / fan_in)))

    def zeros(self, count: int) -> str:
        return self.constant(np.zeros(count))

    def save(self, path: Path, inputs: Sequence[Any], outputs: Sequence[Any]) -> None:
        graph = helper.make_graph(self.nodes, path.stem, inputs, outputs, self.constants)
        opsets = [helper.make_opsetid("", OPSET)]
        onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=10), path)


def cnn(path: Path, size: Size) -> None:
    """A residual network of bottlenecks, with batch normalisation folded into the convolutions;
    `full` is ResNet-50 (He et al., arXiv:1512.03385). x [batch, 3, 224, 224] to y [batch, 1000]."""
    blocks, width, side = ((3, 4, 6, 3), 64, 224) if size == "full" else ((1, 1), 4, 32)
    graph = Graph()
    channels = width
    at = _convolved(graph, "x", 3, channels, kernel=7, stride=2)
    at = graph.add("MaxPool", at, kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])
    for stage, count in enumerate(blocks):
        for number in range(count):
            stride = 2 if stage and not number else 1
            inner = width << stage
            at = _bottleneck(graph, at, channels, inner, stride)
            channels = 4 * inner
    pooled = graph.add("Flatten", graph.add("GlobalAveragePool", at))
    head = graph.weights(channels, 1000, fan_in=channels)
    graph.add("Gemm", pooled, head, graph.zeros(1000), name="y")
    graph.save(path, [_info("x", "batch", 3, side, side)], [_info("y", "batch", 1000)])


def _bottleneck(graph: Graph, at: str, channels: int, inner: int, stride: int) -> str:
    """1x1 to `inner` channels, 3x3, 1x1 to four times as many, and the input added."""
    out = 4 * inner
    short = at
    if stride > 1 or channels != out:
        short = _convolved(graph, at, channels, out, kernel=1, stride=stride, relu=False)
    at = _convolved(graph, at, channels, inner, kernel=1)
    at = _convolved(graph, at, inner, inner, kernel=3, stride=stride)
    at = _convolved(graph, at, inner, out, kernel=1, relu=False)
    return graph.add("Relu", graph.add("Add", at, short))


def _convolved(
    graph: Graph,
    at: str,
    channels: int,
    out: int,
    *,
    kernel: int,
    stride: int = 1,
    relu: bool = True,
) -> str:
    weights = graph.weights(out, channels, kernel, kernel, fan_in=channels * kernel**2)
    pads = [kernel // 2] * 4
    shape: dict[str, Any] = {"kernel_shape": [kernel] * 2, "strides": [stride] * 2, "pads": pads}
    at = graph.add("Conv", at, weights, graph.zeros(out), **shape)
    return graph.add("Relu", at) if relu else at


def transformer(path: Path, size: Size) -> None:
    """An encoder as in BERT (Devlin et al., arXiv:1810.04805), without positions; `full` has 6
    layers of 384. input_ids and attention_mask, INT64 [batch, length], to y [batch, hidden]: the
    mean over the tokens that the mask keeps. Padding behind a mask of zeros changes no answer."""
    layers, hidden, heads = (6, 384, 12) if size == "full" else (1, 16, 2)
    graph = Graph()
    mask = graph.add("Cast", "attention_mask", to=TensorProto.FLOAT)  # [batch, length]
    hidden_from = graph.add("Sub", graph.constant(1.0), mask)
    bias = graph.add("Mul", hidden_from, graph.constant(-1e4))
    bias = graph.add("Unsqueeze", bias, graph.constant([1, 2], np.int64))  # [batch, 1, 1, length]
    at = graph.add("Gather", graph.weights(VOCABULARY, hidden, fan_in=2), "input_ids")
    for _ in range(layers):
        mixed = _attention(graph, at, bias, hidden, heads)
        at = _normalized(graph, graph.add("Add", at, mixed), hidden)
        inner = _dense(graph, at, hidden, 4 * hidden)
        inner = _dense(graph, _gelu(graph, inner), 4 * hidden, hidden)
        at = _normalized(graph, graph.add("Add", at, inner), hidden)
    last = graph.constant([2], np.int64)
    kept = graph.add("Mul", at, graph.add("Unsqueeze", mask, last))
    axis = graph.constant([1], np.int64)
    total = graph.add("ReduceSum", kept, axis, keepdims=0)
    graph.add("Div", total, graph.add("ReduceSum", mask, axis, keepdims=1), name="y")
    inputs = [_info(n, "batch", "length", kind=TensorProto.INT64) for n in INPUTS_OF_TEXT]
    graph.save(path, inputs, [_info("y", "batch", hidden)])


INPUTS_OF_TEXT = ("input_ids", "attention_mask")


def _attention(graph: Graph, at: str, bias: str, hidden: int, heads: int) -> str:
    each = hidden // heads
    split = graph.constant([0, 0, heads, each], np.int64)

    def projected(order: list[int]) -> str:
        part = graph.add("Reshape", _dense(graph, at, hidden, hidden), split)
        return graph.add("Transpose", part, perm=order)

    query, key, value = projected([0, 2, 1, 3]), projected([0, 2, 3, 1]), projected([0, 2, 1, 3])
    scores = graph.add("Mul", graph.add("MatMul", query, key), graph.constant(each**-0.5))
    weights = graph.add("Softmax", graph.add("Add", scores, bias), axis=-1)
    mixed = graph.add("Transpose", graph.add("MatMul", weights, value), perm=[0, 2, 1, 3])
    joined = graph.add("Reshape", mixed, graph.constant([0, 0, hidden], np.int64))
    return _dense(graph, joined, hidden, hidden)


def _dense(graph: Graph, at: str, inputs: int, outputs: int) -> str:
    product = graph.add("MatMul", at, graph.weights(inputs, outputs, fan_in=inputs))
    return graph.add("Add", product, graph.zeros(outputs))


def _gelu(graph: Graph, at: str) -> str:
    """x (1 + erf(x / sqrt 2)) / 2."""
    erf = graph.add("Erf", graph.add("Mul", at, graph.constant(2**-0.5)))
    twice = graph.add("Mul", at, graph.add("Add", erf, graph.constant(1.0)))
    return graph.add("Mul", twice, graph.constant(0.5))


def _normalized(graph: Graph, at: str, hidden: int) -> str:
    scale = graph.constant(np.ones(hidden))
    return graph.add("LayerNormalization", at, scale, graph.zeros(hidden), axis=-1)


def mlp(path: Path, size: Size) -> None:
    """Dense layers and ReLU. x [batch, 256] to y [batch, 16]; `full` has four of 2048."""
    width, layers = (2048, 4) if size == "full" else (32, 2)
    graph = Graph()
    at, inputs = "x", 256
    for _ in range(layers):
        at, inputs = graph.add("Relu", _dense(graph, at, inputs, width)), width
    graph.add("Identity", _dense(graph, at, inputs, 16), name="y")
    graph.save(path, [_info("x", "batch", 256)], [_info("y", "batch", 16)])


def _info(name: str, *dims: int | str, kind: int = TensorProto.FLOAT) -> Any:
    return helper.make_tensor_value_info(name, kind, dims)


MAKERS = {"cnn": cnn, "transformer": transformer, "mlp": mlp}
