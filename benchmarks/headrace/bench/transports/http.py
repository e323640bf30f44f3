"""HTTP POST by aiohttp, for servers that speak nothing else.

aiohttp has no callbacks, so here each request is a task; the report says what that costs.
"""

from __future__ import annotations

import asyncio
from urllib.parse import urlsplit

import aiohttp

from headrace.bench.transports import OK, Done, Prepared

# select(2) takes descriptors below 1024; more requests at once than this wait for a connection.
_CONNECTIONS = 900
_PATIENCE = 10.0


class HttpTransport:
    """Keeps its connections. A path is relative to the target's address."""

    name = "aiohttp"

    def __init__(self, address: str) -> None:
        self._address = address if "://" in address else f"http://{address}"
        self._session: aiohttp.ClientSession | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    async def open(self) -> None:
        url = urlsplit(self._address)
        port = url.port or (443 if url.scheme == "https" else 80)
        try:
            async with asyncio.timeout(_PATIENCE):
                _, writer = await asyncio.open_connection(url.hostname, port)
        except (OSError, TimeoutError) as error:
            raise ConnectionError(f"nobody answers at {self._address}: {error}") from error
        writer.close()
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=_CONNECTIONS),
            timeout=aiohttp.ClientTimeout(total=None),
            auto_decompress=False,
        )

    def send(self, request: Prepared, timeout: float | None, done: Done) -> None:
        task = asyncio.get_running_loop().create_task(self._post(request, timeout, done))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _post(self, request: Prepared, timeout: float | None, done: Done) -> None:
        assert self._session is not None, "open() comes first"
        status = "CANCELLED"
        try:
            async with (
                asyncio.timeout(timeout),
                self._session.post(
                    self._address + request.path, data=request.body, headers=request.headers
                ) as response,
            ):
                await response.read()
            status = OK if response.status < 300 else f"HTTP {response.status}"
        except TimeoutError:
            status = "DEADLINE_EXCEEDED"
        except (aiohttp.ClientError, OSError):
            status = "UNAVAILABLE"
        finally:
            done(status)

    async def close(self) -> None:
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        if self._session is not None:
            await self._session.close()
