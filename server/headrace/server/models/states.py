"""Recurrent state: which output of a model feeds which input of its next run, and what is fixed.

State tensors are no part of a caller's contract: the server brings them and keeps what comes out,
for each session or sequence. Their batch axis need not be the first: an LSTM's is [layers, batch,
size].
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from headrace.inference.tensors import DATATYPES, Array
from headrace.server.errors import LoadFailed

if TYPE_CHECKING:
    from headrace.server.models.spec import TensorSpec


@dataclass(frozen=True, slots=True)
class StateDeclaration:
    """A declared state. `batch_axis`: None to find it in the graph. `dims`: the state's dimensions
    without the batch dimension, where the graph leaves them open."""

    input: str
    output: str
    batch_axis: int | None = None
    dims: tuple[int, ...] | None = None


@dataclass(frozen=True, slots=True)
class StateSpec:
    """One state of a model. `shape` has -1 at `axis` when the model is batched, and only there."""

    input: str
    output: str
    datatype: str
    shape: tuple[int, ...]
    axis: int

    def zeros(self, rows: int) -> Array:
        """Where `rows` new sequences start."""
        shape = [rows if dim == -1 else dim for dim in self.shape]
        return np.zeros(shape, DATATYPES[self.datatype].numpy)

    def nbytes(self, rows: int) -> int:
        """What the state of `rows` sequences holds in memory."""
        count = 1
        for dim in self.shape:
            count *= rows if dim == -1 else dim
        return count * DATATYPES[self.datatype].itemsize


Specs = tuple["TensorSpec", ...]


def mark_states(
    inputs: Sequence[TensorSpec],
    outputs: Sequence[TensorSpec],
    declared: Sequence[StateDeclaration],
) -> tuple[Specs, Specs]:
    """`inputs` and `outputs` with the states among them marked, and their batch axes set.

    Raises LoadFailed when a declaration does not fit the graph.
    """
    ins = {spec.name: spec for spec in inputs}
    outs = {spec.name: spec for spec in outputs}
    taken = {state.input for state in declared}
    batch = next((s.symbols[0] for s in inputs if s.name not in taken and s.symbols), "")
    for state in declared:
        for key, name, specs in (("input", state.input, ins), ("output", state.output, outs)):
            if name not in specs:
                raise LoadFailed(
                    f"state {key} '{name}' is not in the model, which has {', '.join(specs)}"
                )
            if specs[name].state:
                raise LoadFailed(f"state {key} '{name}' is declared more than once")
        source, target = ins[state.input], outs[state.output]
        if not _alike(source, target) or source.datatype == "BYTES":
            raise LoadFailed(
                f"state output '{target.name}' ({target.datatype} {list(target.shape)}) cannot "
                f"feed input '{source.name}' ({source.datatype} {list(source.shape)})"
            )
        axis = _axis(source, state, batch)
        shape = _closed(source, state, axis)
        ins[source.name] = replace(source, state=True, axis=axis, shape=shape)
        outs[target.name] = replace(target, state=True, axis=axis)
    return tuple(ins.values()), tuple(outs.values())


def _alike(source: TensorSpec, target: TensorSpec) -> bool:
    return (
        source.datatype == target.datatype
        and len(source.shape) == len(target.shape)
        and all(-1 in (a, b) or a == b for a, b in zip(source.shape, target.shape, strict=True))
    )


def _axis(source: TensorSpec, state: StateDeclaration, batch: str) -> int:
    """The declared batch axis; or the one that the graph calls as it calls that of other inputs, or
    the only open one; or the first."""
    rank = len(source.shape)
    if state.batch_axis is not None:
        if not 0 <= state.batch_axis < max(rank, 1):
            raise LoadFailed(
                f"state input '{source.name}': batch_axis is {state.batch_axis}, expected 0 to "
                f"{rank - 1}"
            )
        return state.batch_axis
    if batch and batch in source.symbols:
        return source.symbols.index(batch)
    return source.shape.index(-1) if source.shape.count(-1) == 1 else 0


def _closed(source: TensorSpec, state: StateDeclaration, axis: int) -> tuple[int, ...]:
    """The shape, its open dimensions but the batch axis closed by the declared ones."""
    shape = list(source.shape)
    if state.dims is not None:
        dims = list(state.dims)
        if len(dims) == len(shape) - 1:
            dims.insert(axis, shape[axis])
        if len(dims) != len(shape) or any(
            -1 not in (d, s) and d != s for d, s in zip(dims, shape, strict=True)
        ):
            raise LoadFailed(
                f"state input '{source.name}': dims are {list(state.dims)}, the model's shape is "
                f"{shape}"
            )
        shape = [s if d == -1 else d for d, s in zip(dims, shape, strict=True)]
    for place, dim in enumerate(shape):
        if dim == -1 and place != axis:
            raise LoadFailed(
                f"state input '{source.name}' has shape {shape}: dimension {place} is open, and "
                "the server must know how large a state is; declare its dims"
            )
    return tuple(shape)


def state_specs(
    inputs: Sequence[TensorSpec], declared: Sequence[StateDeclaration]
) -> tuple[StateSpec, ...]:
    """The states, of inputs that `mark_states` gave."""
    specs = {spec.name: spec for spec in inputs}
    found = []
    for state in declared:
        spec = specs[state.input]
        found.append(StateSpec(spec.name, state.output, spec.datatype, spec.shape, spec.axis))
    return tuple(found)


def constant_inputs(
    inputs: Sequence[TensorSpec], values: Mapping[str, Any]
) -> tuple[Specs, dict[str, Array]]:
    """The inputs that are left to callers, and the fixed ones with their values as arrays.

    Raises LoadFailed when a value does not fit its input.
    """
    specs = {spec.name: spec for spec in inputs}
    arrays = {}
    for name, value in values.items():
        spec = specs.pop(name, None)
        if spec is None:
            raise LoadFailed(f"constants.{name} is not an input of the model")
        if spec.datatype == "BF16":
            raise LoadFailed(f"constants.{name}: BF16 is not supported here")
        try:
            array = np.array(value, DATATYPES[spec.datatype].numpy)
            arrays[name] = array.reshape([1 if dim == -1 else dim for dim in spec.shape])
        except (ValueError, TypeError, OverflowError) as error:
            raise LoadFailed(
                f"constants.{name}: expected {spec.datatype} of shape {list(spec.shape)}, got "
                f"{value!r}: {error}"
            ) from error
    return tuple(specs.values()), arrays


# Words of names. A pair is plain when it is alike but for the words that say which side it is on,
# and speaks of state.
_SIDES = {
    "in", "0", "prev", "previous", "past", "old", "initial", "init",
    "out", "n", "next", "new", "present", "current", "updated",
}  # fmt: skip
_STATE_WORDS = {
    "state", "states", "hidden", "h", "c", "cell", "cache", "memory", "mem", "rnn", "lstm", "gru",
}  # fmt: skip
_WORD = re.compile(r"[a-z]+|[A-Z]+(?![a-z])|[A-Z][a-z]*|\d+")


def propose_states(
    inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]
) -> list[StateDeclaration]:
    """The pairs that names and shapes make plain: state and stateN, h0 and hn, hidden_in and
    hidden_out. For a person to look at; nothing is served so unless it is declared."""
    found = []
    free = [spec for spec in outputs if not spec.state]
    for source in inputs:
        if source.state or source.optional:
            continue
        stem = _stem(source.name)
        if not stem & _STATE_WORDS:
            continue
        fitting = [target for target in free if _stem(target.name) == stem]
        if len(fitting) == 1 and _alike(source, fitting[0]):
            free.remove(fitting[0])
            declared = StateDeclaration(source.name, fitting[0].name)
            symbol = next((s.symbols[0] for s in inputs if s is not source and s.symbols), "")
            found.append(replace(declared, batch_axis=_axis(source, declared, symbol)))
    return found


def _stem(name: str) -> frozenset[str]:
    words = [word.lower() for word in _WORD.findall(name)]
    if len(words) == 1 and words[0][:-1] in _STATE_WORDS and words[0][-1] in "n":
        words = [words[0][:-1]]  # hn, cn
    return frozenset(words) - _SIDES
