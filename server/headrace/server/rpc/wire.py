"""Takes ModelInferRequest messages apart without copying tensors, or parsing the same twice.

protobuf copies a bytes field twice on its way to Python: into the message's arena, and out of it at
each access. The raw tensors are therefore found in the serialized bytes and viewed there. What is
left, but for the id, is the same bytes in request after request of one kind of caller: it is parsed
once, and what later steps learn of it is kept beside it. Format: the protobuf encoding guide.

Measured, CPU time of the way from bytes to a checked request: docs/performance.md, "What a request
costs".
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from google.protobuf.message import DecodeError

from headrace.inference.v2 import grpc_service_pb2 as pb

# Tags of length-delimited fields.
_ID: Final[int] = pb.ModelInferRequest.ID_FIELD_NUMBER << 3 | 2
_RAW: Final[int] = pb.ModelInferRequest.RAW_INPUT_CONTENTS_FIELD_NUMBER << 3 | 2
_VARINT: Final = 0
_FIXED64: Final = 1
_BYTES: Final = 2
_FIXED32: Final = 5
_LONGEST_TAG: Final = 5

# Heads that are kept: how many, and of how many bytes at most.
_KEPT_HEADS: Final = 512
_LONGEST_HEAD: Final = 1024


# Fields of a message, not counting those inside them: an empty tensor takes two bytes on the wire
# and a hundred in memory.
_MOST_FIELDS: Final = 1 << 16
# What is not understood here is left to protobuf, but not in sizes that nobody means.
_LARGEST_ODD: Final = 1 << 20


class Head:
    """A request message without its id and its raw tensors.

    message: not to be changed, since requests share it. model, version: what it names. kept:
    whether others may come to share it. nbytes: what it took on the wire. asked: what the codec has
    read from it; None until then.
    """

    __slots__ = ("asked", "kept", "message", "model", "nbytes", "version")

    def __init__(
        self, message: pb.ModelInferRequest, *, kept: bool = False, nbytes: int = 0
    ) -> None:
        self.message = message
        self.model: str = message.model_name
        self.version: str = message.model_version
        self.nbytes = nbytes
        self.kept = kept
        self.asked: Any = None


class WireRequest:
    """A request in its parts. `raw` are its raw_input_contents, views of the bytes that came."""

    __slots__ = ("head", "id", "raw")

    def __init__(self, head: Head, id: str, raw: Sequence[memoryview]) -> None:
        self.head = head
        self.id = id
        self.raw = raw


class Reader:
    """Reads messages. It keeps the heads seen last, a few hundred of them, and small ones only."""

    def __init__(self, longest_head: int = 64 << 20) -> None:
        """`longest_head`: in bytes, of a message without its id and its raw tensors."""
        self._longest_head = longest_head
        self._heads: dict[bytes, Head] = {}

    def read(self, data: bytes) -> WireRequest:
        """Raises google.protobuf.message.DecodeError for what is no ModelInferRequest."""
        return self.assemble(split(data))

    def assemble(self, parts: Parts) -> WireRequest:
        """`read` for a message that has been taken apart."""
        head = self._heads.get(parts.head)
        if head is None:
            head = self._parse(parts)
        return WireRequest(head, parts.id, parts.raw)

    def _parse(self, parts: Parts) -> Head:
        if len(parts.head) > self._longest_head:
            raise DecodeError(
                f"expected at most {self._longest_head} bytes beside raw_input_contents, got "
                f"{len(parts.head)}: send large tensors there"
            )
        message = pb.ModelInferRequest.FromString(parts.head)
        # Typed contents stand in the head, and a sequence's id: neither is likely to come again.
        kept = bool(parts.raw) and len(parts.head) <= _LONGEST_HEAD
        kept = kept and "sequence_id" not in message.parameters
        head = Head(message, kept=kept, nbytes=len(parts.head))
        if head.kept:
            if len(self._heads) >= _KEPT_HEADS:
                self._heads.clear()
            self._heads[parts.head] = head
        return head


class Parts:
    """A serialized request taken apart. head: the message without its id and its raw tensors,
    serialized still."""

    __slots__ = ("head", "id", "raw")

    def __init__(self, head: bytes, id: str, raw: Sequence[memoryview]) -> None:
        self.head = head
        self.id = id
        self.raw = raw


def split(data: bytes) -> Parts:
    """Raises google.protobuf.message.DecodeError for what is no ModelInferRequest."""
    return _split(data) or _split_by_protobuf(data)


def _split(data: bytes) -> Parts | None:
    """None when the message is not well formed, or in a way that is not worth knowing."""
    view = memoryview(data)
    rest: list[bytes] = []
    raw: list[memoryview] = []
    id_ = b""
    fields = 0
    at, kept, end = 0, 0, len(data)  # from `kept` to `at` lies what belongs to the head
    try:
        while at < end:
            start = at
            fields += 1
            if fields > _MOST_FIELDS:
                raise DecodeError(f"expected at most {_MOST_FIELDS} fields")
            tag, at = (data[at], at + 1) if data[at] < 0x80 else _varint(data, at)
            if at - start > _LONGEST_TAG:
                return None
            kind = tag & 7
            if kind == _BYTES:
                length, at = (data[at], at + 1) if data[at] < 0x80 else _varint(data, at)
                at += length
            else:
                at = _skip(data, at, kind)
            if at > end:
                return None
            if tag in (_ID, _RAW):
                if start > kept:
                    rest.append(data[kept:start])
                kept = at
                if tag == _RAW:
                    raw.append(view[at - length : at])
                else:
                    id_ = data[at - length : at]
        if end > kept:
            rest.append(data[kept:])
        return Parts(rest[0] if len(rest) == 1 else b"".join(rest), id_.decode(), raw)
    except (IndexError, UnicodeDecodeError):
        return None


def _split_by_protobuf(data: bytes) -> Parts:
    """The same for whatever else protobuf accepts. Raises DecodeError."""
    if len(data) > _LARGEST_ODD:
        raise DecodeError("it is cut off, or not as protobuf writes messages")
    message = pb.ModelInferRequest.FromString(data)
    id_, raw = message.id, [memoryview(contents) for contents in message.raw_input_contents]
    message.ClearField("id")
    message.ClearField("raw_input_contents")
    return Parts(message.SerializeToString(), id_, raw)


def _skip(data: bytes, at: int, kind: int) -> int:
    """Where a value that is not length-delimited ends. Raises IndexError for what is none."""
    if kind == _VARINT:
        return _varint(data, at)[1]
    if kind in (_FIXED64, _FIXED32):
        return at + (8 if kind == _FIXED64 else 4)
    raise IndexError("a group, which protobuf may know how to skip")


def _varint(data: bytes, at: int) -> tuple[int, int]:
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


def delimited(tag: int, length: int) -> bytes:
    """What stands before the `length` bytes of a length-delimited field of `tag` (below 128)."""
    if length < 0x80:
        return bytes((tag, length))
    parts = bytearray((tag,))
    while length >= 0x80:
        parts.append(length & 0x7F | 0x80)
        length >>= 7
    parts.append(length)
    return bytes(parts)
