"""Tensors as a few numbers a row, cheap enough to be taken of every request."""

from __future__ import annotations

import math

import numpy as np

from headrace.inference.tensors import Array
from headrace.server.quality.predictions import as_float

# Of one tensor of one request at most so much is looked at.
_MOST_ROWS, _MOST_ELEMENTS = 16, 4096
_FEWEST = 2  # elements that vary among each other


def thinned(array: Array) -> Array:
    """Some elements of some rows of `array`, whose first dimension counts rows: a copy, [rows,
    elements], evenly taken."""
    rows = array[:: max(1, math.ceil(len(array) / _MOST_ROWS))]
    flat = rows.reshape(len(rows), math.prod(rows.shape[1:]))
    most = max(1, _MOST_ELEMENTS // max(1, len(rows)))
    return flat[:, :: max(1, math.ceil(flat.shape[1] / most))].copy()


def features(rows: Array, datatype: str) -> dict[str, Array]:
    """Numbers that tell rows apart, one for each row of `rows` ([rows, elements]) by feature.

    The mean and, where a row has several elements, their standard deviation; of text the length.
    Elements that are not finite are left out, and so are rows without any other.
    """
    if not rows.size:
        return {}
    if datatype == "BYTES":
        lengths = [[len(element) for element in row] for row in rows]
        return {"length": np.array(lengths, np.float64).mean(1)}
    numbers = as_float(rows, datatype)
    finite = np.isfinite(numbers)
    if not finite.all():
        numbers, finite = numbers[finite.any(1)], finite[finite.any(1)]
    if not numbers.size:
        return {}
    mean = np.mean(numbers, 1, where=finite)
    if numbers.shape[1] < _FEWEST:
        return {"mean": mean}
    return {"mean": mean, "std": np.std(numbers, 1, where=finite)}
