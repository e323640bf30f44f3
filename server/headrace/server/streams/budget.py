"""Bounds the memory that states hold, over all sessions and sequences."""

from __future__ import annotations

from headrace.server.errors import StreamRefused


class StateBudget:
    """`limit` and `used` are bytes."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.used = 0

    def reserve(self, nbytes: int) -> None:
        """Raises StreamRefused where nothing is left."""
        if self.used + nbytes > self.limit:
            raise StreamRefused(
                "STATE_MEMORY",
                "",
                f"expected room for {nbytes} bytes of state, {self.used} of {self.limit} bytes are "
                "in use",
            )
        self.used += nbytes

    def release(self, nbytes: int) -> None:
        self.used -= nbytes
