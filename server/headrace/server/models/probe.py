"""Is it safe to batch this model? Asked of the model itself, at load.

A graph can show a batch dimension and still mix its rows: dynamic quantisation takes one scale over
all of them, a normalisation may run along the wrong axis. So synthetic rows are run alone and
together; only when every output follows the batch and agrees is the model batched.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from headrace.inference.tensors import DATATYPES, Array
from headrace.server.executors.layout import rows_of
from headrace.server.executors.running import Session, run_session
from headrace.server.models.spec import ModelSpec, TensorSpec

ROWS = 3
# A batch sums in another order than a single row does, so bits may differ. Wider than that,
# relative to the size of the output's values, is another answer.
TOLERANCE = {"FP16": 2e-2, "BF16": 5e-2, "FP32": 1e-3, "FP64": 1e-6}
# Sizes tried for dimensions that vary, until the model accepts one.
VARIABLE = (8, 32, 64, 1, 256)
# Integers are often indices, of many things or of two. They are drawn below these.
INTEGERS = (10, 2)


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the probe saw. `reason` is empty when the model may be batched.

    deviation: the largest difference between a row alone and in a batch, as a share of the largest
    value of its output; 0 when the bits agree, nan when nothing could be compared.
    """

    reason: str = ""
    deviation: float = math.nan


@dataclass(frozen=True, slots=True)
class Recipe:
    """How to make synthetic inputs: the size of open dimensions, and the bound of integers."""

    variable: int = VARIABLE[0]
    integers: int = INTEGERS[0]


def has_open_dimensions(spec: ModelSpec) -> bool:
    """Whether rows may differ in size, so that synthetic ones have a size that was guessed."""
    return any(-1 in _inner(tensor) for tensor in spec.inputs if not tensor.optional)


def recipes(spec: ModelSpec) -> Iterator[Recipe]:
    """The recipes worth trying on `spec`'s model, until it accepts one."""
    required = [tensor for tensor in spec.inputs if not tensor.optional]
    has_integers = any(tensor.datatype.startswith(("INT", "UINT")) for tensor in required)
    for variable in VARIABLE if has_open_dimensions(spec) else VARIABLE[:1]:
        for integers in INTEGERS if has_integers else INTEGERS[:1]:
            yield Recipe(variable, integers)


def probe(spec: ModelSpec, session: Session) -> Verdict:
    """Whether batching `spec`'s model leaves its answers alone.

    A model that refuses every synthetic input cannot be judged, and is not to be batched either.
    """
    error: Exception | None = None
    for recipe in recipes(spec):
        try:
            return _compare(spec, session, recipe)
        except Exception as caught:  # noqa: BLE001 (ONNX Runtime's exceptions share no base class)
            error = caught
    return Verdict(f"synthetic inputs were refused, so batching could not be checked: {error}")


def _compare(spec: ModelSpec, session: Session, recipe: Recipe) -> Verdict:
    rng = np.random.default_rng(0)
    inputs = [tensor for tensor in spec.inputs if not tensor.optional]
    together = [synthetic(tensor, ROWS, recipe, rng) for tensor in inputs]
    key = spec.key(inputs, together, tuple(tensor.name for tensor in spec.outputs))
    batch = run_session(session, key, together)
    verdict = Verdict()
    for row in range(ROWS):
        one = [
            rows_of(array, tensor.axis, row, row + 1)
            for tensor, array in zip(inputs, together, strict=True)
        ]
        alone = run_session(session, key, one)
        for tensor, expected, joint in zip(spec.outputs, alone, batch, strict=True):
            if _rows(tensor, joint) != ROWS or _rows(tensor, expected) != 1:
                return Verdict(f"output '{tensor.name}' does not follow the batch")
        together_row = [
            rows_of(array, tensor.axis, row, row + 1)
            for tensor, array in zip(spec.outputs, batch, strict=True)
        ]
        verdict = _agreement(spec, verdict, alone, together_row)
        if verdict.reason:
            break
    return verdict


def probe_fixed(spec: ModelSpec, session: Session) -> Verdict:
    """Whether the rows of a model that takes `spec.fixed_rows` at a time are independent.

    Then fewer may be sent, and those of several callers together. Asked by changing all rows but
    one, and by moving the rows round.
    """
    opened = spec.with_open_rows()
    error: Exception | None = None
    for recipe in recipes(opened):
        try:
            return _compare_fixed(opened, session, recipe)
        except Exception as caught:  # noqa: BLE001 (ONNX Runtime's exceptions share no base class)
            error = caught
    return Verdict(f"synthetic inputs were refused, so batching could not be checked: {error}")


