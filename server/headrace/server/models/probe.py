"""Is it safe to batch this model? Asked of the model itself, at load.

A graph can show a batch dimension and still mix its rows: dynamic quantisation takes one scale over
all of them, a normalisation may run along the wrong axis. So synthetic rows are run alone and
together; only when every output follows the batch and agrees is the model batched.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnxruntime as ort

from headrace.inference.tensors import DATATYPES, Array
from headrace.server.executors.layout import rows_of
from headrace.server.executors.onnx import run_session
from headrace.server.models.spec import ModelSpec, TensorSpec

ROWS = 3
# A batch sums in another order than a single row does, so bits may differ. Wider than that,
# relative to the size of the output's values, is another answer.
TOLERANCE = {"FP16": 2e-2, "BF16": 5e-2, "FP32": 1e-3, "FP64": 1e-6}
# Sizes tried for dimensions that vary, until the model accepts one.
VARIABLE = (8, 32, 64, 1, 256)


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the probe saw. `reason` is empty when the model may be batched.

    deviation: the largest difference between a row alone and in a batch, as a share of the largest
    value of its output; 0 when the bits agree.
    """

    reason: str = ""
    deviation: float = 0.0


def probe(spec: ModelSpec, session: ort.InferenceSession) -> Verdict:
    """Whether batching `spec`'s model leaves its answers alone.

    A model that refuses every synthetic input cannot be judged, and is not to be batched either.
    """
    error: Exception | None = None
    for variable in VARIABLE:
        try:
            return _compare(spec, session, variable)
        except Exception as caught:  # noqa: BLE001 (ONNX Runtime's exceptions share no base class)
            error = caught
            if not any(-1 in row_shape(tensor) for tensor in spec.inputs):
                break
    return Verdict(f"synthetic inputs were refused, so batching could not be checked: {error}")


def _compare(spec: ModelSpec, session: ort.InferenceSession, variable: int) -> Verdict:
    rng = np.random.default_rng(0)
    inputs = [tensor for tensor in spec.inputs if not tensor.optional]
    together = [synthetic(tensor, ROWS, variable, rng) for tensor in inputs]
    key = spec.key(inputs, together, tuple(tensor.name for tensor in spec.outputs))
    batch = run_session(session, key, together)
    worst = 0.0
    for row in range(ROWS):
        one = [
            rows_of(array, tensor.axis, row, row + 1)
            for tensor, array in zip(inputs, together, strict=True)
        ]
        alone = run_session(session, key, one)
        for tensor, expected, joint in zip(spec.outputs, alone, batch, strict=True):
            if _rows(tensor, joint) != ROWS or _rows(tensor, expected) != 1:
                return Verdict(f"output '{tensor.name}' does not follow the batch")
            deviation = _deviation(tensor, expected, rows_of(joint, tensor.axis, row, row + 1))
            worst = max(worst, deviation)
            if deviation > TOLERANCE.get(tensor.datatype, 0.0):
                return Verdict(
                    f"output '{tensor.name}' of a row depends on the rows beside it: alone and in "
                    f"a batch it differs by {deviation:.2g} of the largest value",
                    deviation,
                )
    return Verdict(deviation=worst)


def _rows(tensor: TensorSpec, array: Array) -> int:
    """Rows along the batch axis; none where there is no such axis."""
    return int(array.shape[tensor.axis]) if array.ndim > tensor.axis else 0


def _deviation(tensor: TensorSpec, alone: Array, together: Array) -> float:
    """The largest difference, as a share of the largest value; infinite for another shape."""
    if alone.shape != together.shape:
        return math.inf
    if tensor.datatype not in TOLERANCE:
        return 0.0 if np.array_equal(alone, together) else math.inf
    a, b = _floats(tensor, alone), _floats(tensor, together)
    finite = np.isfinite(a)
    if not np.array_equal(finite, np.isfinite(b)):
        return math.inf
    if not finite.any():
        return 0.0
    scale = max(float(np.abs(a[finite]).max()), 1e-6)
    return float(np.abs(a[finite] - b[finite]).max()) / scale


def _floats(tensor: TensorSpec, array: Array) -> Array:
    if tensor.datatype == "BF16":
        return (array.astype("<u4") << 16).view("<f4").astype(np.float64)
    return array.astype(np.float64)


def row_shape(spec: TensorSpec) -> tuple[int, ...]:
    """The dimensions of one row."""
    return spec.shape[: spec.axis] + spec.shape[spec.axis + 1 :]


def synthetic(spec: TensorSpec, rows: int, variable: int, rng: np.random.Generator) -> Array:
    """An array that fits `spec`'s graph: `rows` rows, and `variable` for each other open dimension.

    Floats are standard normal. Integers are 0..9: often they are indices.
    """
    inner = row_shape(spec) if spec.model_shape is None else spec.model_shape
    shape = [variable if dim == -1 else dim for dim in inner]
    shape.insert(spec.axis, rows)
    if spec.datatype == "BYTES":
        texts = np.array([str(number) for number in rng.integers(0, 10, int(np.prod(shape)))])
        return texts.astype(object).reshape(shape)
    normal = rng.standard_normal(shape)
    if spec.datatype == "BF16":
        bits: Array = normal.astype("<f4").view("<u4") >> 16
        return bits.astype("<u2")
    dtype: Any = DATATYPES[spec.datatype].numpy
    if dtype.kind == "f":
        floats: Array = normal.astype(dtype)
        return floats
    whole: Array = rng.integers(0, 2 if dtype.kind == "b" else 10, shape).astype(dtype)
    return whole
