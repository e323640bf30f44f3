"""How servers that do not speak gRPC want their requests, and how they answer.

Two formats serve all of them. `safetensors` (github.com/huggingface/safetensors) is a length, a
JSON header and raw bytes, so that a body is as long as the same tensors in gRPC; it has no strings.
The Open Inference Protocol over HTTP with its binary tensor extension is a JSON header, whose
length an HTTP header gives, and raw bytes.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from headrace.bench.transports import Prepared

Array = npt.NDArray[Any]
Inputs = Mapping[str, Array]
Prepare = Callable[[str, Inputs], Prepared]
# From a response's body and its headers, whose names are in lower case.
Read = Callable[[bytes, Mapping[str, str]], dict[str, Array]]

_SAFETENSORS = {
    "bool": "BOOL",
    "uint8": "U8",
    "uint16": "U16",
    "uint32": "U32",
    "uint64": "U64",
    "int8": "I8",
    "int16": "I16",
    "int32": "I32",
    "int64": "I64",
    "float16": "F16",
    "float32": "F32",
    "float64": "F64",
}
_OIP = {
    name: {"bool": "BOOL", "float16": "FP16", "float32": "FP32", "float64": "FP64"}.get(
        name, name.upper()
    )
    for name in _SAFETENSORS
}
_HEADER_LENGTH = "inference-header-content-length"
_BINARY = (("content-type", "application/octet-stream"),)
_JSON = (("content-type", "application/json"),)


@dataclass(frozen=True, slots=True)
class Adaptor:
    """`prepare` makes a request for a model, `read` the arrays of an answer. Both raise ValueError
    for what the format cannot carry."""

    prepare: Prepare
    read: Read


def adaptor(name: str) -> Prepare:
    """How requests are made for the adaptor of this name. Raises ValueError for an unknown one."""
    return find(name).prepare


def find(name: str) -> Adaptor:
    """The adaptor of this name. Raises ValueError for an unknown one."""
    try:
        return ADAPTORS[name]
    except KeyError:
        known = ", ".join(sorted(ADAPTORS))
        raise ValueError(f"adaptor: expected one of {known}, got {name!r}") from None


def _dtype(name: str, array: Array, words: Mapping[str, str]) -> str:
    try:
        return words[array.dtype.name]
    except KeyError:
        raise ValueError(f"tensor {name!r}: dtype {array.dtype.name} has no binary form") from None


def encode_safetensors(tensors: Inputs) -> bytes:
    """A file of the safetensors format. The header is padded so that the data start on a multiple
    of eight bytes, as the format recommends."""
    header: dict[str, Any] = {}
    parts: list[bytes] = []
    end = 0
    for name, array in tensors.items():
        part = np.ascontiguousarray(array).tobytes()
        header[name] = {
            "dtype": _dtype(name, array, _SAFETENSORS),
            "shape": list(array.shape),
            "data_offsets": [end, end + len(part)],
        }
        parts.append(part)
        end += len(part)
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return b"".join([struct.pack("<Q", len(text)), text, *parts])


def decode_safetensors(body: bytes) -> dict[str, Array]:
    """The tensors of a file of the safetensors format."""
    (length,) = struct.unpack_from("<Q", body)
    data = memoryview(body)[8 + length :]
    numpy_names = {word: name for name, word in _SAFETENSORS.items()}
    tensors: dict[str, Array] = {}
    for name, entry in json.loads(body[8 : 8 + length]).items():
        if name != "__metadata__":
            start, stop = entry["data_offsets"]
            flat: Array = np.frombuffer(data[start:stop], numpy_names[entry["dtype"]])
            tensors[name] = flat.reshape(entry["shape"])
    return tensors


def _safetensors(path: str) -> Adaptor:
    def prepare(_: str, inputs: Inputs) -> Prepared:
        return Prepared(path, encode_safetensors(inputs), _BINARY)

    return Adaptor(prepare, lambda body, _: decode_safetensors(body))


def _prepare_rows(_: str, inputs: Inputs) -> Prepared:
    request = {name: array.tolist() for name, array in inputs.items()}
    body = json.dumps({"requests": [request]}, separators=(",", ":")).encode()
    return Prepared("/infer", body, _JSON)


def _read_rows(body: bytes, _: Mapping[str, str]) -> dict[str, Array]:
    (answer,) = json.loads(body)
    return {name: np.array(data) for name, data in answer.items()}


def _prepare_oip(model: str, inputs: Inputs) -> Prepared:
    tensors, parts = [], []
    for name, array in inputs.items():
        part = np.ascontiguousarray(array).tobytes()
        tensors.append(
            {
                "name": name,
                "datatype": _dtype(name, array, _OIP),
                "shape": list(array.shape),
                "parameters": {"binary_data_size": len(part)},
            }
        )
        parts.append(part)
    asked = {"inputs": tensors, "parameters": {"binary_data_output": True}}
    header = json.dumps(asked, separators=(",", ":")).encode()
    return Prepared(
        f"/v2/models/{model}/infer",
        b"".join([header, *parts]),
        (*_BINARY, (_HEADER_LENGTH, str(len(header)))),
    )


def _read_oip(body: bytes, headers: Mapping[str, str]) -> dict[str, Array]:
    start = int(headers.get(_HEADER_LENGTH, len(body)))
    numpy_names = {word: name for name, word in _OIP.items()}
    tensors: dict[str, Array] = {}
    for output in json.loads(body[:start])["outputs"]:
        dtype = numpy_names[output["datatype"]]
        size = output.get("parameters", {}).get("binary_data_size")
        if size is None:
            flat: Array = np.array(output["data"], dtype)
        else:
            flat = np.frombuffer(body[start : start + size], dtype)
            start += size
        tensors[output["name"]] = flat.reshape(output["shape"])
    return tensors


ADAPTORS: dict[str, Adaptor] = {
    "oip": Adaptor(_prepare_oip, _read_oip),
    "mosec": _safetensors("/inference"),
    "litserve": _safetensors("/predict"),
    "bentoml": _safetensors("/infer"),
    "bentoml-json": Adaptor(_prepare_rows, _read_rows),
}
