"""Unary gRPC calls by a client that does only what a load test needs.

A load generator shares the machine with what it measures, and at high rates its own cost is the
limit: `grpc.aio` took 160 to 290 µs of processor time for a call on a machine where this client
took 60 to 110, nearly all of it in system calls that a server answering in groups would share out.
A call here is one dictionary entry, one joined write for each turn of the event loop, and an answer
whose message is counted, not kept. It speaks HTTP/2 without TLS. tests/integration/test_lean.py
holds it against grpcio's server, and `--transport grpcio` is there to compare."""

from __future__ import annotations

import asyncio
import struct
from collections import deque
from dataclasses import dataclass

from hpack import HPACKError

from headrace.bench.transports import OK, Done, Prepared, frames

STATUS = (
    OK, "CANCELLED", "UNKNOWN", "INVALID_ARGUMENT", "DEADLINE_EXCEEDED", "NOT_FOUND",
    "ALREADY_EXISTS", "PERMISSION_DENIED", "RESOURCE_EXHAUSTED", "FAILED_PRECONDITION", "ABORTED",
    "OUT_OF_RANGE", "UNIMPLEMENTED", "INTERNAL", "UNAVAILABLE", "DATA_LOSS", "UNAUTHENTICATED",
)  # fmt: skip
RECONNECT = 0.1  # seconds between attempts
ACCEPTED_FRAME = 2**18  # a frame is put together from several reads: much larger costs copies


@dataclass(slots=True)
class _Call:
    done: Done
    timer: asyncio.TimerHandle | None = None
    unsent: bytes | memoryview = b""  # of the message, where the peer's windows did not take it all
    window: int = 0  # bytes that the peer still takes on this stream


class Lean:
    """A `Transport` over one connection. `address` is host:port."""

    name = "lean"

    def __init__(self, address: str) -> None:
        self._address = address
        self._blocks: dict[tuple[str, tuple[tuple[str, str], ...]], bytes] = {}
        self._connection: _Connection | None = None
        self._connecting: asyncio.Task[None] | None = None
        self._closed = False

    async def open(self) -> None:
        """Raises ConnectionError, naming the address, where nobody listens."""
        host, _, port = self._address.rpartition(":")
        loop = asyncio.get_running_loop()
        try:
            _, protocol = await loop.create_connection(_Connection, host.strip("[]"), int(port))
            async with asyncio.timeout(10):
                await protocol.ready
        except (OSError, TimeoutError) as error:
            raise ConnectionError(
                f"{self._address}: {error or 'no HTTP/2 settings came'}"
            ) from error
        self._connection = protocol

    def send(self, request: Prepared, timeout: float | None, done: Done) -> None:
        """Sends now; `timeout` in seconds goes along as `grpc-timeout` and is kept here too."""
        connection = self._connection
        if connection is None or not connection.usable:
            asyncio.get_running_loop().call_soon(done, "UNAVAILABLE")
            self._reconnect()
            return
        key = (request.path, request.headers)
        block = self._blocks.get(key)
        if block is None:
            block = self._blocks[key] = self._block(*key)
        if timeout is not None:
            if timeout <= 0:
                asyncio.get_running_loop().call_soon(done, "DEADLINE_EXCEEDED")
                return
            block += frames.literal(b"grpc-timeout", _timeout(timeout))
        connection.start(block, request.body, timeout, done)

    async def close(self) -> None:
        """Ends what is in flight as CANCELLED and closes."""
        self._closed = True
        if self._connecting is not None:
            self._connecting.cancel()
        if self._connection is not None:
            self._connection.end("CANCELLED")

    def _block(self, path: str, headers: tuple[tuple[str, str], ...]) -> bytes:
        pseudo = [(":method", "POST"), (":scheme", "http"), (":path", path)]
        pseudo += [(":authority", self._address), ("te", "trailers")]
        pseudo += [("content-type", "application/grpc"), ("user-agent", "headrace-bench")]
        return frames.request_block([*pseudo, *headers])

    def _reconnect(self) -> None:
        if self._closed or (self._connecting is not None and not self._connecting.done()):
            return

        async def attempt() -> None:
            await asyncio.sleep(RECONNECT)
            try:
                await self.open()
            except ConnectionError:
                return  # the next request that fails tries again

        self._connecting = asyncio.get_running_loop().create_task(attempt())


