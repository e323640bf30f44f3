"""HTTP/2 frames (RFC 9113) as far as a client of unary gRPC calls needs them.

Pure functions on bytes. Header blocks are read by the `hpack` package; here is only what spares
asking it about the same block again and again."""

from __future__ import annotations

import struct
from collections.abc import Iterator

from hpack import Decoder, Encoder, NeverIndexedHeaderTuple

DATA, HEADERS, RST_STREAM, SETTINGS, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = (
    0,
    1,
    3,
    4,
    6,
    7,
    8,
    9,
)
END_STREAM, ACK, END_HEADERS, PADDED, PRIORITY = 0x1, 0x1, 0x4, 0x8, 0x20

SETTING_TABLE, SETTING_PUSH, SETTING_STREAMS, SETTING_WINDOW, SETTING_FRAME = 1, 2, 3, 4, 5
LARGEST_WINDOW = 2**31 - 1
LARGEST_FRAME = 2**24 - 1
FIRST_WINDOW = 65535  # of a connection and, until the peer says otherwise, of a stream
FIRST_FRAME = 16384
CANCEL = 8

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
HEAD = 9

# What a stream that the server resets means to a caller: gRPC over HTTP/2, "Errors".
RESETS = {7: "UNAVAILABLE", 8: "CANCELLED", 11: "RESOURCE_EXHAUSTED", 12: "PERMISSION_DENIED"}


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    """One whole frame. `payload` must fit the peer's largest frame."""
    size = len(payload)
    return struct.pack(">HBBBI", size >> 8, size & 255, kind, flags, stream) + payload


def settings(values: dict[int, int]) -> bytes:
    """A SETTINGS frame."""
    return frame(SETTINGS, 0, 0, b"".join(struct.pack(">HI", *item) for item in values.items()))


def read_settings(payload: bytes) -> dict[int, int]:
    """The values of a SETTINGS frame."""
    return dict(struct.iter_unpack(">HI", payload))


def window_update(stream: int, size: int) -> bytes:
    """Gives the peer leave to send `size` more bytes."""
    return frame(WINDOW_UPDATE, 0, stream, struct.pack(">I", size))


def split(buffer: bytes) -> Iterator[tuple[int, int, int, int, int]]:
    """The whole frames in `buffer`: kind, flags, stream, and where the payload begins and ends."""
    at, size = 0, len(buffer)
    while at + HEAD <= size:
        high, low, kind, flags, stream = struct.unpack_from(">HBBBI", buffer, at)
        end = at + HEAD + (high << 8 | low)
        if end > size:
            return
        yield kind, flags, stream & LARGEST_WINDOW, at + HEAD, end
        at = end


def unpadded(flags: int, payload: bytes) -> bytes:
    """The header block or data of a HEADERS or DATA frame, without padding and priority."""
    if flags & PADDED:
        payload = payload[1 : len(payload) - payload[0]]
    return payload[5:] if flags & PRIORITY else payload


def request_block(headers: list[tuple[str, str]]) -> bytes:
    """A header block that leaves no trace in the peer's table, so that it can be sent any number of
    times, with further literals after it."""
    fields = [NeverIndexedHeaderTuple(name, value) for name, value in headers]
    return bytes(Encoder().encode(fields))


def literal(name: bytes, value: bytes) -> bytes:
    """One header field, never indexed, not compressed (RFC 7541, 6.2.3). Both below 127 bytes."""
    return b"\x10" + bytes((len(name),)) + name + bytes((len(value),)) + value


class Blocks:
    """Header blocks of one connection as dictionaries.

    The peer is asked for no dynamic table. A block that was read without one means the same
    whenever it comes again, so it is looked up; any other is decoded in its turn."""

    def __init__(self) -> None:
        self._decoder = Decoder()
        self._decoder.max_allowed_table_size = 4096  # one that ignores the wish is understood too
        self._known: dict[bytes, dict[str, str]] = {}

    def read(self, block: bytes) -> dict[str, str]:
        """Raises hpack.HPACKError for what is no header block."""
        known = self._known.get(block)
        if known is not None:
            return known
        table = self._decoder.header_table
        before = len(table.dynamic_entries)
        fields = {_text(name): _text(value) for name, value in self._decoder.decode(block)}
        if not before and not table.dynamic_entries and len(self._known) < 1024:
            self._known[block] = fields
        return fields


def _text(value: str | bytes) -> str:
    return value if isinstance(value, str) else value.decode("latin-1")
