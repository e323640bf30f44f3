"""Large outputs, left where ONNX Runtime wrote them.

`InferenceSession.run` copies each output into an array of NumPy's. Here the array is a view of the
output itself, which it keeps alive. That takes a few microseconds more for each tensor, so it is
done for outputs that are large; measured in docs/performance.md, "Copies of a tensor".
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnxruntime as ort

from headrace.inference.tensors import Array

LARGE = 1 << 17
"""Bytes of a batch's outputs together from which they are not copied."""

_DTYPES = {
    "tensor(bool)": "?",
    "tensor(uint8)": "|u1",
    "tensor(uint16)": "<u2",
    "tensor(uint32)": "<u4",
    "tensor(uint64)": "<u8",
    "tensor(int8)": "|i1",
    "tensor(int16)": "<i2",
    "tensor(int32)": "<i4",
    "tensor(int64)": "<i8",
    "tensor(float16)": "<f2",
    "tensor(float)": "<f4",
    "tensor(double)": "<f8",
}


class _Held:
    """Lends NumPy the memory of an OrtValue, and keeps it and the session that it came from."""

    __slots__ = ("__array_interface__", "_session", "_value")

    def __init__(self, value: Any, session: ort.InferenceSession, dtype: str) -> None:
        self._value = value
        self._session = session  # an output may be a constant of its graph
        self.__array_interface__ = {
            "version": 3,
            "shape": tuple(value.shape()),
            "typestr": dtype,
            "data": (value.data_ptr(), True),
        }


def run_in_place(
    session: ort.InferenceSession,
    outputs: Sequence[str],
    feeds: Mapping[str, Array],
    options: ort.RunOptions | None = None,
) -> list[Array]:
    """As ONNX Runtime's `run` for a session on the CPU whose inputs hold numbers, with outputs that
    are read-only views. None of them lies in an input: such a one is copied.

    Raises whatever ONNX Runtime raises.
    """
    arrays = {name: np.asarray(array, order="C") for name, array in feeds.items()}
    values = {name: ort.OrtValue.ortvalue_from_numpy(array) for name, array in arrays.items()}
    found = session.run_with_ort_values(list(outputs), values, options)
    return [_array(value, session, arrays) for value in found]


def _array(value: Any, session: ort.InferenceSession, inputs: Mapping[str, Array]) -> Array:
    dtype, shape = _DTYPES.get(value.data_type()), value.shape()
    if dtype is None or 0 in shape:  # text, or nothing, which has no address
        copied: Array = value.numpy()
        return copied
    array = np.asarray(_Held(value, session, dtype))
    # The input is the caller's, or a buffer that the next batch is gathered into.
    if any(np.may_share_memory(array, given) for given in inputs.values()):
        return array.copy()
    return array
