"""Tensors survive both layouts, and a message that lies about itself is refused in words."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from headrace.inference.tensors import (
    DATATYPES,
    Array,
    Datatype,
    datatype_of,
    decode_contents,
    decode_raw,
    element_count,
    encode_raw,
)
from headrace.inference.v2 import grpc_service_pb2 as pb

FIXED = [d for d in DATATYPES.values() if d.itemsize]
TYPED = [d for d in DATATYPES.values() if d.contents]
SHAPES = hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4)
BYTES = DATATYPES["BYTES"]
FP32 = DATATYPES["FP32"]


def strings(shape: tuple[int, ...]) -> st.SearchStrategy[Array]:
    count = element_count(shape)
    return st.lists(st.binary(max_size=9), min_size=count, max_size=count).map(
        lambda values: objects(values).reshape(shape)
    )


def objects(values: list[Any]) -> Array:
    out = np.empty(len(values), dtype=object)
    for index, value in enumerate(values):
        out[index] = value
    return out


def tensors(datatype: Datatype) -> st.SearchStrategy[Array]:
    if datatype is BYTES:
        return SHAPES.flatmap(strings)
    return hnp.arrays(datatype.numpy, SHAPES)


def bits(array: Array) -> bytes:
    """NaNs included, which compare unequal."""
    return array.tobytes()


@pytest.mark.parametrize("datatype", FIXED, ids=lambda d: d.name)
@given(data=st.data())
def test_raw_contents_round_trip(datatype: Datatype, data: st.DataObject) -> None:
    array = data.draw(tensors(datatype))
    raw = encode_raw(array, datatype)
    back = decode_raw(raw, datatype, array.shape)
    assert (back.shape, back.dtype, bits(back)) == (array.shape, array.dtype, bits(array))
    assert array.size == 0 or np.shares_memory(back, np.frombuffer(raw, np.uint8))


@given(array=SHAPES.flatmap(strings))
def test_raw_bytes_round_trip(array: Array) -> None:
    back = decode_raw(encode_raw(array, BYTES), BYTES, array.shape)
    assert back.shape == array.shape
    assert back.tolist() == array.tolist()


@pytest.mark.parametrize("datatype", TYPED, ids=lambda d: d.name)
@given(data=st.data())
def test_typed_contents_round_trip(datatype: Datatype, data: st.DataObject) -> None:
    array = data.draw(tensors(datatype))
    contents = pb.InferTensorContents()
    getattr(contents, datatype.contents).extend(array.ravel().tolist())
    back = decode_contents(contents, datatype, array.shape)
    assert (back.shape, back.dtype) == (array.shape, datatype.numpy)
    if datatype is BYTES:
        assert back.tolist() == array.tolist()
    else:
        assert np.array_equal(back, array, equal_nan=array.dtype.kind == "f")


@given(buffer=st.binary(max_size=40), shape=SHAPES)
def test_any_buffer_is_bytes_that_encode_back_or_is_refused(
    buffer: bytes, shape: tuple[int, ...]
) -> None:
    try:
        array = decode_raw(buffer, BYTES, shape)
    except ValueError:
        return
    assert array.shape == shape
    assert encode_raw(array, BYTES) == buffer


@given(array=hnp.arrays(np.float32, hnp.array_shapes(max_dims=2, max_side=4)), cut=st.integers(1))
def test_a_raw_tensor_that_is_cut_off_is_refused(array: Array, cut: int) -> None:
    raw = encode_raw(array, FP32)
    with pytest.raises(ValueError, match=rf"^expected {len(raw)} bytes for FP32"):
        decode_raw(raw[: -min(cut, len(raw))], FP32, array.shape)


@pytest.mark.parametrize("size", [0, 7, 9, 16])
def test_a_raw_tensor_of_another_size_is_refused(size: int) -> None:
    said = rf"^expected 8 bytes for FP32 of shape \[2\], got {size}$"
    with pytest.raises(ValueError, match=said):
        decode_raw(b"\0" * size, FP32, [2])


@pytest.mark.parametrize(
    ("buffer", "shape", "said"),
    [
        (b"", [1], "expected 1 BYTES elements, each with a 4-byte length, got 0 bytes"),
        (b"", [], "expected 1 BYTES elements, each with a 4-byte length, got 0 bytes"),
        (b"\1\0\0\0a", [2], "expected 2 BYTES elements, each with a 4-byte length, got 5 bytes"),
        (b"\5\0\0\0abcd", [1], "BYTES element 0 of 1 says 5 bytes, 4 are left"),
        (b"\xff\xff\xff\xff", [1], "BYTES element 0 of 1 says 4294967295 bytes, 0 are left"),
        (b"\3\0\0\0abc\0", [2], "the length of BYTES element 1 of 2 is cut off"),
        (b"\1\0\0\0abc", [1], "2 bytes follow the last of 1 BYTES elements"),
        (b"a", [0], "1 bytes follow the last of 0 BYTES elements"),
        (b"\0" * 8, [2**31, 2**33], "expected 18446744073709551616 BYTES elements"),
    ],
)
def test_lying_bytes_are_refused(buffer: bytes, shape: list[int], said: str) -> None:
    with pytest.raises(ValueError, match=r"^(expected|BYTES|the length|\d+ bytes)") as caught:
        decode_raw(buffer, BYTES, shape)
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ([2**40], 4 << 40),
        ([2**31, 2**31], 4 << 62),
        # 2**64 elements of 4 bytes: as 64-bit numbers both products wrap to 0.
        ([2**32, 2**32], 4 << 64),
        ([2**62, 2**62, 2**62], 4 << 186),
    ],
)
def test_huge_shapes_are_refused_before_anything_is_allocated(
    shape: list[int], expected: int
) -> None:
    with pytest.raises(ValueError, match=rf"expected {expected} bytes for FP32 .*, got 0"):
        decode_raw(b"", FP32, shape)
    with pytest.raises(ValueError, match=rf"expected {expected // 4} elements .*, got 0"):
        decode_contents(pb.InferTensorContents(), FP32, shape)


@pytest.mark.parametrize("shape", [[0, 2**62], [0] + [1] * 70])
def test_an_empty_tensor_that_numpy_cannot_shape_is_a_value_error(shape: list[int]) -> None:
    with pytest.raises(ValueError, match=r"too big|maximum supported dimension"):
        decode_raw(b"", FP32, shape)


def test_a_zero_dimension_holds_nothing() -> None:
    assert decode_raw(b"", FP32, [0, 5]).shape == (0, 5)
    assert decode_raw(b"", BYTES, [3, 0]).shape == (3, 0)


@pytest.mark.parametrize(
    ("contents", "datatype", "shape", "said"),
    [
        (
            pb.InferTensorContents(int_contents=[1]),
            "FP32",
            [1],
            "FP32 is carried by fp32_contents, got int_contents",
        ),
        (
            pb.InferTensorContents(fp32_contents=[1], bool_contents=[True]),
            "FP32",
            [1],
            "FP32 is carried by fp32_contents, got bool_contents",
        ),
        (
            pb.InferTensorContents(fp32_contents=[1]),
            "FP16",
            [1],
            "FP16 has no typed contents, it travels as raw contents",
        ),
        (
            pb.InferTensorContents(),
            "BF16",
            [1],
            "BF16 has no typed contents, it travels as raw contents",
        ),
        (
            pb.InferTensorContents(fp32_contents=[1, 2, 3]),
            "FP32",
            [2, 2],
            "expected 4 elements for shape [2, 2], got 3",
        ),
        (pb.InferTensorContents(), "INT64", [], "expected 1 elements for shape [], got 0"),
        (pb.InferTensorContents(int_contents=[128]), "INT8", [1], "out of range for INT8"),
        (pb.InferTensorContents(int_contents=[-32769]), "INT16", [1], "out of range for INT16"),
        (pb.InferTensorContents(uint_contents=[256]), "UINT8", [1], "out of range for UINT8"),
        (pb.InferTensorContents(uint_contents=[1 << 16]), "UINT16", [1], "out of range for UINT16"),
    ],
)
def test_typed_contents_that_do_not_fit_are_refused(
    contents: pb.InferTensorContents, datatype: str, shape: list[int], said: str
) -> None:
    with pytest.raises(ValueError, match=r".") as caught:
        decode_contents(contents, DATATYPES[datatype], shape)
    assert said in str(caught.value)


@pytest.mark.parametrize("datatype", FIXED, ids=lambda d: d.name)
def test_each_dtype_has_its_datatype(datatype: Datatype) -> None:
    array = np.zeros(1, datatype.numpy)
    expected = "UINT16" if datatype.name == "BF16" else datatype.name
    assert datatype_of(array).name == expected
    assert datatype_of(array.astype(array.dtype.newbyteorder(">"))).name == expected


@pytest.mark.parametrize(
    ("array", "name"),
    [
        (np.zeros(1, np.longlong), "INT64"),
        (np.zeros(1, np.uintc), "UINT32"),
        (np.array(["a"]), "BYTES"),
        (np.array([b"a"]), "BYTES"),
        (np.array([None]), "BYTES"),
    ],
)
def test_aliases_and_strings_have_a_datatype(array: Array, name: str) -> None:
    assert datatype_of(array).name == name


@pytest.mark.parametrize("dtype", ["c8", "M8[s]", "V4"])
def test_other_dtypes_have_none(dtype: str) -> None:
    with pytest.raises(TypeError, match="no datatype of the protocol"):
        datatype_of(np.zeros(1, dtype))


def test_big_endian_and_strided_arrays_go_out_little_endian_and_row_major() -> None:
    array = np.array([[1, 2], [3, 4]], ">u2").T
    assert encode_raw(array, DATATYPES["UINT16"]) == bytes([1, 0, 3, 0, 2, 0, 4, 0])


def test_text_and_other_objects_go_out_as_utf8() -> None:
    array = objects(["ß", b"\xff", 7])
    assert encode_raw(array, BYTES) == b"\2\0\0\0\xc3\x9f\1\0\0\0\xff\1\0\0\0" + b"7"
