"""Health and metrics over HTTP, for probes and scrapers that do not speak gRPC."""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections.abc import Callable

from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError

from headrace.server.errors import ServerError, row_of
from headrace.server.models.registry import Registry
from headrace.server.security.access import ALL_MODELS, Shown, digest_of
from headrace.server.security.guard import Guard
from headrace.server.telemetry.metrics import Metrics
from headrace.server.telemetry.prometheus import PrometheusText

_log = logging.getLogger(__name__)


_INDEX = """Headrace. gRPC has a port of its own; here there are:
/metrics
/v2/health/live
/v2/health/ready
/v2/models/MODEL/ready
/v2/models/MODEL/versions/VERSION/ready
"""


class _InALine(logging.Filter):
    """What was no HTTP is the sender's fault: told in a line, without our stack."""

    def filter(self, record: logging.LogRecord) -> bool:
        error = record.exc_info[1] if record.exc_info else None
        if isinstance(error, HttpProcessingError):
            record.levelno, record.levelname = logging.WARNING, "WARNING"
            record.msg += ": no HTTP/1 (gRPC has a port of its own): %s"
            record.args = (*(record.args or ()), type(error).__name__)  # its text has what came
            record.exc_info = None
        return True


_log.addFilter(_InALine())


async def _without_versions(_: web.Request, response: web.StreamResponse) -> None:
    """Nobody needs to know which libraries answer, nor which of their faults."""
    response.headers["Server"] = "headrace"


class HttpServer:
    """What `_INDEX` lists, and that list itself on `/`."""

    def __init__(
        self,
        registry: Registry,
        metrics: Metrics,
        is_ready: Callable[[], bool],
        guard: Guard,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self._registry = registry
        self._metrics = metrics
        self._is_ready = is_ready
        self._guard = guard
        self._tls = tls
        self._text = PrometheusText()
        app = web.Application()
        app.on_response_prepare.append(_without_versions)
        app.router.add_get("/", self._index)
        app.router.add_get("/v2/health/live", self._live)
        app.router.add_get("/v2/health/ready", self._ready)
        app.router.add_get("/v2/models/{model}/ready", self._model_ready)
        app.router.add_get("/v2/models/{model}/versions/{version}/ready", self._model_ready)
        app.router.add_get("/metrics", self._metrics_text)
        self._runner = web.AppRunner(app, access_log=None, logger=_log)

    async def start(self, host: str, port: int) -> int:
        """Listens and returns the port. Raises ServerError when it cannot be had."""
        await self._runner.setup()
        try:
            await web.TCPSite(self._runner, host, port, ssl_context=self._tls).start()
        except OSError as error:
            raise ServerError(
                f"http: cannot listen on {host}:{port}: {error.strerror}; choose "
                "another with --http-port (0 takes a free port)"
            ) from error
        return int(self._runner.addresses[0][1])

    async def stop(self) -> None:
        await self._runner.cleanup()

    async def _index(self, _: web.Request) -> web.Response:
        return web.Response(text=_INDEX)

    async def _live(self, _: web.Request) -> web.Response:
        return web.Response(text="live\n")

    async def _ready(self, _: web.Request) -> web.Response:
        ready = self._is_ready()
        return web.Response(
            text="ready\n" if ready else "not ready\n", status=200 if ready else 503
        )

    async def _model_ready(self, request: web.Request) -> web.Response:
        info = request.match_info
        try:
            self._check(request, info["model"])
            self._registry.check_ready(info["model"], info.get("version", ""))
        except ServerError as error:
            return web.Response(text=f"{error}\n", status=row_of(error).http)
        return web.Response(text="ready\n")

    def _check(self, request: web.Request, model: str) -> None:
        """Raises Unauthenticated, PermissionDenied."""
        shown = Shown(digest_of(request.headers.get("Authorization")))
        self._guard.check("read", model, lambda: shown)

    async def _metrics_text(self, request: web.Request) -> web.Response:
        try:
            self._check(request, ALL_MODELS)
        except ServerError as error:
            return web.Response(text=f"{error}\n", status=row_of(error).http)
        # Read here, where nothing changes meanwhile; written elsewhere, where nobody waits for it.
        text = await asyncio.to_thread(self._text.write, self._metrics.collect())
        return web.Response(body=text, headers={"Content-Type": "text/plain; version=0.0.4"})
