"""What a model takes and gives, read from its ONNX graph and its configuration."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import onnxruntime as ort

from headrace.inference.tensors import Array
from headrace.server.errors import LoadFailed
from headrace.server.executors.layout import PLAIN, TensorLayout
from headrace.server.executors.payload import Key
from headrace.server.models.controls import ControlSpec, mark_controls
from headrace.server.models.options import ModelOptions, TensorDeclaration
from headrace.server.models.states import (
    StateSpec,
    constant_inputs,
    mark_states,
    state_specs,
)

PLATFORM = "onnxruntime_onnx"
BACKEND = "onnxruntime"

# Beyond this, a fixed first dimension is hardly a batch, and a lone row would cost too much.
_MOST_FIXED_ROWS = 64

_ONNX_TYPES = {
    "tensor(bool)": "BOOL",
    "tensor(uint8)": "UINT8",
    "tensor(uint16)": "UINT16",
    "tensor(uint32)": "UINT32",
    "tensor(uint64)": "UINT64",
    "tensor(int8)": "INT8",
    "tensor(int16)": "INT16",
    "tensor(int32)": "INT32",
    "tensor(int64)": "INT64",
    "tensor(float16)": "FP16",
    "tensor(float)": "FP32",
    "tensor(double)": "FP64",
    "tensor(string)": "BYTES",
    "tensor(bfloat16)": "BF16",
}


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """An input or output, as callers see it.

    shape: -1 for a dimension that varies; includes the batch dimension. symbols: the graph's own
    name of each dimension, empty where it has none. model_shape: what the graph itself wants, where
    the configuration reshapes. rows_lead: whether the first dimension counts rows, which
    model_shape then leaves out. optional: the graph has a default for it. axis: where its rows lie,
    when the model is batched. state: the server brings it, or keeps it, for the caller.
    """

    name: str
    datatype: str
    shape: tuple[int, ...]
    symbols: tuple[str, ...]
    optional: bool = False
    model_shape: tuple[int, ...] | None = None
    rows_lead: bool = False
    axis: int = 0
    state: bool = False


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """A model's contract.

    batched: whether requests may share a run, along the first dimension. If not, unbatched_because
    says why. max_batch_size: rows that may share one. row_limit: the most rows of one request, None
    when only memory limits it. has_bfloat16: whether any tensor is BF16, which NumPy cannot hold.
    fixed_rows: the first dimension of all inputs and outputs, where the graph has one number for
    it; 0 elsewhere. states: what the server keeps from one run to the next; controls: what it tells
    of a sequence. The tensors of both are among inputs and outputs.
    """

    name: str
    version: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    batched: bool
    unbatched_because: str
    max_batch_size: int
    row_limit: int | None
    has_bfloat16: bool = False
    fixed_rows: int = 0
    states: tuple[StateSpec, ...] = ()
    layout: TensorLayout = PLAIN
    controls: tuple[ControlSpec, ...] = ()

    def key(
        self, given: Sequence[TensorSpec], arrays: Sequence[Array], outputs: tuple[str, ...]
    ) -> Key:
        """The compatibility key of `arrays`, one for each input of `given`, for these `outputs`."""
        inputs = tuple(
            (tensor.name, tensor.datatype, self._row_shape(tensor, array))
            for tensor, array in zip(given, arrays, strict=True)
        )
        return Key(inputs, outputs, self.has_bfloat16, self.layout)

    def _row_shape(self, tensor: TensorSpec, array: Array) -> tuple[int, ...]:
        if not self.batched:
            return array.shape
        return array.shape[: tensor.axis] + array.shape[tensor.axis + 1 :]

    def unbatched(self, reason: str) -> ModelSpec:
        """The same model, each request run alone."""
        return replace(self, batched=False, unbatched_because=reason, max_batch_size=1)

    def with_open_rows(self) -> ModelSpec:
        """A model of fixed rows, batched: callers may send any number of rows up to that."""
        return replace(
            self,
            inputs=tuple(_open_first(spec) for spec in self.inputs),
            outputs=tuple(_open_first(spec) for spec in self.outputs),
            batched=True,
            unbatched_because="",
            max_batch_size=self.fixed_rows,
            row_limit=self.fixed_rows,
        )


def _open_first(spec: TensorSpec) -> TensorSpec:
    return spec if spec.optional else replace(spec, shape=(-1, *spec.shape[1:]))


def read_spec(
    name: str,
    version: str,
    session: ort.InferenceSession,
    options: ModelOptions,
    default_max_batch: int,
) -> ModelSpec:
    """The contract of `session`'s model under `options`.

    Raises LoadFailed when the graph has types the protocol cannot carry, or when the configuration
    does not fit the graph.
    """
    inputs: Sequence[TensorSpec] = [_read(node) for node in session.get_inputs()]
    inputs = [*inputs, *(replace(_read(node), optional=True) for node in _overridable(session))]
    outputs: Sequence[TensorSpec] = [_read(node) for node in session.get_outputs()]
    types = {spec.datatype for spec in (*inputs, *outputs)}
    inputs, constants = constant_inputs(inputs, options.constants)
    inputs, controls = mark_controls(inputs, options.controls)
    inputs, outputs = mark_states(inputs, outputs, options.states)
    if types >= {"BF16", "BYTES"}:
        raise LoadFailed("ONNX Runtime's Python interface cannot run BF16 and text in one model")
    problems = _undeclared("input", inputs, options.inputs)
    problems += _undeclared("output", outputs, options.outputs)
    if problems:
        raise LoadFailed("the configuration does not fit the model: " + "; ".join(problems))
    reason = _why_unbatched(inputs, outputs, options)
    batched = not reason
    if options.max_batch_size and not batched:
        raise LoadFailed(
            "the configuration does not fit the model: max_batch_size is "
            f"{options.max_batch_size}, but {reason}"
        )
    layout = _layout(outputs, inputs, constants)
    plain = layout is PLAIN and not controls
    return ModelSpec(
        name,
        version,
        tuple(_declared(spec, options.inputs, batched) for spec in inputs),
        tuple(_declared(spec, options.outputs, batched) for spec in outputs),
        batched,
        reason,
        (options.max_batch_size or default_max_batch) if batched else 1,
        options.max_batch_size or None if batched else None,
        "BF16" in types,
        0 if batched or "BF16" in types or not plain else _fixed_rows(inputs, outputs, options),
        state_specs(inputs, options.states),
        layout,
        controls,
    )


def _layout(
    outputs: Sequence[TensorSpec], inputs: Sequence[TensorSpec], constants: Mapping[str, Array]
) -> TensorLayout:
    axes = {spec.name: spec.axis for spec in (*inputs, *outputs) if spec.axis}
    kept = frozenset(spec.name for spec in outputs if spec.state)
    return TensorLayout(axes, kept, constants) if kept or constants else PLAIN


def _overridable(session: ort.InferenceSession) -> Sequence[Any]:
    nodes: Sequence[Any] = session.get_overridable_initializers()
    return nodes


def _read(node: Any) -> TensorSpec:
    datatype = _ONNX_TYPES.get(node.type)
    if datatype is None:
        raise LoadFailed(
            f"'{node.name}' is of type {node.type}, which the protocol cannot carry: "
            "export the model with tensors only"
        )
    shape = tuple(dim if isinstance(dim, int) and dim >= 0 else -1 for dim in node.shape)
    symbols = tuple(dim if isinstance(dim, str) else "" for dim in node.shape)
    return TensorSpec(node.name, datatype, shape, symbols)


def _undeclared(
    kind: str, specs: Sequence[TensorSpec], declared: Sequence[TensorDeclaration]
) -> list[str]:
    known = {spec.name: spec for spec in specs}
    problems = []
    for tensor in declared:
        spec = known.get(tensor.name)
        if spec is None:
            names = ", ".join(known)
            problems.append(f"{kind} '{tensor.name}' is not in the model, which has {names}")
        elif tensor.datatype not in ("", spec.datatype):
            problems.append(
                f"{kind} '{tensor.name}' is declared {tensor.datatype}, the model's is "
                f"{spec.datatype}"
            )
    return problems


def _why_unbatched(
    inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec], options: ModelOptions
) -> str:
    """Empty when the graph shows a batch dimension: first, symbolic, of every input and output."""
    if options.max_batch_size == 0:
        return "the configuration says max_batch_size: 0"
    required = [spec for spec in inputs if not spec.optional]
    if not required:
        return "the model has no required input"
    symbols = {
        spec.symbols[spec.axis] for spec in required if spec.symbols and spec.symbols[spec.axis]
    }
    for kind, specs in (("input", required), ("output", outputs)):
        for spec in specs:
            if not spec.shape:
                return f"{kind} '{spec.name}' is a scalar"
            size = spec.shape[spec.axis]
            if size != -1:
                which = f"dimension {spec.axis}" if spec.axis else "the first dimension"
                return f"{which} of {kind} '{spec.name}' is always {size}"
    if len(symbols) > 1:
        return f"the inputs' first dimensions have different names: {', '.join(sorted(symbols))}"
    return ""


def _fixed_rows(
    inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec], options: ModelOptions
) -> int:
    """The number that is the first dimension of every input and output; 0 where there is none.

    A configuration that declares the batch size itself is taken at its word.
    """
    shapes = [spec.shape for spec in (*inputs, *outputs) if not spec.optional]
    if options.max_batch_size is not None or any(len(shape) < 2 for shape in shapes):
        return 0
    rows = {shape[0] for shape in shapes}
    first = rows.pop()
    return first if not rows and 2 <= first <= _MOST_FIXED_ROWS else 0


def _declared(spec: TensorSpec, declared: Sequence[TensorDeclaration], batched: bool) -> TensorSpec:
    """`spec` with what its declaration adds: narrower dimensions, a reshape, optionality."""
    tensor = next((tensor for tensor in declared if tensor.name == spec.name), None)
    if tensor is None or tensor.dims is None:
        return spec
    lead = (-1,) if batched and not spec.optional else ()
    shape = (*lead, *tensor.dims)
    if tensor.reshape is not None:
        inner = _narrow(spec.name, "reshape", tensor.reshape, spec.shape[len(lead) :])
        _check_elements(spec.name, tensor.dims, inner)
        return replace(
            spec,
            shape=shape,
            symbols=("",) * len(shape),
            model_shape=inner,
            rows_lead=bool(lead),
        )
    return replace(spec, shape=_narrow(spec.name, "dims", shape, spec.shape))


def _check_elements(name: str, dims: Sequence[int], reshape: Sequence[int]) -> None:
    if -1 not in (*dims, *reshape) and math.prod(dims) != math.prod(reshape):
        raise LoadFailed(
            f"the configuration does not fit the model: dims {list(dims)} of '{name}' hold "
            f"{math.prod(dims)} elements, their reshape {list(reshape)} holds {math.prod(reshape)}"
        )


def _narrow(
    name: str, what: str, declared: Sequence[int], actual: Sequence[int]
) -> tuple[int, ...]:
    """`declared`, its open dimensions closed where the graph's are. Raises LoadFailed."""
    fits = len(declared) == len(actual) and all(
        a in (-1, d) or d == -1 for d, a in zip(declared, actual, strict=True)
    )
    if not fits:
        raise LoadFailed(
            f"the configuration does not fit the model: {what} of '{name}' are {list(declared)}, "
            f"the model's are {list(actual)}"
        )
    return tuple(a if d == -1 else d for d, a in zip(declared, actual, strict=True))
