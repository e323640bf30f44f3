"""Requests read from the wire are what protobuf reads, and their large tensors are not copied."""

from __future__ import annotations

from typing import Any

import numpy as np
from google.protobuf.message import DecodeError
from hypothesis import example, given
from hypothesis import strategies as st

from headrace.inference.tensors import DATATYPES, decode_raw
from headrace.inference.v2 import grpc_service_pb2 as pb
from headrace.server.rpc import wire

RAW_TAG = b"\x3a"
INT64 = st.integers(-(2**63), 2**63 - 1)
TEXT = st.text(max_size=6)
PARAMETERS = st.dictionaries(
    TEXT,
    st.one_of(
        st.booleans().map(lambda v: pb.InferParameter(bool_param=v)),
        INT64.map(lambda v: pb.InferParameter(int64_param=v)),
        TEXT.map(lambda v: pb.InferParameter(string_param=v)),
        st.floats(allow_nan=False).map(lambda v: pb.InferParameter(double_param=v)),
        st.integers(0, 2**64 - 1).map(lambda v: pb.InferParameter(uint64_param=v)),
    ),
    max_size=3,
)
CONTENTS = st.builds(
    pb.InferTensorContents,
    bool_contents=st.lists(st.booleans(), max_size=3),
    int64_contents=st.lists(INT64, max_size=3),
    fp32_contents=st.lists(st.floats(width=32, allow_nan=False), max_size=3),
    bytes_contents=st.lists(st.binary(max_size=4), max_size=3),
)
INPUTS = st.builds(
    pb.ModelInferRequest.InferInputTensor,
    name=TEXT,
    datatype=TEXT,
    shape=st.lists(INT64, max_size=3),
    contents=st.none() | CONTENTS,
)
MESSAGES = st.builds(
    pb.ModelInferRequest,
    model_name=TEXT,
    id=TEXT,
    parameters=PARAMETERS,
    inputs=st.lists(INPUTS, max_size=3),
    raw_input_contents=st.lists(st.binary(max_size=300), max_size=4),
)


def whole(found: wire.WireRequest) -> pb.ModelInferRequest:
    """The message with its id and its tensors put back."""
    message = pb.ModelInferRequest()
    message.CopyFrom(found.head.message)
    assert not message.id
    assert not message.raw_input_contents
    message.id = found.id
    message.raw_input_contents.extend(bytes(raw) for raw in found.raw)
    return message


def parse(data: bytes) -> wire.WireRequest:
    """Read twice: what is kept of the first time makes no difference."""
    reader = wire.Reader()
    first, again = reader.read(data), reader.read(data)
    assert (first.head.message, first.id, first.raw) == (again.head.message, again.id, again.raw)
    return again


def outcome(read: Any, data: bytes) -> pb.ModelInferRequest | None:
    """What `read` makes of `data`; None for a DecodeError, the only error allowed."""
    try:
        message: pb.ModelInferRequest = read(data)
    except DecodeError:
        return None
    return message


def same(data: bytes) -> bool:
    ours = outcome(lambda d: whole(parse(d)), data)
    theirs = outcome(pb.ModelInferRequest.FromString, data)
    if ours is None or theirs is None:
        return ours is theirs
    return ours.SerializeToString(deterministic=True) == theirs.SerializeToString(
        deterministic=True
    )


@given(message=MESSAGES)
def test_any_message_is_read_as_protobuf_reads_it(message: pb.ModelInferRequest) -> None:
    data = message.SerializeToString()
    found = parse(data)
    assert whole(found) == message
    assert all(isinstance(raw, memoryview) for raw in found.raw)


@given(message=MESSAGES, data=st.data())
def test_a_message_cut_off_anywhere_is_refused_or_read_as_protobuf_does(
    message: pb.ModelInferRequest, data: st.DataObject
) -> None:
    serialized = message.SerializeToString()
    cut = data.draw(st.integers(0, len(serialized)))
    assert same(serialized[:cut])


@given(message=MESSAGES, data=st.data())
def test_a_damaged_message_is_refused_or_read_as_protobuf_does(
    message: pb.ModelInferRequest, data: st.DataObject
) -> None:
    damaged = bytearray(message.SerializeToString() or b"\0")
    for _ in range(data.draw(st.integers(1, 3))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    assert same(bytes(damaged))


@given(data=st.binary(max_size=60))
@example(RAW_TAG + b"\xff" * 9 + b"\x7f")  # a length beyond 64 bits
@example(RAW_TAG + b"\xff" * 11)  # a length without end
@example(b"\xff" * 11)  # a tag without end
@example(b"\xba\x80\x80\x80\x00\x01z")  # the tag of raw contents, padded to what is allowed
@example(b"\xba\x80\x80\x80\x80\x00\x01z")  # and beyond
@example(RAW_TAG + b"\x81\x80\x80\x80\x00z")  # a padded length
@example(RAW_TAG + b"\x81\x80\x80\x80\x80\x00z")
@example(b"\x38\x05" + RAW_TAG + b"\x01z")  # the field's number with another kind of value
@example(b"\x0b\x3a\x01z\x0c")  # a group that holds what looks like a tensor
@example(b"\x09\1\2\3\4\5\6\7\x08\x0d\1\2\3\4" + RAW_TAG + b"\x00")
@example(b"\x00\x00" + RAW_TAG + b"\x01z")  # field number 0
def test_any_bytes_are_refused_or_read_as_protobuf_does(data: bytes) -> None:
    assert same(data)


def test_tensors_are_views_of_the_bytes_that_came() -> None:
    tensors = [np.arange(n, dtype=np.float32) for n in (3, 0, 700)]
    message = pb.ModelInferRequest(
        model_name="m", raw_input_contents=[tensor.tobytes() for tensor in tensors], id="after"
    )
    data = message.SerializeToString()
    buffer = np.frombuffer(data, np.uint8)
    found = parse(data)
    assert (found.head.message.model_name, found.id) == ("m", "after")
    for raw, tensor in zip(found.raw, tensors, strict=True):
        array = decode_raw(raw, DATATYPES["FP32"], tensor.shape)
        assert np.array_equal(array, tensor)
        assert tensor.size == 0 or np.shares_memory(array, buffer)
        assert not array.flags.writeable


def head_of(reader: wire.Reader, **fields: Any) -> wire.Head:
    return reader.read(pb.ModelInferRequest(**fields).SerializeToString()).head


def test_a_head_is_parsed_once() -> None:
    reader = wire.Reader()
    first = head_of(reader, model_name="m", id="1", raw_input_contents=[b"a"])
    assert first.kept
    assert head_of(reader, model_name="m", id="two", raw_input_contents=[b"bc"]) is first
    assert head_of(reader, model_name="n", id="1", raw_input_contents=[b"a"]) is not first


def test_what_will_hardly_come_again_is_not_kept() -> None:
    reader = wire.Reader()
    sequence = {"sequence_id": pb.InferParameter(int64_param=1)}
    for fields in (
        {"model_name": "m"},  # no raw contents: the tensors stand in the head
        {"model_name": "m" * 2000, "raw_input_contents": [b"a"]},
        {"parameters": sequence, "raw_input_contents": [b"a"]},
    ):
        assert not head_of(reader, **fields).kept
        assert head_of(reader, **fields) is not head_of(reader, **fields)


def test_heads_that_are_kept_are_bounded() -> None:
    reader = wire.Reader()
    for number in range(2000):
        head_of(reader, model_name=f"{number}", raw_input_contents=[b"a"])
    assert len(reader._heads) <= 512
