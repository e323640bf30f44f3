"""Answers that wait for their truths."""

from __future__ import annotations

from collections import OrderedDict
from typing import NamedTuple

from headrace.inference.tensors import Array

# What an entry takes beside its elements, about: its key, and the objects that hold it together.
_OVERHEAD = 400
_ELEMENT_OVERHEAD = 64  # of an element of text


class Name(NamedTuple):
    """An answer's request, by its own id, which is unique only among those of one identity."""

    identity: str
    request_id: str


class Answers:
    """What was predicted, by request: at most so `many` in so much memory. The oldest go first."""

    def __init__(self, many: int, nbytes: int) -> None:
        self.nbytes = 0
        self._many = many
        self._most_bytes = nbytes
        self._kept: OrderedDict[Name, Array] = OrderedDict()

    def __len__(self) -> int:
        return len(self._kept)

    def put(self, name: Name, predicted: Array) -> None:
        """In place of an earlier answer to a request of the same name."""
        self.take(name)
        if _size(name, predicted) > self._most_bytes:
            return
        self._kept[name] = predicted
        self.nbytes += _size(name, predicted)
        while len(self._kept) > self._many or self.nbytes > self._most_bytes:
            self.take(next(iter(self._kept)))

    def get(self, name: Name) -> Array | None:
        return self._kept.get(name)

    def take(self, name: Name) -> Array | None:
        """The answer, which is then kept no longer; None where there is none."""
        predicted = self._kept.pop(name, None)
        if predicted is not None:
            self.nbytes -= _size(name, predicted)
        return predicted


def _size(name: Name, predicted: Array) -> int:
    text = 0
    if predicted.dtype == object:
        text = sum(len(element) + _ELEMENT_OVERHEAD for element in predicted)
    return _OVERHEAD + len(name.request_id) + predicted.nbytes + text
