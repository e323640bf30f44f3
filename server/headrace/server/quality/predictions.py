"""What an output says, in the terms in which truths are told: classes, or values."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from headrace.inference.tensors import Array
from headrace.server.quality.options import QualityOptions


def as_float(array: Array, datatype: str) -> Array:
    """Numbers as float64. BF16 comes as its bits."""
    if datatype == "BF16":
        array = (array.astype("<u4") << 16).view("<f4")
    return array.astype(np.float64)


def predicted(array: Array, datatype: str, options: QualityOptions) -> Array:
    """What an output of `datatype`, rows first, predicts, flat: float64 values of regression; of
    classification int64 indexes, or bytes where the output is text.

    Whole numbers, truth values and text are classes themselves. Of scores the largest along
    `options.axis` counts; one that is alone in its row is class 1 from the threshold on.
    """
    if options.task == "regression":
        return as_float(array, datatype).ravel()
    if datatype == "BYTES":
        return as_bytes(array.ravel().tolist())
    if not is_score(datatype):
        return array.ravel().astype(np.int64)
    scores = as_float(array, datatype)
    if scores.size <= len(scores):  # one a row, or none
        return (scores.ravel() >= options.threshold).astype(np.int64)
    return np.asarray(scores.argmax(options.axis)).ravel().astype(np.int64)


def is_score(datatype: str) -> bool:
    """Whether elements of `datatype` say how likely a class is, rather than which it is."""
    return datatype.startswith(("FP", "BF"))


def as_bytes(elements: Sequence[str | bytes]) -> Array:
    """An array of objects: one of NumPy's own strings would drop zeros at their ends."""
    found = np.empty(len(elements), dtype=object)
    for index, element in enumerate(elements):
        found[index] = element.encode() if isinstance(element, str) else bytes(element)
    return found
