"""Waiting for what another process, or the other side of a connection, will come to say."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from support.server import PATIENCE


async def until(condition: Callable[[], Awaitable[bool]]) -> None:
    """Asks until it is so. Raises TimeoutError when it never becomes so."""
    async with asyncio.timeout(PATIENCE):
        while not await condition():  # noqa: ASYNC110 (no event of this loop tells)
            await asyncio.sleep(0.005)
