"""Bringing rows of unequal length to one length, and cutting their answers back.

Done only for models where a probe at load has shown that it leaves the answers alone
(`models/padding.py`).
"""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from headrace.inference.tensors import Array

# Name, datatype and non-batch dimensions of each input, as the compatibility key has them.
Inputs = tuple[tuple[str, str, tuple[int, ...]], ...]


class Mode(enum.Enum):
    """What stands behind the true part of a row.

    MASK fills with zeros as ZEROS does; there the model is told so by its mask, which ends in zeros
    too.
    """

    ZEROS = "zeros"
    EDGE = "edge"
    MASK = "mask"


@dataclass(frozen=True, slots=True)
class LengthRule:
    """How long an output is along `axis`, for inputs of a given length.

    (length + offset) // stride: any chain of strides that round down or up comes to this.
    """

    axis: int
    stride: int
    offset: int

    def __str__(self) -> str:
        length = f"length {self.offset:+}" if self.offset else "length"
        if self.stride == 1:
            return length
        return f"({length}) // {self.stride}" if self.offset else f"{length} // {self.stride}"

    def size(self, length: int) -> int:
        return max(0, (length + self.offset) // self.stride)


@dataclass(frozen=True, slots=True)
class Padding:
    """How a model's rows are padded at the end.

    inputs: the axis of the length, by name, of each input that has one. outputs: the rules of each
    output, by name; none for one whose shape does not depend on the length. Axes count the batch
    dimension as 0.
    """

    mode: Mode
    inputs: Mapping[str, int]
    outputs: Mapping[str, Sequence[LengthRule]]

    def length(self, inputs: Inputs) -> int:
        """The length that all of `inputs` have; 0 where they have none, or not the same."""
        lengths = {dims[self.inputs[n] - 1] for n, _, dims in inputs if n in self.inputs}
        return lengths.pop() if len(lengths) == 1 else 0

    def stretched(self, inputs: Inputs, length: int) -> Inputs:
        """`inputs` with `length` in place of their own."""
        return tuple(
            (name, datatype, self._stretched(name, dims, length)) for name, datatype, dims in inputs
        )

    def _stretched(self, name: str, dims: tuple[int, ...], length: int) -> tuple[int, ...]:
        if name not in self.inputs:
            return dims
        at = self.inputs[name] - 1
        return (*dims[:at], length, *dims[at + 1 :])

    def fill(self, name: str, target: Array, source: Array) -> None:
        """Writes `source`, rows of input `name`, to the beginning of `target`, padding behind it.

        Both have the same rows and dimensions but for the length, which is longer in `target`.
        """
        axis = self.inputs.get(name)
        if axis is None or source.shape[axis] == target.shape[axis]:
            target[...] = source
            return
        length = source.shape[axis]
        target[_slice(axis, 0, length)] = source
        rest = _slice(axis, length, None)
        if self.mode is Mode.EDGE:
            target[rest] = source[_slice(axis, length - 1, length)]
        else:
            target[rest] = "" if target.dtype == object else 0

    def cut(self, name: str, output: Array, length: int, padded: int) -> Array:
        """The part of output `name` that belongs to rows of `length`, padded to `padded`: a view.

        Raises ValueError when the output is not as long as its rule says: it cannot be cut.
        """
        for rule in self.outputs[name]:
            if output.shape[rule.axis] != rule.size(padded):
                raise ValueError(
                    f"output '{name}' has shape {list(output.shape)} for rows of length {padded}: "
                    f"expected {rule.size(padded)} along dimension {rule.axis}"
                )
            output = output[_slice(rule.axis, 0, rule.size(length))]
        return output


def _slice(axis: int, begin: int, end: int | None) -> tuple[Any, ...]:
    return (*[slice(None)] * axis, slice(begin, end))
