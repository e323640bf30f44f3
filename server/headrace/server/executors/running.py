"""One run of an ONNX Runtime session."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any, Final, Protocol

import numpy as np
import onnxruntime as ort

from headrace.inference.tensors import Array
from headrace.server.executors.payload import Key

_BFLOAT16: Final = 16  # onnx.TensorProto.BFLOAT16: NumPy has no such dtype, OrtValues carry it


class Session(Protocol):
    """What is asked of an ONNX Runtime session."""

    def run(self, outputs: list[str], feeds: dict[str, Array], options: Any = None) -> Any: ...

    def run_with_ort_values(
        self, outputs: list[str], feeds: dict[str, Any], options: Any = None
    ) -> Any: ...


def run_session(
    session: Session,
    key: Key,
    feeds: Sequence[Array],
    options: ort.RunOptions | None = None,
) -> list[Array]:
    """Runs `session` on `feeds` (in the order of the key's inputs). BF16 tensors are uint16 bits.

    Raises whatever ONNX Runtime raises.
    """
    constants = key.layout.constants
    if not key.bfloat16:
        names = (name for name, _, _ in key.inputs)
        arrays: list[Array] = session.run(
            list(key.outputs), {**dict(zip(names, feeds, strict=True)), **constants}, options
        )
        return arrays
    values = {
        name: ort.OrtValue.ortvalue_from_numpy_with_onnx_type(array, _BFLOAT16)
        if datatype == "BF16"
        else ort.OrtValue.ortvalue_from_numpy(array)
        for (name, datatype, _), array in zip(key.inputs, feeds, strict=True)
    }
    for name, array in constants.items():
        values[name] = ort.OrtValue.ortvalue_from_numpy(array)
    outputs = session.run_with_ort_values(list(key.outputs), values, options)
    return [_to_numpy(value) for value in outputs]


def _to_numpy(value: Any) -> Array:
    if value.data_type() != "tensor(bfloat16)":
        array: Array = value.numpy()
        return array
    shape = value.shape()
    count = int(np.prod(shape, dtype=np.int64))
    if count == 0:
        return np.empty(shape, np.uint16)
    bits = memoryview((ctypes.c_uint16 * count).from_address(value.data_ptr()))
    return np.array(bits, np.uint16).reshape(shape)
