"""How soon a server answers a call that needs no model, while it is under load.

A front that copies a large tensor on its event loop is not to be spoken to meanwhile (grpc/grpc
issue 39803): whoever asks for something small waits. So a process of its own asks ServerLive (over
HTTP: what says that the peer is ready) at even times, on a connection of its own. A call that could
not be sent when it was due, because the one before had no answer yet, counts from its due time.
"""

from __future__ import annotations

import contextlib
import http.client
import math
import multiprocessing
import time
from array import array
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from types import TracebackType
from typing import Self
from urllib.parse import urlsplit

import grpc
import numpy as np

from headrace.bench.errors import BenchError
from headrace.bench.results import Distribution
from headrace.bench.spec import Target
from headrace.bench.times import Times
from headrace.bench.transports.channel import OPTIONS
from headrace.inference.v2 import grpc_service_pb2 as pb

_LIVE = "/inference.GRPCInferenceService/ServerLive"
_READY_PATH = "/v2/health/live"
_PATIENCE = 30.0  # for one answer, and for the process to start and to end

Ask = Callable[[], None]


class Pulse:
    """The process that asks `target` every `every` seconds, while the block lasts."""

    def __init__(self, target: Target, every: float) -> None:
        context = multiprocessing.get_context("spawn")  # gRPC does not survive a fork
        self._here, there = context.Pipe()
        self._process = context.Process(target=_main, args=(there, target, every), daemon=True)
        self._process.start()
        there.close()
        try:
            self._hear("it did not start")
        except BenchError:
            self._end()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._end()

    def _end(self) -> None:
        """The process ends with its connection, or is ended."""
        self._here.close()
        self._process.join(0.5)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()
        self._process.close()

    def begin(self, began: float, seconds: float) -> None:
        """Asks from `began`, of the monotonic clock, for `seconds`."""
        self._here.send((began, seconds))

    def found(self) -> Distribution | None:
        """The times of all calls that were answered, from when they were due. Waits for the last of
        them. Raises BenchError where one had no answer."""
        times = Times()
        times.add(np.frombuffer(self._hear("it did not end"), np.float64))
        return times.distribution()

    def _hear(self, why: str) -> bytes:
        try:
            if self._here.poll(2 * _PATIENCE):
                said: bytes | str = self._here.recv()
                if isinstance(said, bytes):
                    return said
                why = said
        except (EOFError, OSError):
            why = "it has ended unexpectedly"
        raise BenchError(f"small calls beside the load: {why}")


def _main(connection: Connection, target: Target, every: float) -> None:
    with contextlib.suppress(EOFError, OSError):  # the parent is gone, or has what it wanted
        try:
            with _asking(target) as ask:
                ask()
                connection.send(b"")
                began, seconds = connection.recv()
                connection.send(_ask_evenly(ask, began, seconds, every).tobytes())
        except (grpc.RpcError, http.client.HTTPException, ConnectionError, TimeoutError) as error:
            connection.send(f"{target.address}: {type(error).__name__}: {error}")


def _ask_evenly(ask: Ask, began: float, seconds: float, every: float) -> array[float]:
    times = array("d")
    for number in range(math.ceil(seconds / every)):
        due = began + number * every
        time.sleep(max(0.0, due - time.monotonic()))
        ask()
        times.append(time.monotonic() - due)
    return times


@contextmanager
def _asking(target: Target) -> Iterator[Ask]:
    if target.protocol == "http":
        url = urlsplit(target.address)
        path = str(target.about.get("ready", _READY_PATH))
        connection = http.client.HTTPConnection(url.hostname or "", url.port, timeout=_PATIENCE)

        def get() -> None:
            connection.request("GET", path)
            connection.getresponse().read()

        yield get
        connection.close()
        return
    with grpc.insecure_channel(target.address, options=list(OPTIONS.items())) as channel:
        call = channel.unary_unary(
            _LIVE,
            request_serializer=pb.ServerLiveRequest.SerializeToString,
            response_deserializer=pb.ServerLiveResponse.FromString,
        )

        def live() -> None:
            call(pb.ServerLiveRequest(), timeout=_PATIENCE)

        yield live
