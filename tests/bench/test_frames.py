"""HTTP/2 frames: what is written can be read, whatever way the bytes are cut."""

import struct

import hpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.bench.transports import frames

FRAMES = st.lists(
    st.tuples(
        st.integers(0, 9), st.integers(0, 255), st.integers(0, 2**31 - 1), st.binary(max_size=400)
    ),
    max_size=8,
)


@given(FRAMES, st.integers(0, 500))
def test_frames_are_split_as_they_were_made_and_a_partial_one_waits(
    made: list[tuple[int, int, int, bytes]], kept: int
) -> None:
    whole = b"".join(frames.frame(*each) for each in made)
    tail = frames.frame(frames.DATA, 0, 1, b"x" * 500)[: kept or None][:500]
    buffer = whole + tail
    found = list(frames.split(buffer))
    assert [(k, f, s, buffer[a:b]) for k, f, s, a, b in found] == made
    end = found[-1][4] if found else 0
    assert buffer[end:] == tail


def test_a_frame_of_the_largest_size_has_its_length_in_three_bytes() -> None:
    made = frames.frame(frames.DATA, 0, 3, bytes(frames.LARGEST_FRAME))
    assert made[:3] == b"\xff\xff\xff"
    assert [(s, b - a) for _, _, s, a, b in frames.split(made)] == [(3, frames.LARGEST_FRAME)]


@given(st.dictionaries(st.integers(1, 6), st.integers(0, 2**32 - 1)))
def test_settings_are_read_as_they_were_written(values: dict[int, int]) -> None:
    assert frames.read_settings(frames.settings(values)[frames.HEAD :]) == values


def test_padding_and_priority_are_taken_off() -> None:
    padded = b"\x03" + b"block" + b"\0" * 3
    assert frames.unpadded(frames.PADDED, padded) == b"block"
    with_priority = b"\x02" + struct.pack(">IB", 1, 16) + b"block" + b"\0" * 2
    assert frames.unpadded(frames.PADDED | frames.PRIORITY, with_priority) == b"block"


def test_a_request_block_leaves_no_trace_and_takes_literals() -> None:
    block = frames.request_block([(":method", "POST"), ("x-name", "value")])
    decoder = hpack.Decoder()
    for _ in range(2):
        fields = decoder.decode(block + frames.literal(b"grpc-timeout", b"20000u"))
        assert [tuple(map(_text, field)) for field in fields] == [
            (":method", "POST"),
            ("x-name", "value"),
            ("grpc-timeout", "20000u"),
        ]
        assert not decoder.header_table.dynamic_entries


def _text(value: str | bytes) -> str:
    return value if isinstance(value, str) else value.decode()


def test_blocks_without_a_table_are_looked_up() -> None:
    block = frames.request_block([("grpc-status", "0")])
    blocks = frames.Blocks()
    assert blocks.read(block) is blocks.read(block)


def test_blocks_of_a_peer_with_a_table_are_decoded_each_in_turn() -> None:
    encoder = hpack.Encoder()
    first = encoder.encode([("grpc-status", "0"), ("x-a", "1")])
    second = encoder.encode([("grpc-status", "0"), ("x-a", "1")])
    third = encoder.encode([("grpc-status", "8"), ("x-a", "1")])
    fourth = encoder.encode([("grpc-status", "0"), ("x-a", "1")])
    assert first != second  # the table is in use
    blocks = frames.Blocks()
    read = [blocks.read(block)["grpc-status"] for block in (first, second, third, fourth)]
    assert read == ["0", "0", "8", "0"]


def test_what_is_no_header_block_is_an_error() -> None:
    with pytest.raises(hpack.HPACKError):
        frames.Blocks().read(b"\xff\xff\xff\xff\xff")
