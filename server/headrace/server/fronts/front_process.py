"""A process that carries gRPC: it shares the port with others like it, and owns nothing else."""

from __future__ import annotations

import asyncio
import gc
import os
import socket
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import grpc

from headrace.inference.v2 import grpc_service_pb2 as pb
from headrace.server.allocator import keep_freed_memory
from headrace.server.config import Settings
from headrace.server.errors import ServerError
from headrace.server.fronts.arena import Writer, map_to_read, new_memory
from headrace.server.fronts.child import Life, run
from headrace.server.fronts.names import GRPC_SOCKET, HANDSHAKE, LINK_SOCKET
from headrace.server.fronts.passing import Passing
from headrace.server.fronts.remote import Remote, RemoteInference
from headrace.server.rpc.engine import Engine, choose, grpcio_options, stop
from headrace.server.rpc.tls import server_credentials
from headrace.server.security.tls import CertificateFiles, Certificates

_SERVICE = pb.DESCRIPTOR.services_by_name["GRPCInferenceService"].full_name
_METHOD = f"/{_SERVICE}/ModelInfer"
_RECONNECT_SECONDS = 0.05
# A front that is started again finds the model process there; callers come to it after that.
_FIRST_SECONDS = 0.5
# What remains for the transport to send last answers, once nothing is in flight any more.
_FLUSH_SECONDS = 1.0
# A front that stops listens until no call has come for so long, but no longer than the second.
_QUIET_SECONDS, _SETTLE_SECONDS = 0.1, 2.0


async def _main(life: Life) -> bool:
    folder = Path(life.config["folder"])
    inference, passing = RemoteInference(), Passing()
    server = _build(life.settings, inference, passing)
    connection = _Connection(folder, life.settings.front_memory_bytes, inference, passing)
    connecting = asyncio.create_task(connection.keep())
    with suppress(TimeoutError):
        await asyncio.wait_for(connection.made.wait(), _FIRST_SECONDS)
    _bind(server, life.settings)
    await server.start()
    keep_freed_memory()
    gc.collect()
    gc.freeze()
    life.report(serving=True)
    stopping = asyncio.create_task(life.stopping.wait())
    await asyncio.wait([stopping, connecting], return_when=asyncio.FIRST_COMPLETED)
    await _settle(inference)
    await stop(server, _FLUSH_SECONDS)
    if connecting.done():
        connecting.result()
    for task in (stopping, connecting):
        task.cancel()
    await connection.close()
    return True


async def _settle(inference: RemoteInference) -> None:
    """Goes on refusing until nothing comes any more, as App does: gRPC cancels the calls that it
    has not handed over yet when it is stopped."""
    latest = time.monotonic() + _SETTLE_SECONDS
    while (now := time.monotonic()) < latest:
        quiet = now - inference.latest
        if quiet >= _QUIET_SECONDS:
            return
        await asyncio.sleep(_QUIET_SECONDS - quiet)


def _build(settings: Settings, inference: RemoteInference, passing: Passing) -> Engine:
    size, calls = settings.max_message_bytes, settings.max_connection_calls
    options = grpcio_options(size, calls, shared_port=True)
    server = grpc.aio.server(options=options, maximum_concurrent_rpcs=settings.max_calls)
    handler: Any = grpc.unary_unary_rpc_method_handler(inference.model_infer)
    server.add_generic_rpc_handlers((_Infer(handler), passing))
    if choose(settings.rpc_engine) == "grpcio":
        return server
    from headrace.server.rpc.native import NativeServer  # an extra

    return NativeServer(server, inference, _METHOD, size, calls, shared_port=True)


class _Infer(grpc.GenericRpcHandler):
    def __init__(self, handler: Any) -> None:
        self._handler = handler

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> Any:
        return self._handler if handler_call_details.method == _METHOD else None


def _bind(server: Engine, settings: Settings) -> None:
    """Raises ServerError when the port, which the supervisor has found free, cannot be had."""
    host, port = settings.host, settings.grpc_port
    address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    try:
        if settings.tls_certificate is None or settings.tls_key is None:
            bound = server.add_insecure_port(address)
        else:
            files = CertificateFiles(
                settings.tls_certificate, settings.tls_key, settings.tls_client_ca
            )
            bound = server.add_secure_port(address, server_credentials(Certificates(files)))
    except RuntimeError as error:
        raise ServerError(f"grpc: cannot listen on {address}: {error}") from error
    if not bound:
        raise ServerError(f"grpc: cannot listen on {address}")


class _Connection:
    """The way to the model process, made again whenever there is another one. `made`: set once it
    has been made for the first time."""

    def __init__(
        self, folder: Path, memory: int, inference: RemoteInference, passing: Passing
    ) -> None:
        self._folder = folder
        self._memory = memory
        self._inference = inference
        self._passing = passing
        self.made = asyncio.Event()

    async def keep(self) -> None:
        """Returns once a model process has said that it, and the server with it, has ended."""
        ended = False
        while not ended:
            try:
                ended = await self._use(await self._connect())
            except OSError:  # there is none, or it has just gone
                await asyncio.sleep(_RECONNECT_SECONDS)

    async def close(self) -> None:
        remote, self._inference.remote = self._inference.remote, None
        if remote is not None:
            remote.link.close()
        await self._passing.end()

    async def _connect(self) -> socket.socket:
        """Raises OSError while nobody listens."""
        connection = socket.socket(socket.AF_UNIX)
        connection.setblocking(False)
        try:
            path = str(self._folder / LINK_SOCKET)
            await asyncio.get_running_loop().sock_connect(connection, path)
        except BaseException:
            connection.close()
            raise
        return connection

    async def _use(self, connection: socket.socket) -> bool:
        """Until the model process has gone; returns whether it ended in order."""
        lost = asyncio.Event()
        remote = self._handshake(connection, lost)
        loop = asyncio.get_running_loop()
        await loop.create_connection(lambda: remote.link, sock=connection)
        self._inference.remote = remote
        self._passing.open(self._folder / GRPC_SOCKET)
        self.made.set()
        waiting = [loop.create_task(event.wait()) for event in (lost, remote.ended)]
        try:
            await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in waiting:
                task.cancel()
        if remote.ended.is_set():
            return True
        self._inference.remote = None
        await self._passing.close()
        return False

    def _handshake(self, connection: socket.socket, lost: asyncio.Event) -> Remote:
        size = self._memory
        descriptors = [
            new_memory("headrace-requests", size),
            new_memory("headrace-responses", size),
        ]
        try:
            socket.send_fds(connection, [HANDSHAKE.pack(size, size)], descriptors)
            requests = Writer(descriptors[0], size)
            return Remote(requests, map_to_read(descriptors[1], size), lost.set)
        except OSError:
            connection.close()
            raise
        finally:
            for descriptor in descriptors:
                os.close(descriptor)


if __name__ == "__main__":
    sys.exit(run(_main))
