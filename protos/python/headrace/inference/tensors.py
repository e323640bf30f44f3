"""The protocol's datatypes, and the two layouts in which tensors travel.

Server and client both read tensors from messages and write them there; this is the one place
that knows how. Facts: the Open Inference Protocol's tensor data section.

BF16 has no NumPy dtype: its elements are held as `uint16` bit patterns.
BYTES tensors are arrays of dtype `object` whose elements are `bytes`.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]


@dataclass(frozen=True, slots=True)
class Datatype:
    """One datatype of the protocol.

    `itemsize` is in bytes, 0 for BYTES. `contents` names the field of InferTensorContents that
    carries it, empty where only raw contents can. `config_value` is its number in the DataType
    enumeration of ModelConfig.
    """

    name: str
    itemsize: int
    numpy: np.dtype[Any]
    contents: str
    config_value: int


def _datatype(name: str, dtype: str, contents: str, config_value: int) -> Datatype:
    numpy = np.dtype(dtype)
    itemsize = 0 if dtype == "O" else numpy.itemsize
    return Datatype(name, itemsize, numpy, contents, config_value)


DATATYPES: dict[str, Datatype] = {
    d.name: d
    for d in (
        _datatype("BOOL", "?", "bool_contents", 1),
        _datatype("UINT8", "<u1", "uint_contents", 2),
        _datatype("UINT16", "<u2", "uint_contents", 3),
        _datatype("UINT32", "<u4", "uint_contents", 4),
        _datatype("UINT64", "<u8", "uint64_contents", 5),
        _datatype("INT8", "<i1", "int_contents", 6),
        _datatype("INT16", "<i2", "int_contents", 7),
        _datatype("INT32", "<i4", "int_contents", 8),
        _datatype("INT64", "<i8", "int64_contents", 9),
        _datatype("FP16", "<f2", "", 10),
        _datatype("FP32", "<f4", "fp32_contents", 11),
        _datatype("FP64", "<f8", "fp64_contents", 12),
        _datatype("BYTES", "O", "bytes_contents", 13),
        _datatype("BF16", "<u2", "", 14),
    )
}

_BY_NUMPY = {d.numpy: d for d in DATATYPES.values() if d.name not in ("BF16", "BYTES")}
_LENGTH = struct.Struct("<I")


def datatype_of(array: Array) -> Datatype:
    """The datatype that carries `array`.

    Raises TypeError for a dtype that the protocol has no datatype for (complex, datetime, ...).
    """
    dtype = array.dtype
    if dtype.kind in "OSU":
        return DATATYPES["BYTES"]
    if dtype.name == "bfloat16":  # ml_dtypes registers it under this name
        return DATATYPES["BF16"]
    found = _BY_NUMPY.get(dtype.newbyteorder("<"))
    if found is None:
        raise TypeError(f"no datatype of the protocol carries a NumPy array of dtype {dtype}")
    return found


def element_count(shape: Sequence[int]) -> int:
    """The number of elements of a tensor of `shape`: 1 for a scalar (an empty shape)."""
    count = 1
    for dim in shape:
        count *= dim
    return count


def encode_raw(array: Array, datatype: Datatype) -> bytes:
    """The raw contents of `array` (any shape): little-endian, row-major; BYTES length-prefixed."""
    found = raw_buffer(array, datatype)
    return found if isinstance(found, bytes) else found.tobytes()


def raw_buffer(array: Array, datatype: Datatype) -> bytes | Array:
    """The same without a copy where `array` lies in memory as it travels: an array, contiguous,
    whose buffer holds the raw contents."""
    if datatype.itemsize == 0:
        return _encode_bytes(array)
    if array.dtype.byteorder == ">":
        array = array.astype(array.dtype.newbyteorder("<"))
    return array if array.flags.c_contiguous else np.ascontiguousarray(array)


def _encode_bytes(array: Array) -> bytes:
    parts: list[bytes] = []
    for element in array.ravel():
        if isinstance(element, str):
            element = element.encode()
        elif not isinstance(element, bytes):
            element = str(element).encode()
        parts.append(_LENGTH.pack(len(element)))
        parts.append(element)
    return b"".join(parts)


def decode_raw(buffer: bytes | memoryview, datatype: Datatype, shape: Sequence[int]) -> Array:
    """The tensor that raw contents hold: for fixed-size types a read-only view, not a copy.

    Raises ValueError when the size of `buffer` is not what `datatype` and `shape` ask for.
    """
    count = element_count(shape)
    if datatype.itemsize == 0:
        return _decode_bytes(memoryview(buffer), count).reshape(shape)
    expected = count * datatype.itemsize
    if len(buffer) != expected:
        raise ValueError(
            f"expected {expected} bytes for {datatype.name} of shape {list(shape)}, "
            f"got {len(buffer)}"
        )
    return np.ndarray(shape, datatype.numpy, buffer)


def _decode_bytes(buffer: memoryview, count: int) -> Array:
    # Each element takes at least its length prefix: a lying shape must not size an allocation.
    if count * _LENGTH.size > len(buffer):
        raise ValueError(
            f"expected {count} BYTES elements, each with a 4-byte length, got {len(buffer)} bytes"
        )
    out = np.empty(count, dtype=object)
    at = 0
    for index in range(count):
        start = at + _LENGTH.size
        if start > len(buffer):
            raise ValueError(f"the length of BYTES element {index} of {count} is cut off")
        (length,) = _LENGTH.unpack_from(buffer, at)
        at = start + length
        if at > len(buffer):
            raise ValueError(
                f"BYTES element {index} of {count} says {length} bytes, "
                f"{len(buffer) - start} are left"
            )
        out[index] = bytes(buffer[start:at])
    if at != len(buffer):
        raise ValueError(f"{len(buffer) - at} bytes follow the last of {count} BYTES elements")
    return out


def decode_contents(contents: Any, datatype: Datatype, shape: Sequence[int]) -> Array:
    """The tensor that an InferTensorContents message holds.

    Raises ValueError when another field than `datatype`'s is set, or when the number or the range
    of the elements does not fit.
    """
    fields = [field.name for field, _ in contents.ListFields()]
    if not datatype.contents:
        raise ValueError(f"{datatype.name} has no typed contents, it travels as raw contents")
    wrong = [name for name in fields if name != datatype.contents]
    if wrong:
        raise ValueError(f"{datatype.name} is carried by {datatype.contents}, got {wrong[0]}")
    values = getattr(contents, datatype.contents)
    count = element_count(shape)
    if len(values) != count:
        raise ValueError(f"expected {count} elements for shape {list(shape)}, got {len(values)}")
    if datatype.itemsize == 0:
        out = np.empty(count, dtype=object)
        out[:] = list(values)
        return out.reshape(shape)
    try:
        return np.array(values, dtype=datatype.numpy).reshape(shape)
    except OverflowError as error:
        raise ValueError(f"an element is out of range for {datatype.name}: {error}") from None
