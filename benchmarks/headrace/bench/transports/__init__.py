"""How a request travels: one class for each way, all driven in the same way by a load process."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

OK = "OK"

Done = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Prepared:
    """A request made ready before the clock runs: `body` is the serialised message (gRPC) or the
    HTTP body; `headers` are those of HTTP; `path` is the gRPC method or the URL's path."""

    path: str
    body: bytes
    headers: tuple[tuple[str, str], ...] = ()


class Transport(Protocol):
    """Sends without waiting. `done` is called exactly once for each request, on the event loop,
    with "OK", the gRPC status' name, or "HTTP <code>"; it may send again. Nothing is raised by
    `send`."""

    name: str

    async def open(self) -> None:
        """Connects; raises ConnectionError, naming the address, where nobody listens."""

    def send(self, request: Prepared, timeout: float | None, done: Done) -> None:
        """Sends now. `timeout` in seconds is the request's deadline, told to the server."""

    async def close(self) -> None:
        """Ends what is in flight as CANCELLED and closes."""