def _timeout(seconds: float) -> bytes:
    """As gRPC writes it: at most eight digits and a unit."""
    microseconds = max(1, round(seconds * 1e6))
    return b"%du" % microseconds if microseconds < 10**8 else b"%dm" % min(seconds * 1e3, 99999999)


class _Connection(asyncio.Protocol):
    """HTTP/2 on one socket: calls by stream, windows, and writes that are joined."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self.ready: asyncio.Future[None] = self._loop.create_future()
        self.usable = True
        self._transport: asyncio.Transport
        self._calls: dict[int, _Call] = {}
        self._waiting: deque[tuple[bytes, bytes, float | None, _Call]] = deque()
        self._next = 1
        self._out: list[bytes] = []
        self._reading = False
        self._rest = b""
        self._blocks = frames.Blocks()
        self._partial = b""  # of a header block that goes on in CONTINUATION frames
        self._partial_flags = 0
        self._stalled: deque[int] = deque()  # streams with a part of their message unsent
        self._most = frames.LARGEST_WINDOW
        self._largest = frames.FIRST_FRAME
        self._first_window = frames.FIRST_WINDOW
        self._window = frames.FIRST_WINDOW  # bytes that the peer takes on the connection
        self._received = 0  # bytes of data since the peer was last told that they were taken

    # Calls

    def start(self, block: bytes, message: bytes, timeout: float | None, done: Done) -> None:
        call = _Call(done)
        if len(self._calls) >= self._most:
            self._waiting.append((block, message, timeout, call))
        else:
            self._begin(block, message, timeout, call)

    def _begin(self, block: bytes, message: bytes, timeout: float | None, call: _Call) -> None:
        stream = self._next
        if stream > frames.LARGEST_WINDOW - 2:  # identifiers have run out: a new connection
            self.usable = False
        self._next += 2
        self._calls[stream] = call
        call.window = self._first_window
        if timeout is not None:
            call.timer = self._loop.call_later(timeout, self._expire, stream)
        headers = frames.frame(frames.HEADERS, frames.END_HEADERS, stream, block)
        size = len(message) + 5
        if size <= self._largest and size <= call.window and size <= self._window:
            self._window -= size
            head = struct.pack(
                ">HBBBIBI", size >> 8, size & 255, 0, frames.END_STREAM, stream, 0, size - 5
            )
            self._write(headers + head + message)
            return
        self._write(headers)
        # A view: each time the window widens a part goes, and the rest is not copied anew.
        call.unsent = memoryview(struct.pack(">BI", 0, size - 5) + message)
        self._stalled.append(stream)
        self._go_on()

    def _go_on(self) -> None:
        """Sends of the unsent messages what the windows take, oldest stream first."""
        for stream in list(self._stalled):
            call = self._calls.get(stream)
            if call is None or self._push(stream, call):
                self._stalled.remove(stream)

    def _push(self, stream: int, call: _Call) -> bool:
        view = memoryview(call.unsent)
        at = 0
        while at < len(view):
            size = min(len(view) - at, self._largest, call.window, self._window)
            if size <= 0:
                break
            last = frames.END_STREAM if at + size == len(view) else 0
            self._write(frames.frame(frames.DATA, last, stream, bytes(view[at : at + size])))
            call.window -= size
            self._window -= size
            at += size
        call.unsent = view[at:]
        return not call.unsent

    def _finish(self, stream: int, status: str) -> None:
        call = self._calls.pop(stream, None)
        if call is None:
            return
        if call.timer is not None:
            call.timer.cancel()
        if call.unsent:  # answered before all was sent
            self._cancel(stream)
        call.done(status)
        if self._waiting and len(self._calls) < self._most:
            self._begin(*self._waiting.popleft())

    def _expire(self, stream: int) -> None:
        self._cancel(stream)
        if call := self._calls.get(stream):
            call.unsent = b""
        self._finish(stream, "DEADLINE_EXCEEDED")

    def _cancel(self, stream: int) -> None:
        code = struct.pack(">I", frames.CANCEL)
        self._write(frames.frame(frames.RST_STREAM, 0, stream, code))

    def end(self, status: str) -> None:
        """Ends every call with `status`, and the connection."""
        self.usable = False
        if not self.ready.done():
            self.ready.set_exception(ConnectionError("closed before its settings came"))
        self._transport.close()
        waiting, self._waiting = self._waiting, deque()
        for stream in list(self._calls):
            call = self._calls[stream]
            call.unsent = b""
            self._finish(stream, status)
        for _, _, _, call in waiting:
            call.done(status)

    # The socket

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        ours = {
            frames.SETTING_TABLE: 0,
            frames.SETTING_PUSH: 0,
            frames.SETTING_WINDOW: frames.LARGEST_WINDOW,
            frames.SETTING_FRAME: ACCEPTED_FRAME,
        }
        more = frames.LARGEST_WINDOW - frames.FIRST_WINDOW
        transport.write(frames.PREFACE + frames.settings(ours) + frames.window_update(0, more))

    def connection_lost(self, exc: Exception | None) -> None:
        self.end("UNAVAILABLE")

    def data_received(self, data: bytes) -> None:
        buffer = self._rest + data if self._rest else data
        end = 0
        self._reading = True  # what answers lead to is written once, below
        for kind, flags, stream, begin, end in frames.split(buffer):
            if kind == frames.DATA:
                self._received += end - begin
                if flags & frames.END_STREAM:  # gRPC ends with trailers
                    self._finish(stream, "INTERNAL")
            else:
                self._control(kind, flags, stream, buffer[begin:end])
        self._rest = buffer[end:]
        if self._received > frames.LARGEST_WINDOW // 2:
            self._write(frames.window_update(0, self._received))
            self._received = 0
        self._reading = False
        self._flush()

    def _control(self, kind: int, flags: int, stream: int, payload: bytes) -> None:
        if kind == frames.HEADERS or kind == frames.CONTINUATION:
            self._headers(kind, flags, stream, payload)
        elif kind == frames.RST_STREAM:
            code = int.from_bytes(payload, "big")
            self._finish(stream, frames.RESETS.get(code, "INTERNAL"))
        elif kind == frames.WINDOW_UPDATE:
            self._widen(stream, int.from_bytes(payload, "big"))
        elif kind == frames.PING and not flags & frames.ACK:
            self._write(frames.frame(frames.PING, frames.ACK, 0, payload))
        elif kind == frames.SETTINGS and not flags & frames.ACK:
            self._settings(frames.read_settings(payload))
        elif kind == frames.GOAWAY:
            self._go_away(int.from_bytes(payload[:4], "big"))

    def _headers(self, kind: int, flags: int, stream: int, payload: bytes) -> None:
        if kind == frames.HEADERS:
            payload = frames.unpadded(flags, payload)
            self._partial_flags = flags
        block = self._partial + payload
        if not flags & frames.END_HEADERS:
            self._partial = block
            return
        self._partial = b""
        try:
            fields = self._blocks.read(block)
        except HPACKError:
            self.end("INTERNAL")
            return
        if self._partial_flags & frames.END_STREAM:
            self._finish(stream, _status(fields))

    def _settings(self, values: dict[int, int]) -> None:
        self._most = values.get(frames.SETTING_STREAMS, self._most)
        self._largest = min(values.get(frames.SETTING_FRAME, self._largest), frames.LARGEST_FRAME)
        window = values.get(frames.SETTING_WINDOW, self._first_window)
        for call in self._calls.values():
            call.window += window - self._first_window
        self._first_window = window
        self._write(frames.frame(frames.SETTINGS, frames.ACK, 0))
        if not self.ready.done():
            self.ready.set_result(None)
        self._go_on()

    def _widen(self, stream: int, size: int) -> None:
        if not stream:
            self._window += size
        elif call := self._calls.get(stream):
            call.window += size
        if self._stalled:
            self._go_on()

    def _go_away(self, last: int) -> None:
        self.usable = False
        for stream in [stream for stream in self._calls if stream > last]:
            self._calls[stream].unsent = b""
            self._finish(stream, "UNAVAILABLE")

    def _write(self, data: bytes) -> None:
        if not self._out and not self._reading:
            self._loop.call_soon(self._flush)
        self._out.append(data)

    def _flush(self) -> None:
        if self._out and not self._transport.is_closing():
            self._transport.write(b"".join(self._out))
        self._out.clear()


def _status(fields: dict[str, str]) -> str:
    """Of a call, by its trailers."""
    code = fields.get("grpc-status", "")
    if code.isdigit() and int(code) < len(STATUS):
        return STATUS[int(code)]
    return "UNKNOWN"