def _compare_fixed(spec: ModelSpec, session: Session, recipe: Recipe) -> Verdict:
    rng, rows = np.random.default_rng(0), spec.fixed_rows
    inputs = [tensor for tensor in spec.inputs if not tensor.optional]
    given = [synthetic(tensor, rows, recipe, rng) for tensor in inputs]
    key = spec.key(inputs, given, tuple(tensor.name for tensor in spec.outputs))
    answer = run_session(session, key, given)
    moved = run_session(session, key, [np.roll(array, 1, axis=0) for array in given])
    verdict = Verdict()
    for row in range(rows):
        here = [array[row : row + 1] for array in answer]
        there = [array[(row + 1) % rows :][:1] for array in moved]
        verdict = _agreement(spec, verdict, here, there)
    for row in sorted({0, rows // 2, rows - 1}):
        others = [synthetic(tensor, rows, recipe, rng) for tensor in inputs]
        for array, kept in zip(others, given, strict=True):
            array[row] = kept[row]
        changed = run_session(session, key, others)
        here, there = ([a[row : row + 1] for a in arrays] for arrays in (answer, changed))
        verdict = _agreement(spec, verdict, here, there)
    return verdict


def _agreement(
    spec: ModelSpec, so_far: Verdict, expected: Sequence[Array], actual: Sequence[Array]
) -> Verdict:
    """`so_far`, and whether the outputs of one row agree, alone or in different company."""
    worst = 0.0 if math.isnan(so_far.deviation) else so_far.deviation
    if so_far.reason:
        return so_far
    for tensor, one, other in zip(spec.outputs, expected, actual, strict=True):
        deviation = deviation_of(tensor, one, other)
        worst = max(worst, deviation)
        if deviation > TOLERANCE.get(tensor.datatype, 0.0):
            return Verdict(
                f"output '{tensor.name}' of a row depends on the rows beside it: it differs by "
                f"{deviation:.2g} of the largest value",
                deviation,
            )
    return Verdict(deviation=worst)


def _rows(tensor: TensorSpec, array: Array) -> int:
    """Rows along the batch axis; none where there is no such axis."""
    return int(array.shape[tensor.axis]) if array.ndim > tensor.axis else 0


def deviation_of(tensor: TensorSpec, alone: Array, together: Array) -> float:
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


def synthetic(spec: TensorSpec, rows: int, recipe: Recipe, rng: np.random.Generator) -> Array:
    """An array that fits `spec`'s graph: `rows` rows, and the recipe's size for open dimensions.

    Floats are standard normal, integers below the recipe's bound. A mask is all ones: what it hides
    would not be looked at.
    """
    shape = [recipe.variable if dim == -1 else dim for dim in _inner(spec)]
    shape.insert(spec.axis, rows)
    if spec.datatype == "BYTES":
        texts = np.array([str(number) for number in rng.integers(0, 10, int(np.prod(shape)))])
        return texts.astype(object).reshape(shape)
    normal = rng.standard_normal(shape)
    if spec.datatype == "BF16":
        bits: Array = normal.astype("<f4").view("<u4") >> 16
        return bits.astype("<u2")
    dtype: Any = DATATYPES[spec.datatype].numpy
    if is_mask(spec):
        ones: Array = np.ones(shape, dtype)
        return ones
    if dtype.kind == "f":
        floats: Array = normal.astype(dtype)
        return floats
    whole: Array = rng.integers(0, 2 if dtype.kind == "b" else recipe.integers, shape).astype(dtype)
    return whole


def is_mask(spec: TensorSpec) -> bool:
    """Whether an input tells which part of the others is to be looked at, by its name."""
    return "mask" in spec.name.lower() and spec.datatype not in ("BYTES", "BF16")


def _inner(spec: TensorSpec) -> Sequence[int]:
    """The dimensions inside a row, as the graph wants them."""
    if spec.model_shape is not None:
        return spec.model_shape
    return spec.shape[: spec.axis] + spec.shape[spec.axis + 1 :]
