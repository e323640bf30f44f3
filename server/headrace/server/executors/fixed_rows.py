"""Models whose graph fixes the number of rows, run with fewer."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnxruntime as ort

from headrace.inference.tensors import Array


class FixedRows:
    """A session of a model that always takes `rows` rows, for 0 to `rows` of them.

    Rows are added by repeating the last one, and their answers cut off. Right for models whose
    rows do not know of each other. Every run costs what a full one does.
    """

    def __init__(self, session: ort.InferenceSession, rows: int) -> None:
        self._session = session
        self._rows = rows
        self._replaceable = {node.name for node in session.get_overridable_initializers()}

    def run(self, outputs: list[str], feeds: dict[str, Array], options: Any = None) -> list[Array]:
        """As ONNX Runtime's `run`; the outputs have as many rows as the inputs."""
        given = min(len(array) for name, array in feeds.items() if name not in self._replaceable)
        if given < self._rows:
            feeds = {
                name: array if name in self._replaceable else self._filled(array)
                for name, array in feeds.items()
            }
        return [output[:given] for output in self._session.run(outputs, feeds, options)]

    def run_with_ort_values(
        self, outputs: list[str], feeds: dict[str, Any], options: Any = None
    ) -> Any:
        """Raises TypeError: models with BF16 tensors are not run this way."""
        raise TypeError("BF16 tensors cannot be padded to a fixed number of rows")

    def _filled(self, array: Array) -> Array:
        if len(array) == 0:
            zero: Any = "" if array.dtype == object else 0
            return np.full((self._rows, *array.shape[1:]), zero, array.dtype)
        return np.concatenate([array, np.repeat(array[-1:], self._rows - len(array), axis=0)])
