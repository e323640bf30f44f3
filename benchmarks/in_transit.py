"""What a server holds of messages that have not arrived whole.

`headrace serve` runs in a process of its own. Each connection begins calls whose messages it never
ends, and everything is kept open; then the server's memory is read. Nothing of this is counted by
`max_inflight_bytes`, which knows whole requests.
"""

from __future__ import annotations

import argparse
import socket
import struct
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

from rich.console import Console
from rich.table import Table

from headrace.bench.transports import frames
from soaking.callers import METHOD
from soaking.serving import Server, serving, write_repository

MIB = 1 << 20


def begin(address: str, calls: int, size: int) -> tuple[socket.socket, int]:
    """A connection with so many calls, each of which has sent what it could of `size` bytes, not
    all of them, within a second; and how many bytes those were."""
    host, _, port = address.rpartition(":")
    headers = [(":method", "POST"), (":scheme", "http"), (":path", METHOD)]
    headers += [(":authority", address), ("te", "trailers"), ("content-type", "application/grpc")]
    block = frames.request_block(headers)
    connection = socket.create_connection((host, int(port)))
    connection.sendall(frames.PREFACE + frames.settings({}))
    sender = _Sender(connection)
    for number in range(calls):
        stream = 2 * number + 1
        sender.out += frames.frame(frames.HEADERS, frames.END_HEADERS, stream, block)
        sender.left[stream] = struct.pack(">BI", 0, size) + bytes(size - 1)
        sender.window[stream] = frames.FIRST_WINDOW
    sender.run(time.monotonic() + 1.0)
    return connection, sender.sent


class _Sender:
    """Sends what the peer's windows take (RFC 9113, 5.2), and no more."""

    def __init__(self, connection: socket.socket) -> None:
        self.connection = connection
        self.out = b""
        self.left: dict[int, bytes] = {}
        self.window: dict[int, int] = {0: frames.FIRST_WINDOW}
        self.sent = 0
        self._rest = b""
        self._first = frames.FIRST_WINDOW

    def run(self, until: float) -> None:
        while time.monotonic() < until and any(self.left.values()):
            for stream in self.left:
                self._push(stream)
            self.connection.settimeout(10)
            self.connection.sendall(self.out)
            self.out = b""
            self._read()

    def _push(self, stream: int) -> None:
        view, at = memoryview(self.left[stream]), 0
        while True:
            room = min(self.window[stream], self.window[0], frames.FIRST_FRAME)
            part = bytes(view[at : at + room]) if room > 0 else b""
            if not part:
                break
            self.out += frames.frame(frames.DATA, 0, stream, part)
            self.window[stream] -= len(part)
            self.window[0] -= len(part)
            at += len(part)
        self.left[stream] = bytes(view[at:])
        self.sent += at

    def _read(self) -> None:
        self.connection.settimeout(0.02)
        try:
            self._rest += self.connection.recv(1 << 16)
        except TimeoutError:
            return
        end = 0
        for kind, flags, stream, start, end in frames.split(self._rest):
            payload = self._rest[start:end]
            if kind == frames.WINDOW_UPDATE:
                self.window[stream] = self.window.get(stream, self._first) + int.from_bytes(payload)
            elif kind == frames.SETTINGS and not flags & frames.ACK:
                first = frames.read_settings(payload).get(frames.SETTING_WINDOW, self._first)
                for one in self.left:
                    self.window[one] += first - self._first
                self._first = first
                self.out += frames.frame(frames.SETTINGS, frames.ACK, 0)
            elif kind == frames.PING and not flags & frames.ACK:
                self.out += frames.frame(frames.PING, frames.ACK, 0, payload)
        self._rest = self._rest[end:]


def held(server: Server, connections: int, calls: int, size: int) -> tuple[int, int, int]:
    """Bytes that were sent, that the server has more while all is open, and once it is gone."""
    before, sent = server.resident(), 0
    with ExitStack() as opened:
        for _ in range(connections):
            connection, more = begin(server.grpc, calls, size)
            opened.enter_context(connection)
            sent += more
        time.sleep(1.0)
        during = server.resident()
    time.sleep(2.0)
    return sent, during - before, server.resident() - before


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--limit", type=int, default=16, help="max_message_bytes, MiB (default 16)")
    parser.add_argument(
        "--max-calls", type=int, default=65_536, help="the server's (default 65536)"
    )
    options = parser.parse_args()
    limit = options.limit * MIB
    table = Table()
    for column in ("connections", "calls on each", "sent, MiB", "held, MiB", "afterwards, MiB"):
        table.add_column(column, justify="right")
    with tempfile.TemporaryDirectory() as folder:
        write_repository(Path(folder, "models"), 1)
        for connections, calls in ((1, 1), (1, 8), (4, 8)):
            settings = (f"--max-message-bytes={limit}", f"--max-calls={options.max_calls}")
            with serving(Path(folder, "models"), Path(folder, "log"), *settings) as server:
                sent, more, left = held(server, connections, calls, limit - 64)
                server.stop()
            cells = (
                connections,
                calls,
                f"{sent / MIB:.0f}",
                f"{more / MIB:.0f}",
                f"{left / MIB:.0f}",
            )
            table.add_row(*map(str, cells))
    Console().print(table)


if __name__ == "__main__":
    main()
