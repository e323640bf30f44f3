"""Control inputs: what Triton tells a stateful model of the sequence that a row belongs to.

They are declared in `sequence_batching { control_input { ... } }`, and brought by the server.
Facts: Triton's model configuration, ModelSequenceBatching.Control.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from headrace.inference.tensors import DATATYPES, Array
from headrace.server.errors import LoadFailed

if TYPE_CHECKING:
    from headrace.server.models.spec import TensorSpec


class ControlKind(enum.Enum):
    """What a control input says of a row."""

    START = "CONTROL_SEQUENCE_START"
    READY = "CONTROL_SEQUENCE_READY"
    END = "CONTROL_SEQUENCE_END"
    CORRID = "CONTROL_SEQUENCE_CORRID"


@dataclass(frozen=True, slots=True)
class ControlDeclaration:
    """A declared control input. no and yes: its values; without meaning for CORRID."""

    input: str
    kind: ControlKind
    no: float = 0
    yes: float = 1


@dataclass(frozen=True, slots=True)
class ControlSpec:
    """A control input of a model; `shape` as its input has it, -1 for what the server sets."""

    declared: ControlDeclaration
    datatype: str
    shape: tuple[int, ...]

    def array(self, rows: int, id_: int | str, *, start: bool, end: bool) -> Array:
        """The input for `rows` rows of one sequence."""
        declared = self.declared
        shape = [1 if dim == -1 else dim for dim in self.shape]
        if self.shape and self.shape[0] == -1:
            shape[0] = rows
        dtype: Any = DATATYPES[self.datatype].numpy
        if declared.kind is ControlKind.CORRID:
            return np.full(shape, _id(id_, dtype), dtype)
        says = {ControlKind.START: start, ControlKind.END: end, ControlKind.READY: True}
        return np.full(shape, declared.yes if says[declared.kind] else declared.no, dtype)


def _id(id_: int | str, dtype: np.dtype[Any]) -> int | bytes:
    """A correlation id as a tensor has it: in text, or as much of it as its integer holds; 0 for
    text in an integer."""
    if dtype.kind == "O":
        return str(id_).encode()
    return id_ % (int(np.iinfo(dtype).max) + 1) if isinstance(id_, int) else 0


def _holds_ids(spec: TensorSpec) -> bool:
    return spec.datatype == "BYTES" or "INT" in spec.datatype


def mark_controls(
    inputs: Sequence[TensorSpec], declared: Sequence[ControlDeclaration]
) -> tuple[tuple[TensorSpec, ...], tuple[ControlSpec, ...]]:
    """`inputs` with the control inputs marked as the server's; and those.

    Raises LoadFailed for one that the model does not have.
    """
    specs = {spec.name: spec for spec in inputs}
    controls = []
    for control in declared:
        spec = specs.get(control.input)
        if spec is None:
            raise LoadFailed(
                f"control input '{control.input}' is not in the model, which has {', '.join(specs)}"
            )
        if control.kind is ControlKind.CORRID and not _holds_ids(spec):
            raise LoadFailed(
                f"control input '{spec.name}': expected integers or text for an id, the model's "
                f"is {spec.datatype}"
            )
        specs[spec.name] = replace(spec, state=True)
        controls.append(ControlSpec(control, spec.datatype, spec.shape))
    return tuple(specs.values()), tuple(controls)
