"""Whatever bytes come, reading them gives a request or an error of the table, and never more."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from google.protobuf.message import DecodeError
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.inference.tensors import DATATYPES
from headrace.inference.v2 import grpc_service_pb2 as pb
from headrace.server.errors import InvalidInput, Unsupported
from headrace.server.exchange import InferenceRequest
from headrace.server.rpc import codec
from headrace.server.rpc.limits import Limits, cost_of
from headrace.server.rpc.wire import Reader

LIMITS = Limits(elements=1 << 12, parameters=8, tensors=8, head_bytes=1 << 12)
# Sizes at which something gives way: signs, 32 and 64 bits, products that overflow either.
DIMS = st.sampled_from([-(2**63), -1, 0, 1, 2, 3, 2**16, 2**31, 2**32, 2**62, 2**63 - 1])
RAW = st.binary(max_size=32) | st.integers(0, 2**32 - 1).map(lambda n: n.to_bytes(4, "little"))
WORDS = st.sampled_from(["", "x", "timeout", "priority", "sequence_id", "headrace_solo"])
VALUES: Any = st.one_of(
    st.builds(pb.InferParameter, bool_param=st.booleans()),
    st.builds(pb.InferParameter, int64_param=st.integers(-(2**63), 2**63 - 1)),
    st.builds(pb.InferParameter, string_param=st.text(max_size=3)),
    st.builds(pb.InferParameter, double_param=st.floats()),
    st.builds(pb.InferParameter),
)
PARAMETERS = st.dictionaries(
    WORDS | st.sampled_from(["classification", "shared_memory_region", "triton_x"]),
    VALUES,
    max_size=4,
)
CONTENTS: Any = st.one_of(
    st.none(),
    st.builds(pb.InferTensorContents, fp32_contents=st.lists(st.just(0.5), max_size=3)),
    st.builds(
        pb.InferTensorContents, int_contents=st.lists(st.integers(-(2**31), 2**31 - 1), max_size=3)
    ),
    st.builds(pb.InferTensorContents, bytes_contents=st.lists(st.binary(max_size=2), max_size=3)),
)
INPUTS: Any = st.builds(
    pb.ModelInferRequest.InferInputTensor,
    name=WORDS,
    datatype=st.sampled_from([*DATATYPES, "", "FP128"]),
    shape=st.lists(DIMS, max_size=4) | st.just([1] * 70),
    parameters=PARAMETERS,
    contents=CONTENTS,
)
MESSAGES: Any = st.builds(
    pb.ModelInferRequest,
    model_name=WORDS,
    id=WORDS,
    parameters=PARAMETERS,
    inputs=st.lists(INPUTS, max_size=3),
    outputs=st.lists(
        st.builds(
            pb.ModelInferRequest.InferRequestedOutputTensor, name=WORDS, parameters=PARAMETERS
        ),
        max_size=2,
    ),
    raw_input_contents=st.lists(RAW, max_size=3),
)


def read(reader: Reader, data: bytes) -> InferenceRequest | None:
    """The request in `data`; None where it was refused in the server's own words."""
    try:
        wire = reader.read(data)
        assert cost_of(wire) >= 0
        return codec.decode(wire, 0.0, None, limits=LIMITS)
    except (DecodeError, InvalidInput, Unsupported):
        return None


def check(request: InferenceRequest | None) -> None:
    """What was read can be used: each tensor has the elements that its shape says."""
    for tensor in request.inputs if request is not None else ():
        assert tensor.array.size == np.prod(tensor.array.shape, dtype=object)
        assert tensor.array.size <= LIMITS.elements
        assert len(tensor.array.tolist() if tensor.array.ndim else [0]) >= 0


@settings(max_examples=500, deadline=None)
@given(st.binary(max_size=200))
def test_any_bytes(data: bytes) -> None:
    check(read(Reader(LIMITS.head_bytes), data))


@settings(max_examples=500, deadline=None)
@given(MESSAGES)
def test_any_message_twice(message: pb.ModelInferRequest) -> None:
    """The second time its head may be known."""
    reader, data = Reader(LIMITS.head_bytes), message.SerializeToString()
    first, again = read(reader, data), read(reader, data)
    check(first)
    check(again)
    assert (first is None) == (again is None)


@settings(max_examples=500, deadline=None)
@given(MESSAGES, st.data())
def test_any_damage_to_any_message(message: pb.ModelInferRequest, data: Any) -> None:
    whole = message.SerializeToString()
    cut = data.draw(st.integers(0, len(whole)))
    wrong = data.draw(st.binary(max_size=4))
    skipped = data.draw(st.integers(0, 4))
    reader = Reader(LIMITS.head_bytes)
    read(reader, whole)
    check(read(reader, whole[:cut] + wrong + whole[cut + skipped :]))


@pytest.mark.parametrize(
    ("data", "said"),
    [
        # Nothing on the wire, and a hundred bytes each once parsed.
        (b"\x2a\x00" * 70_000, "expected at most 65536 fields"),
        (b"\x3a\x00" * 70_000, "expected at most 65536 fields"),
        # A group is for protobuf to judge, which would parse all that follows.
        (b"\x7b\x7c" + b"\x2a\x00" * 600_000, "not as protobuf writes"),
        (b"\x0a\xff\xff\xff\x7f" + b"m" * (1 << 20), "cut off"),
        (b"\x0a\x80\x40" + b"m" * 8192, "expected at most 4096 bytes beside raw_input_contents"),
    ],
)
def test_what_would_grow_when_it_is_parsed_is_not(data: bytes, said: str) -> None:
    with pytest.raises(DecodeError, match=said):
        Reader(LIMITS.head_bytes).read(data)
