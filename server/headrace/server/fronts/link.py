"""Messages between a front process and the model process, over a stream socket.

A message is a tuple of what `marshal` knows: both ends are one program on one interpreter, and
nothing else in Python is read as fast. Each frame is 8 bytes of length, little-endian, and the
message. All that falls into one turn of the event loop goes as one message: a burst of calls, or
the answers of a batch, are one write and one wake-up.

    to the model process    (calls, left, given)
    to the front process    (HELLO, whether identities are asked for, whether calls are traced)
                            (GROUP, answers, given)
                            (END,)

left: numbers of calls whose callers have gone. given: offsets of slots in the other side's arena
that are free again. END: all that was accepted is answered, and no more will be taken. Calls and
answers are told in records.py.
"""

from __future__ import annotations

import asyncio
import marshal
import struct
from collections.abc import Callable
from typing import Any

HELLO, GROUP, END = range(3)

_LENGTH = struct.Struct("<Q")
# Later versions look for objects that occur twice, which costs more than it saves here.
_VERSION = 2


class Link(asyncio.Protocol):
    """One end.

    received: is given each message. lost: is called once the other end has gone. gather: gives what
    there is to say, when `send_soon` has been called.
    """

    def __init__(
        self,
        received: Callable[[Any], None],
        lost: Callable[[], None],
        gather: Callable[[], Any],
    ) -> None:
        self._received = received
        self._lost = lost
        self._gather = gather
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._rest = bytearray()
        self._scheduled = False

    def connection_made(self, transport: Any) -> None:
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        buffer: bytes | bytearray = data
        if self._rest:
            self._rest += data
            buffer = self._rest
        at = self._read(buffer)
        if buffer is self._rest:
            del self._rest[:at]
        elif at < len(data):
            self._rest += data[at:] if at else data

    def _read(self, buffer: bytes | bytearray) -> int:
        """Hands over the messages that are whole; returns where the next one begins."""
        at, end = 0, len(buffer)
        with memoryview(buffer) as view:
            while end - at >= _LENGTH.size:
                begin = at + _LENGTH.size
                (length,) = _LENGTH.unpack_from(buffer, at)
                if end - begin < length:
                    break
                at = begin + length
                self._received(marshal.loads(view[begin:at]))
        return at

    def connection_lost(self, _: Exception | None) -> None:
        self._transport = None
        lost = self._lost
        # Whoever holds the link is held by it no longer, nor is the memory that he shares.
        self._received, self._lost, self._gather = _ignore, _nothing, _nothing
        lost()

    def send_soon(self) -> None:
        """Sends what `gather` gives at the end of this turn of the event loop."""
        if not self._scheduled:
            self._scheduled = True
            self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        self._scheduled = False
        if self._transport is not None:
            self.send(self._gather())

    def send(self, message: Any) -> None:
        """To whoever is still there."""
        if self._transport is not None:
            body = marshal.dumps(message, _VERSION)
            self._transport.writelines((_LENGTH.pack(len(body)), body))

    def close(self) -> None:
        """Sends what was said, then hangs up."""
        if self._transport is not None:
            self._transport.close()


def _ignore(_: Any) -> None:
    """Messages after the end."""


def _nothing() -> None:
    """Nobody is there any more."""
