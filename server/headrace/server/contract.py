"""What callers send against what a model's contract says: names, datatypes, shapes, rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from headrace.batcher.errors import ExecutionFailed
from headrace.inference.tensors import DATATYPES, Array
from headrace.server.errors import InvalidInput
from headrace.server.models.served import ServedModel
from headrace.server.models.spec import TensorSpec

# Rows that hold nothing cost no bytes: their number is the caller's word alone, and is counted.
_MOST_ROWS: Final = 1 << 20


@dataclass(slots=True, init=False)
class InputTensor:
    """A tensor as the caller sent it; BF16 as uint16 bits, BYTES as an object array of bytes."""

    name: str
    datatype: str
    array: Array

    def __init__(self, name: str, datatype: str, array: Array) -> None:
        self.name = name
        self.datatype = datatype
        self.array = array


def by_name(model: ServedModel, inputs: Sequence[InputTensor]) -> dict[str, InputTensor]:
    """The inputs of a request, which have to be those of the model. Raises InvalidInput."""
    name, given = model.spec.name, {tensor.name: tensor for tensor in inputs}
    if len(given) != len(inputs):
        names = [tensor.name for tensor in inputs]
        twice = next(n for n in names if names.count(n) > 1)
        raise InvalidInput(f"input '{twice}' is given more than once for model '{name}'")
    for tensor in given:
        if tensor not in model.inputs:
            known = ", ".join(f"'{n}'" for n in model.inputs)
            raise InvalidInput(f"unknown input '{tensor}' for model '{name}', expected {known}")
    for tensor, spec in model.inputs.items():
        if tensor not in given and not (spec.optional or spec.state):
            got = ", ".join(f"'{n}'" for n in given) or "no input"
            raise InvalidInput(f"input '{tensor}' of model '{name}' is missing, got {got}")
    return given


def outputs_of(model: ServedModel, wanted: Sequence[str]) -> tuple[str, ...]:
    """The outputs to compute, where `wanted` are asked for, or the model's own for none. Raises
    InvalidInput."""
    for name in wanted:
        if name not in model.outputs:
            known = ", ".join(f"'{n}'" for n in model.outputs)
            raise InvalidInput(
                f"unknown output '{name}' for model '{model.spec.name}', expected {known}"
            )
    if len(set(wanted)) != len(wanted):
        twice = next(n for n in wanted if list(wanted).count(n) > 1)
        raise InvalidInput(f"output '{twice}' is asked for more than once")
    wanted = wanted or model.default_outputs
    # States are always among them, so that those who ask for one and those who do not share runs.
    return (*wanted, *(s.output for s in model.spec.states if s.output not in wanted))


def check_tensor(model: ServedModel, spec: TensorSpec, tensor: InputTensor) -> None:
    """Raises InvalidInput unless datatype and shape are those of `spec`."""
    where = f"input '{spec.name}' of model '{model.spec.name}'"
    if tensor.datatype != spec.datatype:
        expected, got = _in_numpy(spec.datatype), _in_numpy(tensor.datatype)
        raise InvalidInput(f"{where}: expected datatype {expected}, got {got}")
    shape = tensor.array.shape
    fits = len(shape) == len(spec.shape) and all(
        expected in (-1, dim) for expected, dim in zip(spec.shape, shape, strict=True)
    )
    if not fits:
        one_row = [1, *shape] if model.spec.batched and len(shape) == len(spec.shape) - 1 else None
        hint = f"; one row of that is {one_row}" if one_row else ""
        raise InvalidInput(
            f"{where}: expected shape {list(spec.shape)} (-1: any), got {list(shape)}{hint}"
        )


def _in_numpy(datatype: str) -> str:
    """With the name that most callers know it by, who may not have chosen it: NumPy's default is
    FP64."""
    known = DATATYPES.get(datatype)
    if known is None or datatype in ("BF16", "BYTES"):  # NumPy has none
        return datatype
    return f"{datatype} ({known.numpy.name})"


def rows_of(model: ServedModel, inputs: Sequence[tuple[TensorSpec, InputTensor]]) -> int:
    """Rows along the batch dimension, which the inputs must agree on; 1 for an unbatched model.
    Raises InvalidInput."""
    if not model.spec.batched:
        return 1
    counts = {
        spec.name: tensor.array.shape[spec.axis] for spec, tensor in inputs if not spec.optional
    }
    rows: int = next(iter(counts.values()))
    for name, count in counts.items():
        if count != rows:
            first = next(iter(counts))
            raise InvalidInput(
                f"input '{name}' of model '{model.spec.name}': expected {rows} rows, as input "
                f"'{first}' has, got {count}"
            )
    limit = model.spec.row_limit or _MOST_ROWS
    if rows > limit:
        named = " (max_batch_size)" if model.spec.row_limit else " unless max_batch_size says more"
        raise InvalidInput(
            f"model '{model.spec.name}': expected at most {limit} rows{named}, got {rows}"
        )
    return rows


def size_of(array: Array) -> int:
    """What `array` holds in memory. NumPy counts only the pointers to strings."""
    strings = sum(map(len, array.ravel())) if array.dtype == object else 0
    return array.nbytes + strings


def for_session(model: ServedModel, spec: TensorSpec, tensor: InputTensor) -> Array:
    """The array as the model's graph takes it. Raises InvalidInput."""
    array = tensor.array
    if spec.datatype == "BYTES":
        array = _decode_strings(model, spec, array)
    if spec.model_shape is None:
        return array
    lead = array.shape[:1] if spec.rows_lead else ()
    try:
        return array.reshape((*lead, *spec.model_shape))
    except ValueError:
        raise InvalidInput(
            f"input '{spec.name}' of model '{model.spec.name}': expected elements that the model "
            f"reshapes to {[*lead, *spec.model_shape]}, got shape {list(array.shape)}"
        ) from None


def _decode_strings(model: ServedModel, spec: TensorSpec, array: Array) -> Array:
    """ONNX Runtime's Python interface takes text, so the bytes must be UTF-8."""
    out = np.empty(array.size, dtype=object)
    for index, element in enumerate(array.ravel()):
        try:
            out[index] = element.decode()
        except UnicodeDecodeError as error:
            raise InvalidInput(
                f"input '{spec.name}' of model '{model.spec.name}': expected UTF-8, element "
                f"{index} is not: {error.reason} at byte {error.start}"
            ) from None
    return out.reshape(array.shape)


def blame_dimensions(
    model: ServedModel, inputs: Sequence[InputTensor], error: ExecutionFailed
) -> None:
    """Raises InvalidInput when dimensions that the graph gives one name have different sizes.

    Asked only once a run has failed: some graphs name dimensions alike that need not be.
    """
    sizes: dict[str, tuple[int, str]] = {}
    for tensor in inputs:
        spec = model.inputs[tensor.name]
        for symbol, size in zip(spec.symbols, tensor.array.shape, strict=True):
            first = sizes.setdefault(symbol, (size, tensor.name)) if symbol else (size, "")
            if first[0] != size:
                raise InvalidInput(
                    f"input '{tensor.name}' of model '{model.spec.name}': expected dimension "
                    f"'{symbol}' to be {first[0]}, as in input '{first[1]}', got {size}"
                ) from error


def shape_output(spec: TensorSpec, array: Array) -> Array:
    """An output of the graph in the shape of the model's contract."""
    if spec.model_shape is None:
        return array
    if spec.rows_lead:
        return array.reshape((len(array), *spec.shape[1:]))
    return array.reshape(spec.shape)
