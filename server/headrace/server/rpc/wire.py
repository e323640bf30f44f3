"""Reads ModelInferRequest messages without copying large tensors.

protobuf copies a bytes field twice on its way to Python: into the message's arena, and out of it at
each access. For a large message the raw tensors are therefore found in the serialized bytes and
viewed there; only the rest is parsed. Format: the protobuf encoding guide.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from headrace.inference.v2 import grpc_service_pb2 as pb

# Below this, one pass of protobuf's C parser costs less than walking the fields in Python.
THRESHOLD = 32 * 1024

_RAW_FIELD = pb.ModelInferRequest.RAW_INPUT_CONTENTS_FIELD_NUMBER
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_LONGEST_TAG = 5


class WireRequest(NamedTuple):
    """A parsed request whose raw_input_contents stand beside it, as `raw`."""

    message: pb.ModelInferRequest
    raw: Sequence[bytes | memoryview]


def parse(data: bytes) -> WireRequest:
    """Raises google.protobuf.message.DecodeError for what is no ModelInferRequest."""
    if len(data) >= THRESHOLD:
        found = _split(memoryview(data))
        if found is not None:
            rest, raw = found
            return WireRequest(pb.ModelInferRequest.FromString(rest), raw)
    message = pb.ModelInferRequest.FromString(data)
    return WireRequest(message, message.raw_input_contents)


def _split(data: memoryview) -> tuple[bytes, list[memoryview]] | None:
    """The message without its raw tensors, and those. None when it is not well formed."""
    rest: list[memoryview] = []
    raw: list[memoryview] = []
    at, end = 0, len(data)
    try:
        while at < end:
            start = at
            tag, at = _varint(data, at)
            if at - start > _LONGEST_TAG:
                return None
            kind = tag & 7
            if kind == _BYTES:
                length, at = _varint(data, at)
                at += length
            elif kind == _VARINT:
                _, at = _varint(data, at)
            elif kind in (_FIXED64, _FIXED32):
                at += 8 if kind == _FIXED64 else 4
            else:
                return None
            if at > end:
                return None
            if tag == _RAW_FIELD << 3 | _BYTES:
                raw.append(data[at - length : at])
            else:
                rest.append(data[start:at])
    except IndexError:
        return None
    return b"".join(rest), raw


def _varint(data: memoryview, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
        if shift > 63:
            raise IndexError("a varint has at most ten bytes")
