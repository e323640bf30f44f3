"""What carries calls: grpcio, or pygrpc-native in front of it.

Handlers do not know which. An engine is whatever has `Engine`'s methods; grpc.aio.Server is
one as it is.
"""

from __future__ import annotations

import importlib.util
from typing import Literal, Protocol

import grpc

from headrace.server.errors import ConfigurationError

# Who may wait is our queue's decision: what it refuses learns why, and when to come back. So an
# engine has no limit of its own that anybody meets.
MOST_PENDING = 1 << 20
# A client that vanished without a word holds its sessions until this finds out.
KEEPALIVE_MS = 20_000

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
