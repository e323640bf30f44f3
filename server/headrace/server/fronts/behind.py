"""The model process's end: calls that front processes hand over, answered like any others.

Theory of operation. Each front has a connection. On it comes first the memory that the two share,
as file descriptors, then records of calls. A call is begun by the same service that answers calls
in a server of one process, its future's callback finishes it; answers of one turn of the event loop
go back together. A front that vanishes takes its calls with it. Other methods come by grpc.aio over
a socket file, as the fronts pass them on (passing.py).
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import struct
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import grpc

from headrace.batcher.promise import Promise
from headrace.server import errors
from headrace.server.fronts.arena import Writer, aligned, map_to_read
from headrace.server.fronts.leases import Leases
from headrace.server.fronts.link import END, GROUP, HELLO, Link
from headrace.server.fronts.names import GRPC_SOCKET, HANDSHAKE, INLINE, LINK_SOCKET
from headrace.server.fronts.records import Heads, told
from headrace.server.rpc.calls import log_unexpected
from headrace.server.rpc.service import Begun, InferenceService, Received
from headrace.server.rpc.wire import Parts
from headrace.server.security.access import Shown
from headrace.server.security.guard import NOTHING

_log = logging.getLogger(__name__)

_FRONTS_LEAVE_SECONDS = 5.0


class BehindFronts:
    """Has the methods that are asked of an RPC engine, but takes calls from front processes.

    behind: answers all methods but ModelInfer. identities, traces: whether the metadata of calls
    are of any use here.
    """

    def __init__(
        self,
        behind: grpc.aio.Server,
        inference: InferenceService,
        folder: Path,
        *,
        identities: bool,
        traces: bool,
    ) -> None:
        self._behind = behind
        self._inference = inference
        self._folder = folder
        self._hello = HELLO, identities, traces
        self._ends: set[_FrontEnd] = set()
        self._none_left = asyncio.Event()
        self._accepting: asyncio.Task[None] | None = None
        self._greetings: set[asyncio.Task[None]] = set()

    def add_insecure_port(self, address: str) -> int:
        """The port, which the fronts bind."""
        return int(address.rpartition(":")[2])

    def add_secure_port(self, address: str, _: grpc.ServerCredentials) -> int:
        """The same: TLS ends in the fronts."""
        return self.add_insecure_port(address)

    async def start(self) -> None:
        path = self._folder / GRPC_SOCKET
        path.unlink(missing_ok=True)
        self._behind.add_insecure_port(f"unix:{path}")
        await self._behind.start()
        path = self._folder / LINK_SOCKET
        path.unlink(missing_ok=True)
        listening = socket.socket(socket.AF_UNIX)
        listening.bind(str(path))
        listening.listen()
        listening.setblocking(False)
        self._accepting = asyncio.get_running_loop().create_task(self._accept(listening))

    async def stop(self, grace: float | None) -> None:
        """Tells the fronts that all is answered, and waits until they have gone."""
        for end in self._ends:
            end.finish()
        if self._ends:
            try:
                async with asyncio.timeout((grace or 0) + _FRONTS_LEAVE_SECONDS):
                    await self._none_left.wait()
            except TimeoutError:
                _log.warning("%d front processes do not leave", len(self._ends))
        if self._accepting is not None:
            self._accepting.cancel()
        await self._behind.stop(grace)

    async def _accept(self, listening: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        with listening:
            while True:
                connection, _ = await loop.sock_accept(listening)
                task = loop.create_task(self._greet(connection))
                self._greetings.add(task)
                task.add_done_callback(self._greetings.discard)

    async def _greet(self, connection: socket.socket) -> None:
        """Takes on a front. One that is gone again already is no news."""
        try:
            requests, responses = await _arenas(connection)
        except (OSError, ValueError, struct.error) as error:
            _log.warning("a front process was not understood: %s", error)
            connection.close()
            return
        end = _FrontEnd(self._inference, requests, responses, self._lost)
        self._ends.add(end)
        self._none_left.clear()
        loop = asyncio.get_running_loop()
        await loop.connect_accepted_socket(lambda: end.link, connection)
        end.link.send(self._hello)

    def _lost(self, end: _FrontEnd) -> None:
        self._ends.discard(end)
        if not self._ends:
            self._none_left.set()


async def _arenas(connection: socket.socket) -> tuple[Leases, Writer]:
    """What `connection` brings first: memory for requests, and for responses."""
    connection.setblocking(False)
    await _readable(connection)
    data, descriptors, _, _ = socket.recv_fds(connection, HANDSHAKE.size, 2)
    try:
        sizes = HANDSHAKE.unpack(data)
        if len(descriptors) != 2:
            raise ValueError(f"expected 2 descriptors, got {len(descriptors)}")
        requests = map_to_read(descriptors[0], sizes[0])
        return Leases(requests), Writer(descriptors[1], sizes[1])
    finally:
        for descriptor in descriptors:
            os.close(descriptor)


async def _readable(connection: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    ready = loop.create_future()
    loop.add_reader(connection, ready.set_result, None)
    try:
        await ready
    finally:
        loop.remove_reader(connection)


class _FrontEnd:
    """One front's calls."""

    def __init__(
        self, inference: InferenceService, requests: Leases, responses: Writer, lost: Any
    ) -> None:
        self.link = Link(self._received, self._lost, self._gather)
        self._inference = inference
        self._requests = requests
        self._responses = responses
        self._when_lost = lost
        self._heads = Heads()
        self._waiting: dict[int, Begun] = {}
        self._answers: list[tuple[Any, ...]] = []

    def finish(self) -> None:
        self.link.send((GROUP, *self._gather_parts()))
        self.link.send((END,))

    def _received(self, message: tuple[Any, ...]) -> None:
        calls, left, given = message
        for offset in given:
            self._responses.slots.give(offset)
        for call in calls:
            self._begin(*call)
        for number in left:
            begun = self._waiting.pop(number, None)
            if begun is not None:
                self._inference.left(begun)

    def _begin(
        self,
        number: int,
        head: int | bytes | None,
        id_: str,
        raw: Any,
        arrival: float,
        remaining: float | None,
        caller: str,
        extra: Any,
    ) -> None:
        metadata, token, names = extra or ((), None, ())
        shown = NOTHING if extra is None else Shown(token, names)
        try:
            begun = self._inference.begin_received(
                self._read(head, id_, raw),
                lambda: metadata,
                remaining,
                caller,
                lambda: shown,
                arrival,
            )
        except Exception as error:  # noqa: BLE001 (the table knows what each error means)
            self._fail(number, error)
            return
        self._waiting[number] = begun
        begun.future.add_done_callback(partial(self._ended, number, begun))

    def _read(self, head: int | bytes | None, id_: str, raw: Any) -> Received:
        if head is None:
            return errors.InvalidInput(f"the message cannot be parsed: {id_}")
        known = self._heads.received(head)
        if isinstance(raw, tuple):
            offset, sizes = raw
            raw = _cut(self._requests.view(offset, sum(map(aligned, sizes))), sizes)
        return self._inference.assemble(Parts(known, id_, raw))

    def _ended(self, number: int, begun: Begun, future: asyncio.Future[Any] | Promise[Any]) -> None:
        if self._waiting.pop(number, None) is None:  # the caller has left
            if not future.cancelled():
                future.exception()  # seen, and told to nobody
            return
        try:
            answer = self._inference.finish(begun, self._joined)
        except asyncio.CancelledError:
            self._fail(number, errors.Draining("the server is shutting down"))
            return
        except Exception as error:  # noqa: BLE001 (the table knows what each error means)
            self._fail(number, error)
            return
        self._answers.append((number, *answer))
        self._inference.sent(begun)
        self.link.send_soon()

    def _joined(self, parts: Sequence[Any]) -> tuple[Any, ...]:
        """A response: in the arena if it is large and there is room, else as it is."""
        sizes = [len(part) if isinstance(part, bytes) else part.nbytes for part in parts]
        size = sum(sizes)
        if size > INLINE:
            offset = self._responses.put(parts, sizes)
            if offset is not None:
                return offset, size
        return (b"".join(parts),)

    def _fail(self, number: int, error: Exception) -> None:
        log_unexpected(error)
        self._answers.append(told(number, error))
        self.link.send_soon()

    def _gather_parts(self) -> tuple[list[Any], list[int]]:
        answers, self._answers = self._answers, []
        return answers, self._requests.ended()

    def _gather(self) -> tuple[Any, ...]:
        return (GROUP, *self._gather_parts())

    def _lost(self) -> None:
        waiting, self._waiting = self._waiting, {}
        for begun in waiting.values():
            self._inference.left(begun)
        self._when_lost(self)


def _cut(view: memoryview, sizes: Sequence[int]) -> list[memoryview]:
    """The tensors of one request, each of which begins aligned."""
    found, at = [], 0
    for size in sizes:
        found.append(view[at : at + size])
        at += aligned(size)
    return found
