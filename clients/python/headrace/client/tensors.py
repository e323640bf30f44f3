"""NumPy at the edge of the client: what may go in as a tensor, and what comes out of one."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt

from headrace.inference.tensors import (
    DATATYPES,
    Array,
    Datatype,
    datatype_of,
    decode_contents,
    decode_raw,
)
from headrace.inference.v2.grpc_service_pb2 import ModelInferResponse


@dataclass(frozen=True, slots=True)
class Tensor:
    """An array with its datatype named, for the case that the dtype does not say it.

    That case is BF16 held as `uint16` bit patterns: `Tensor(bits, "BF16")`. For the others the
    dtype must be the datatype's own: nothing is converted.
    """

    array: npt.ArrayLike
    datatype: str


Input = npt.ArrayLike | Tensor
"""What is accepted as one input.

A NumPy array goes out as its dtype says. Anything else is first given to `np.asarray`, whose dtype
counts: a list of Python floats is FP64 and one of integers INT64. Text and bytes are BYTES (text
as UTF-8); `ml_dtypes.bfloat16` arrays are BF16.
"""

Inputs = Mapping[str, Input]


def as_tensor(value: Input) -> tuple[Array, Datatype]:
    """The array that `value` stands for, and the datatype it is sent as.

    Raises TypeError when no datatype of the protocol carries it, ValueError for a datatype that
    the protocol does not have or for lists of unequal length.
    """
    if isinstance(value, Tensor):
        array = _as_array(value.array)
        return array, _named_datatype(array, value.datatype)
    array = _as_array(value)
    return array, datatype_of(array)


def _as_array(value: npt.ArrayLike) -> Array:
    if value is None:  # which NumPy would take for an object, and we for text
        raise TypeError("expected an array, or numbers or text to make one of, got None")
    array = np.asarray(value)
    if array.dtype.kind in "SU" and not isinstance(value, np.ndarray):
        # NumPy's fixed-width strings drop trailing NULs, and these bytes may well be binary.
        array = np.asarray(value, dtype=object)
    if array.dtype.kind == "O":
        kinds = {type(element) for element in array.ravel()}
        if not all(issubclass(kind, bytes | str) for kind in kinds):
            names = " and ".join(sorted(kind.__name__ for kind in kinds))
            raise TypeError(f"expected numbers alone, or bytes and str alone (BYTES), got {names}")
    return array


def _named_datatype(array: Array, name: str) -> Datatype:
    datatype = DATATYPES.get(name)
    if datatype is None:
        raise ValueError(f"no datatype {name!r}; there are {', '.join(DATATYPES)}")
    fits = datatype_of(array) is datatype or (name == "BF16" and array.dtype == np.uint16)
    if not fits:
        raise TypeError(f"{name} takes arrays of {datatype.numpy.name}, got {array.dtype}")
    return datatype


def read_outputs(response: ModelInferResponse) -> dict[str, Array]:
    """The outputs of a response by name, from raw or typed contents, whichever the server sent.

    Raises ValueError for a response that contradicts itself.
    """
    raw = response.raw_output_contents
    if raw and len(raw) != len(response.outputs):
        raise ValueError(f"{len(response.outputs)} outputs, but {len(raw)} raw contents")
    outputs: dict[str, Array] = {}
    for index, output in enumerate(response.outputs):
        datatype = DATATYPES.get(output.datatype)
        if datatype is None:
            raise ValueError(f"output {output.name!r}: no datatype {output.datatype!r}")
        try:
            if raw:
                array = decode_raw(raw[index], datatype, output.shape)
            else:
                array = decode_contents(output.contents, datatype, output.shape)
        except ValueError as error:
            raise ValueError(f"output {output.name!r}: {error}") from error
        outputs[output.name] = as_output(array, datatype)
    return outputs


def as_output(array: Array, datatype: Datatype) -> Array:
    """As users get it: BF16 bit patterns as `ml_dtypes.bfloat16` where that is installed."""
    return _as_bfloat16(array) if datatype.name == "BF16" else array


def _as_bfloat16(bits: Array) -> Array:
    dtype = _bfloat16()
    return bits if dtype is None else bits.view(dtype)


@cache
def _bfloat16() -> np.dtype[Any] | None:
    try:
        ml_dtypes = importlib.import_module("ml_dtypes")
    except ImportError:
        return None
    dtype: np.dtype[Any] = np.dtype(ml_dtypes.bfloat16)
    return dtype
