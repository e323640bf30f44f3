"""What carries calls: grpcio, or pygrpc-native in front of it.

Handlers do not know which. An engine is whatever has `Engine`'s methods; grpc.aio.Server is
one as it is.
"""

from __future__ import annotations

import asyncio
import importlib.util
from collections.abc import Callable
from typing import Any, Literal, Protocol

import grpc

from headrace.server.errors import ConfigurationError
from headrace.server.security.access import Shown
from headrace.server.telemetry.sampling import Metadata

# Who may wait is our queue's decision: what it refuses learns why, and when to come back. So an
# engine has no limit of its own that anybody meets.
MOST_PENDING = 1 << 20
# A client that vanished without a word holds its sessions until this finds out.
KEEPALIVE_MS = 20_000

_GRPCIO_CALL = "rpc_task"  # grpcio's name for a task that sees a call through

EngineName = Literal["auto", "grpcio", "native"]


class Engine(Protocol):
    """A server with everything registered."""

    def add_insecure_port(self, address: str) -> int:
        """Binds `address` and returns its port. Raises RuntimeError when it cannot be had."""

    def add_secure_port(self, address: str, credentials: grpc.ServerCredentials) -> int:
        """The same with TLS."""

    async def start(self) -> None: ...

    async def stop(self, grace: float | None) -> None:
        """Takes no more calls, and ends those in flight after `grace` seconds."""


async def stop(engine: Engine, seconds: float) -> None:
    """Stops `engine` within `seconds`, and as many again for what grpcio leaves behind.

    grpcio's stop returns before the tasks of the calls that it has cancelled, such as the health
    watches of clients that balance. Ended by the event loop's end, each would write a traceback.
    """
    await engine.stop(seconds)
    left = [task for task in asyncio.all_tasks() if task.get_name() == _GRPCIO_CALL]
    if left:
        await asyncio.wait(left, timeout=seconds)


class Unary(Protocol):
    """Who answers ModelInfer: in this process, or in another one. What `begin_call` gives has a
    `future`, and goes back to `finish` once that has ended, and to `sent` when the answer has been
    handed over; or to `left`."""

    def begin_call(
        self,
        data: bytes,
        metadata: Callable[[], Metadata | None],
        remaining: float | None,
        caller: str,
        shown: Callable[[], Shown],
    ) -> Any: ...

    def finish(self, begun: Any) -> bytes: ...

    def sent(self, begun: Any) -> None: ...

    def left(self, begun: Any) -> None: ...


def grpcio_options(
    max_message_bytes: int, max_connection_calls: int, *, shared_port: bool = False
) -> list[tuple[str, int]]:
    """Of a grpc.aio.Server. `shared_port`: with other processes of this server."""
    return [
        ("grpc.max_receive_message_length", max_message_bytes),
        ("grpc.max_send_message_length", -1),
        ("grpc.max_concurrent_streams", max_connection_calls),
        # Two servers on one port would take each other's calls unnoticed.
        ("grpc.so_reuseport", int(shared_port)),
        # From the first number to the second gRPC cancels calls that it has not handed to us
        # yet, at random, and tells their callers nothing else; by default from 1,000.
        ("grpc.server.max_pending_requests", MOST_PENDING),
        ("grpc.server.max_pending_requests_hard_limit", MOST_PENDING),
        # gRPC's default of five minutes would cut off clients that watch quiet streams.
        ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
        ("grpc.keepalive_time_ms", KEEPALIVE_MS),
        ("grpc.keepalive_timeout_ms", KEEPALIVE_MS),
    ]


def choose(wanted: EngineName) -> Literal["grpcio", "native"]:
    """The engine for `wanted`. Raises ConfigurationError for one that is not installed.

    "auto" is grpcio, whatever is installed: the other reads a message to its end before its size
    can be refused (docs/rpc-engines.md), so it is for whoever knows who can reach the port.
    """
    if wanted != "native":
        return "grpcio"
    if importlib.util.find_spec("pygrpc_native") is None:
        raise ConfigurationError(
            "rpc_engine: native needs pygrpc-native, which comes with an extra: "
            "pip install 'headrace[fast]'"
        )
    return "native"
