"""What the batcher hands to an executor unseen: a request's tensors, and the key of its kind."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from headrace.inference.tensors import Array
from headrace.server.executors.layout import PLAIN, TensorLayout


@dataclass(slots=True, init=False)
class Payload:
    """What a request asks of a session.

    inputs: an array for each name of the key's inputs, in that order. Of a batched model, the first
        axis counts rows.
    length: of inputs that are to be padded to the length of their key; 0 when they have the key's
        own dimensions.
    """

    inputs: Sequence[Array]
    length: int

    def __init__(self, inputs: Sequence[Array], length: int = 0) -> None:
        self.inputs = inputs
        self.length = length


@dataclass(frozen=True, slots=True)
class Key:
    """The compatibility key: requests with equal keys can be one batch.

    inputs: name, datatype and non-batch dimensions of each, as the model is run: a padded length in
    place of a request's own. outputs: the names asked for, in order.
    bfloat16: whether any of these tensors is BF16, which takes a slower way through ONNX Runtime.
    layout: batch axes other than the first, and inputs that are fixed.
    empty: whether the tensors have no rows. What such a run takes says nothing of others.
    """

    inputs: tuple[tuple[str, str, tuple[int, ...]], ...]
    outputs: tuple[str, ...]
    bfloat16: bool = False
    layout: TensorLayout = PLAIN
    empty: bool = False
    _hash: int = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        # Asked for a dozen times for each batch.
        found = hash((self.inputs, self.outputs, self.bfloat16, self.layout, self.empty))
        object.__setattr__(self, "_hash", found)

    def __hash__(self) -> int:
        return self._hash

    def __str__(self) -> str:
        """As people read it: "image FP32[3,48,192] -> scores"; a row's dimensions."""
        said = (f"{name} {type_}[{','.join(map(str, dims))}]" for name, type_, dims in self.inputs)
        return f"{', '.join(said)} -> {', '.join(self.outputs)}"
