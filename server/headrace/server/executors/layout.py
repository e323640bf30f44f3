"""What shapes alone do not tell of a model's tensors: where their rows lie, and which are fixed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from headrace.inference.tensors import Array


@dataclass(frozen=True, eq=False, slots=True)
class TensorLayout:
    """One object for each model, compared by identity.

    axes: the batch axis of those tensors whose rows do not lie along the first. kept: outputs that
    outlive the batch they were computed in, and so are copied out of it. constants: inputs that are
    the same at every run, whatever the batch.
    """

    axes: Mapping[str, int] = field(default_factory=dict)
    kept: frozenset[str] = frozenset()
    constants: Mapping[str, Array] = field(default_factory=dict)

    def axis(self, name: str) -> int:
        """The batch axis of a tensor."""
        return self.axes.get(name, 0)


PLAIN = TensorLayout()


def rows_of(array: Array, axis: int, start: int, stop: int) -> Array:
    """The rows from `start` up to `stop` of `array`, as a view."""
    if axis == 0:
        return array[start:stop]
    return array[(slice(None),) * axis + (slice(start, stop),)]
