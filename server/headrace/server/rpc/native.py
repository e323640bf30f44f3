"""ModelInfer by pygrpc-native: HTTP/2 outside the interpreter's lock, calls handed over in groups.

Theory of operation. The front owns the port. It reads calls of ModelInfer itself; every other
method (streams, control, health, reflection) it passes on, as it comes, to a grpc.aio server that
listens on a socket file in a folder of this process's own. All calls that have come are given to
the event loop at once (`native_reader.py`). A call has neither task nor coroutine: it is begun, and
finished when its promise tells of its end. So a burst takes one turn of the loop to begin, and a
batch is answered in the turn in which it ends.

What the engine lacks beside grpcio, and what it was measured to save: docs/rpc-engines.md.
"""

from __future__ import annotations

import asyncio
import logging
import shutil
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, Final

import grpc
from pygrpc_native import EVENT_CANCEL, NativeGrpcFront

from headrace.batcher.promise import Promise
from headrace.server import errors
from headrace.server.precedence import made_first
from headrace.server.rpc.calls import CALLER, details_of, log_unexpected
from headrace.server.rpc.engine import KEEPALIVE_MS, MOST_PENDING, Unary
from headrace.server.rpc.guard import shown_in
from headrace.server.rpc.native_reader import Reader

_log = logging.getLogger(__name__)

# One thread reads and writes several hundred MB/s, far more calls than Python can answer.
_IO_THREADS: Final = 1
_EXHAUSTED: Final[int] = grpc.StatusCode.RESOURCE_EXHAUSTED.value[0]


class NativeServer:
    """Has the methods of grpc.aio.Server that are asked of an engine.

    behind: answers all that is not `method` (a full method name, "/package.Service/Method").
    max_message_bytes: largest request; the front reads larger ones to their end all the same.
    shared_port: with other processes of this server.
    """

    def __init__(
        self,
        behind: grpc.aio.Server,
        inference: Unary,
        method: str,
        max_message_bytes: int,
        max_connection_calls: int = MOST_PENDING,
        *,
        shared_port: bool = False,
    ) -> None:
        self._behind = behind
        self._inference = inference
        self._method = method
        self._max_message_bytes = max_message_bytes
        self._max_connection_calls = max_connection_calls
        self._shared_port = shared_port
        self._front: Any = None
        self._folder = ""
        self._reader: Any = None
        self._waiting: dict[int, Any] = {}

    def add_insecure_port(self, address: str) -> int:
        """Binds `address` and returns its port. Raises RuntimeError when it cannot be had."""
        try:
            self._front = made_first(partial(self._bound, address))
        except OSError as error:
            raise RuntimeError(str(error)) from error
        return int(self._front.bound_port)

    def _bound(self, address: str) -> Any:
        return NativeGrpcFront(
            address,
            [(self._method, False)],
            io_threads=_IO_THREADS,
            client_key_metadata=CALLER,
            call_details=True,
            keepalive_time_ms=KEEPALIVE_MS,
            keepalive_timeout_ms=KEEPALIVE_MS,
            keepalive_permit_without_calls=False,
            max_concurrent_streams=self._max_connection_calls,
            reuse_port=self._shared_port,
        )

    def add_secure_port(self, address: str, credentials: grpc.ServerCredentials) -> int:
        """Refused by the settings before it comes to this."""
        raise RuntimeError(f"the native engine has no TLS: {address}")

    async def start(self) -> None:
        self._folder = tempfile.mkdtemp(prefix="headrace-")
        path = str(Path(self._folder, "grpc"))
        self._behind.add_insecure_port(f"unix:{path}")
        await self._behind.start()
        self._front.set_fallback(path)
        self._front.start()
        self._reader = Reader(self._front, self._arrived, self._waiting)
        self._reader.start()

    async def stop(self, grace: float | None) -> None:
        """Ends what is still in flight after `grace` seconds."""
        try:
            await self._behind.stop(grace)
            with suppress(TimeoutError):
                async with asyncio.timeout(grace):
                    waiting = [begun.future for begun in self._waiting.values()]
                    await asyncio.gather(*waiting, return_exceptions=True)
        finally:
            if self._front is not None:
                await asyncio.to_thread(self._front.close)
            if self._folder:
                shutil.rmtree(self._folder, ignore_errors=True)

    def _arrived(self, events: Sequence[tuple[Any, ...]]) -> None:
        for kind, call, _, data, caller, details in events:
            if kind == EVENT_CANCEL:  # or its deadline has passed: the front has told the caller
                begun = self._waiting.pop(call, None)
                if begun is not None:
                    self._inference.left(begun)
            else:
                self._begin(call, data, details, caller)

    def _begin(self, call: int, data: bytes, details: tuple[Any, ...], caller: str | bytes) -> None:
        limit = self._max_message_bytes
        if len(data) > limit:
            message = f"SERVER: Received message larger than max ({len(data)} vs. {limit})"
            self._front.fail(call, _EXHAUSTED, message)
            return
        try:
            name = caller if isinstance(caller, str) else caller.decode()
            metadata, _, remaining = details
            begun = self._inference.begin_call(
                data, lambda: metadata, remaining, name, lambda: shown_in(metadata)
            )
        except Exception as error:  # noqa: BLE001 (the table knows what each error means)
            self._fail(call, error)
            return
        self._waiting[call] = begun
        begun.future.add_done_callback(partial(self._ended, call, begun))

    def _ended(self, call: int, begun: Any, future: asyncio.Future[Any] | Promise[Any]) -> None:
        if self._waiting.pop(call, None) is None:  # the caller has left
            if not future.cancelled():
                future.exception()  # seen, and told to nobody
            return
        try:
            self._front.respond(call, self._inference.finish(begun))
        except asyncio.CancelledError:
            self._fail(call, errors.Draining("the server is shutting down"))
        except Exception as error:  # noqa: BLE001 (the table knows what each error means)
            self._fail(call, error)
        finally:  # the engine does not tell when it has written it
            self._inference.sent(begun)
            if not self._waiting:
                self._reader.all_answered()

    def _fail(self, call: int, error: Exception) -> None:
        log_unexpected(error)
        code: int = errors.row_of(error).code.value[0]
        self._front.fail(call, code, errors.message_of(error), list(details_of(error)))
