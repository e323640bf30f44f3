"""What goes in as a tensor, and what comes out of raw and typed contents."""

import ml_dtypes
import numpy as np
import pytest

from headrace.client import Tensor, tensors
from headrace.client.tensors import Input, as_tensor, read_outputs
from headrace.inference.tensors import encode_raw
from headrace.inference.v2.grpc_service_pb2 import ModelInferResponse


@pytest.mark.parametrize(
    ("value", "datatype"),
    [
        (np.zeros(2, np.float32), "FP32"),
        (np.zeros(2, ">f4"), "FP32"),
        ([1.5, 2.5], "FP64"),
        ([1, 2], "INT64"),
        (True, "BOOL"),
        (["a", "b"], "BYTES"),
        (np.array(["a", "b"]), "BYTES"),
        (np.zeros(2, ml_dtypes.bfloat16), "BF16"),
        (Tensor(np.zeros(2, np.uint16), "BF16"), "BF16"),
        (Tensor(np.zeros(2, ml_dtypes.bfloat16), "BF16"), "BF16"),
        (Tensor(np.zeros(2, np.uint16), "UINT16"), "UINT16"),
    ],
)
def test_the_dtype_decides_the_datatype(value: Input, datatype: str) -> None:
    assert as_tensor(value)[1].name == datatype


def test_bytes_in_a_list_keep_their_trailing_nulls() -> None:
    array, datatype = as_tensor([b"a\0", b"\0"])
    assert encode_raw(array, datatype) == b"\2\0\0\0a\0" + b"\1\0\0\0\0"


def test_text_goes_out_as_utf8() -> None:
    array, datatype = as_tensor("ß")
    assert array.shape == ()
    assert encode_raw(array, datatype) == b"\2\0\0\0\xc3\x9f"


def test_an_array_that_is_not_contiguous_goes_out_in_row_major_order() -> None:
    array, datatype = as_tensor(np.arange(6, dtype=np.int8).reshape(2, 3).T)
    assert encode_raw(array, datatype) == bytes([0, 3, 1, 4, 2, 5])


@pytest.mark.parametrize(
    ("value", "error", "said"),
    [
        (np.zeros(2, np.complex64), TypeError, "complex64"),
        (None, TypeError, "expected an array.*got None"),
        (np.array([b"a", 1], dtype=object), TypeError, "got bytes and int"),
        (["a", 1], TypeError, "got int and str"),
        ([1.0, None], TypeError, "numbers alone.*got NoneType and float"),
        ([[1], [1, 2]], ValueError, "inhomogeneous"),
        (Tensor([1.0], "FP32"), TypeError, "float32, got float64"),
        (Tensor(np.zeros(1, np.float32), "BF16"), TypeError, "uint16, got float32"),
        (Tensor(np.zeros(1, np.float32), "FP8"), ValueError, "no datatype 'FP8'; there are BOOL"),
    ],
)
def test_what_cannot_be_sent_is_refused(value: Input, error: type[Exception], said: str) -> None:
    with pytest.raises(error, match=said):
        as_tensor(value)


def response(datatype: str, shape: list[int], raw: bytes | None = None) -> ModelInferResponse:
    message = ModelInferResponse()
    message.outputs.add(name="y", datatype=datatype, shape=shape)
    if raw is not None:
        message.raw_output_contents.append(raw)
    return message


def test_raw_output() -> None:
    array = read_outputs(response("FP32", [1, 2], np.array([1, 2], "<f4").tobytes()))["y"]
    assert array.dtype == np.float32
    assert array.tolist() == [[1.0, 2.0]]
    assert not array.flags.writeable


def test_typed_output() -> None:
    message = response("INT8", [3])
    message.outputs[0].contents.int_contents.extend([1, -2, 3])
    array = read_outputs(message)["y"]
    assert array.dtype == np.int8
    assert array.tolist() == [1, -2, 3]


def test_bytes_output() -> None:
    array = read_outputs(response("BYTES", [2], b"\1\0\0\0a" + b"\0\0\0\0"))["y"]
    assert array.dtype == object
    assert array.tolist() == [b"a", b""]


def test_an_empty_output_has_no_bytes() -> None:
    assert read_outputs(response("FP32", [0, 4], b""))["y"].shape == (0, 4)
    assert read_outputs(response("FP32", [0, 4]))["y"].shape == (0, 4)


def test_bfloat16_output_with_ml_dtypes() -> None:
    array = read_outputs(response("BF16", [1], b"\xc0\x3f"))["y"]
    assert array.dtype == ml_dtypes.bfloat16
    assert float(array[0]) == 1.5


def test_bfloat16_output_without_ml_dtypes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensors, "_bfloat16", lambda: None)
    array = read_outputs(response("BF16", [1], b"\xc0\x3f"))["y"]
    assert array.dtype == np.uint16
    assert array.tolist() == [0x3FC0]


@pytest.mark.parametrize(
    ("message", "said"),
    [
        (response("FP32", [2], b"1234"), "output 'y': expected 8 bytes"),
        (response("FP32", [2]), "output 'y': expected 2 elements"),
        (response("FP8", [2], b"12"), "output 'y': no datatype 'FP8'"),
        (ModelInferResponse(raw_output_contents=[b""]), "0 outputs, but 1 raw"),
    ],
)
def test_a_response_that_contradicts_itself_is_refused(
    message: ModelInferResponse, said: str
) -> None:
    with pytest.raises(ValueError, match=said):
        read_outputs(message)
