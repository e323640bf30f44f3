"""Requests as the peers want them, and their answers read back."""

import json

import numpy as np
import pytest

from headrace.bench.adaptors import (
    ADAPTORS,
    Array,
    adaptor,
    decode_safetensors,
    encode_safetensors,
    find,
)

TENSORS: dict[str, Array] = {
    "x": np.arange(6, dtype=np.float32).reshape(2, 3),
    "length": np.array([7], np.int64),
    "half": np.array([[1.5]], np.float16),
    "on": np.array([True, False]),
    "empty": np.zeros((0, 4), np.uint8),
}


def same(left: dict[str, Array], right: dict[str, Array]) -> bool:
    return list(left) == list(right) and all(
        left[n].dtype == right[n].dtype and np.array_equal(left[n], right[n]) for n in left
    )


def test_safetensors_are_laid_out_as_the_format_says() -> None:
    body = encode_safetensors({"x": np.array([[1, 2]], np.int32)})
    length = int.from_bytes(body[:8], "little")
    header = json.loads(body[8 : 8 + length])
    assert header == {"x": {"dtype": "I32", "shape": [1, 2], "data_offsets": [0, 8]}}
    assert length % 8 == 0
    assert body[8 + length :] == np.array([1, 2], "<i4").tobytes()


def test_safetensors_come_back_as_they_went() -> None:
    assert same(decode_safetensors(encode_safetensors(TENSORS)), TENSORS)


def test_a_strided_array_is_written_in_its_own_order() -> None:
    strided = np.arange(6, dtype=np.float32).reshape(2, 3).T
    assert same(decode_safetensors(encode_safetensors({"x": strided})), {"x": strided})


@pytest.mark.parametrize("name", ["oip", "mosec"])
def test_strings_are_refused_by_name(name: str) -> None:
    with pytest.raises(ValueError, match=r"tensor 's': dtype object has no binary form"):
        adaptor(name)("m", {"s": np.array([b"a"], object)})


def test_oip_gives_the_length_of_its_header() -> None:
    request = adaptor("oip")("magika", TENSORS)
    assert request.path == "/v2/models/magika/infer"
    length = int(dict(request.headers)["inference-header-content-length"])
    inputs = json.loads(request.body[:length])["inputs"]
    assert [tensor["datatype"] for tensor in inputs] == ["FP32", "INT64", "FP16", "BOOL", "UINT8"]
    assert sum(t["parameters"]["binary_data_size"] for t in inputs) == len(request.body) - length


def test_oip_reads_binary_and_plain_outputs() -> None:
    header = json.dumps(
        {
            "outputs": [
                {
                    "name": "a",
                    "datatype": "FP32",
                    "shape": [1, 2],
                    "parameters": {"binary_data_size": 8},
                },
                {"name": "b", "datatype": "INT64", "shape": [2], "data": [3, 4]},
            ]
        }
    ).encode()
    body = header + np.array([1, 2], np.float32).tobytes()
    read = find("oip").read(body, {"inference-header-content-length": str(len(header))})
    expected: dict[str, Array] = {"a": np.array([[1, 2]], np.float32), "b": np.array([3, 4])}
    assert same(read, expected)


def test_json_rows_for_bentoml() -> None:
    request = adaptor("bentoml-json")("m", {"x": np.array([[1, 2]], np.int32)})
    assert json.loads(request.body) == {"requests": [{"x": [[1, 2]]}]}
    read = find("bentoml-json").read(b'[{"y": [[0.5]]}]', {})
    assert np.array_equal(read["y"], [[0.5]])


def test_an_unknown_adaptor_is_refused_with_those_there_are() -> None:
    with pytest.raises(ValueError, match=r"expected one of bentoml.*got 'soap'"):
        find("soap")
    assert {"bentoml", "litserve", "mosec", "oip"} <= set(ADAPTORS)
