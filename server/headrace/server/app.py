"""The composition root: builds everything, starts it, stops it in order. Nothing else builds."""

from __future__ import annotations

import asyncio
import gc
import logging
import math
import os
import signal
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

from headrace.server.allocator import keep_freed_memory
from headrace.server.config import Settings
from headrace.server.errors import LoadFailed, ModelNotFound, ModelUnavailable
from headrace.server.executors.resources import usable_memory
from headrace.server.executors.session import Provider
from headrace.server.http import HttpServer
from headrace.server.models.operators import OperatorLibraries
from headrace.server.models.plan_cache import plan_cache
from headrace.server.models.registry import Registry
from headrace.server.models.repository import Catalogue
from headrace.server.models.served import Host
from headrace.server.pressure import Pressure
from headrace.server.rpc import server as rpc
from headrace.server.rpc.control import ControlService
from headrace.server.rpc.engine import Engine, stop
from headrace.server.rpc.limits import Limits
from headrace.server.rpc.service import InferenceService
from headrace.server.rpc.stream_codec import encode_delivery
from headrace.server.rpc.streams import StreamService
from headrace.server.security.access import read_identities
from headrace.server.security.guard import Guard, is_loopback
from headrace.server.security.reload import Reloaded
from headrace.server.security.tls import CertificateFiles, Certificates
from headrace.server.streams.budget import StateBudget
from headrace.server.streams.manager import SessionManager
from headrace.server.streams.sequences import Sequences
from headrace.server.streams.terms import StreamLimits
from headrace.server.telemetry.devices import Devices
from headrace.server.telemetry.export import configured
from headrace.server.telemetry.metrics import Metrics, Sample
from headrace.server.telemetry.watch import Watch

_log = logging.getLogger(__name__)

# What remains for the transport to send last answers once nothing is in flight any more.
_FLUSH_SECONDS = 1.0
_MOST_IN_FLIGHT = 2 << 30  # bytes, where nothing is said; a quarter of a small machine's memory
# A stopping server listens until no request has come for so long, but no longer than the second.
_QUIET_SECONDS, _SETTLE_SECONDS = 0.1, 2.0
# How long a run may take to notice that it has been told to stop: one operator of its graph.
_ABORT_SECONDS = 5.0


# Puts together what carries calls, from all that answers them.
Build = Callable[
    [InferenceService, ControlService, StreamService, rpc.Health, Settings, Watch], Engine
]


@dataclass(frozen=True, slots=True)
class Addresses:
    """Where a server listens."""

    host: str
    grpc_port: int
    http_port: int

    @property
    def grpc(self) -> str:
        return f"{self.host}:{self.grpc_port}"

    @property
    def http(self) -> str:
        return f"{self.host}:{self.http_port}"


class App:
    """One server. `start`, then `stop`; or `running(settings)` for both."""

    def __init__(self, settings: Settings, build: Build = rpc.build) -> None:
        """Raises ConfigurationError when the models' paths hold no models, the engine that calls
        are to come by is not installed, or a certificate cannot be read."""
        self.settings = settings
        self._otlp = configured(os.environ)
        self._watch = Watch(
            self._otlp.tracing if self._otlp else None,
            on=settings.telemetry == "on",
            access_log=settings.access_log,
        )
        self._host = host_for(settings, self._watch)
        self._pressure: Pressure | None = None
        self.registry = Registry(
            Catalogue(settings.models, follow_links=settings.follow_links), self._host
        )
        self.stuck = False
        self._ready = False
        self._health = rpc.Health()
        self.registry.listener = self._health
        self._watch.resolve = self._served_by
        budget = StateBudget(settings.max_state_bytes)
        self._sequences = Sequences(self.registry, budget, settings.sequence_idle_seconds)
        guard = _guard(settings)
        self._inference = InferenceService(
            self._sequences, self._watch, guard, limits_for(settings)
        )
        sessions = SessionManager(
            self.registry, _stream_limits(settings), budget, encode_delivery, time.monotonic
        )
        self._metrics = Metrics(
            self._samples,
            self._inference.outcomes,
            sessions.statistics,
            self._watch.calls,
            Devices(),
            triton=settings.triton_metrics,
        )
        sampling = self._watch.tracing.sampling if self._watch.tracing else None
        control = ControlService(self.registry, self.is_ready, sampling)
        self._streams = StreamService(sessions, self._watch, guard, self._inference.in_flight)
        self._grpc = build(
            self._inference,
            control,
            self._streams,
            self._health,
            settings,
            self._watch,
        )
        self._certificates = _certificates(settings)
        https = self._certificates.for_http() if self._certificates and settings.http_tls else None
        self._http = HttpServer(self.registry, self._metrics, self.is_ready, guard, https)

    def is_ready(self) -> bool:
        """Whether it takes requests: false while it starts, once it stops, and while no model has
        an executor left."""
        return self._ready and self.registry.able

    async def start(self) -> Addresses:
        """Listens, then loads the models; returns once they serve.

        While it loads, calls are answered UNAVAILABLE and probes see it alive. Raises ServerError
        when a port is taken, LoadFailed when not one model could be loaded.
        """
        settings = self.settings
        await self._health.start()
        grpc_port = rpc.bind(self._grpc, settings.host, settings.grpc_port, self._certificates)
        await self._grpc.start()
        http_port = await self._http.start(settings.host, settings.http_port)
        await self.registry.load_all()
        if not self.registry.ready_models():
            reasons = [f"{entry.name}: {entry.reason}" for entry in self.registry.index()]
            raise LoadFailed("no model could be loaded: " + "; ".join(reasons))
        self._pressure = Pressure(self._host.device)
        if self._otlp is not None:
            self._otlp.start(self._metrics.collect)
        self._ready = True
        await self._health.ready()
        return Addresses(settings.host, grpc_port, http_port)

    async def stop(self, grace: float | None = None) -> None:
        """Refuses new work, answers what is in flight within `grace` seconds, and lets go."""
        grace = self.settings.grace_seconds if grace is None else grace
        self._ready = False
        await self._health.drain()
        self._inference.drain()
        try:
            async with asyncio.timeout(grace):
                await self._streams.drain()
                await self.registry.drain()
        except TimeoutError:
            _log.warning("the grace period of %g s is over, ending what still waits", grace)
            await self._end_streams()
            await self._abort()
        await self._settle()
        self.stuck = self.stuck or any(executor.alive for executor in self._host.deserted)
        await stop(self._grpc, _FLUSH_SECONDS)
        await self._http.stop()
        self._sequences.close()
        if self._otlp is not None:
            await self._otlp.stop()
        self._metrics.close()
        if self._pressure is not None:
            self._pressure.close()

    async def _settle(self) -> None:
        """Goes on refusing until nothing comes any more.

        gRPC cancels the calls that it has received and not yet handed over when it is stopped, and
        their callers would not learn why.
        """
        latest = time.monotonic() + _SETTLE_SECONDS
        while (now := time.monotonic()) < latest:
            quiet = now - self._inference.quiet_since()
            if quiet >= _QUIET_SECONDS:
                return
            await asyncio.sleep(_QUIET_SECONDS - quiet)

    async def _end_streams(self) -> None:
        try:
            await asyncio.wait_for(self._streams.give_up(), _FLUSH_SECONDS)
        except TimeoutError:
            _log.warning("some sensor streams were not read to their end")

    async def _abort(self) -> None:
        self.registry.abort()
        try:
            await asyncio.wait_for(self.registry.drain(), _ABORT_SECONDS)
        except TimeoutError:
            _log.error("a run did not stop within %g s", _ABORT_SECONDS)
            self.stuck = True

    def _samples(self) -> list[Sample]:
        return [
            Sample(
                model.spec.name,
                model.spec.version,
                model.statistics,
                model.runner.state,
                model.costs,
                model.quality,
            )
            for model in self.registry.ready_models()
        ]

    def _served_by(self, name: str, version: str) -> tuple[str, str]:
        """The name and version that answer to what a caller says. A model that is known and does
        not serve has no version; a name that nobody knows is not repeated."""
        try:
            return name, self.registry.get(name, version).spec.version
        except ModelUnavailable:
            return name, ""
        except ModelNotFound:
            return "", ""


def host_for(settings: Settings, watch: Watch) -> Host:
    return Host(
        Provider(settings.provider),
        plan_cache(settings.cache_dir),
        watch=watch,
        operators=OperatorLibraries(settings.operator_libraries or ()),
        hang_seconds=settings.hang_seconds or math.inf,
    )


def limits_for(settings: Settings) -> Limits:
    return Limits(
        elements=settings.max_tensor_elements,
        dimensions=settings.max_dimensions,
        parameters=settings.max_parameters,
        bytes_in_flight=settings.max_inflight_bytes or _quarter_of_memory(),
        caller_calls=settings.max_caller_calls,
        caller_streams=settings.max_caller_streams,
    )


def _quarter_of_memory() -> int:
    memory = usable_memory()
    return _MOST_IN_FLIGHT if memory is None else min(_MOST_IN_FLIGHT, memory // 4)


def _guard(settings: Settings) -> Guard:
    """Raises ConfigurationError when the file of identities cannot be read."""
    file, local = settings.access_file, is_loopback(settings.host)
    if file is None:
        if not local and settings.tls_client_ca is None:
            _log.warning(
                "%s without access_file or tls_client_ca: whoever can reach it may call it",
                settings.host,
            )
        return Guard(control=local or settings.allow_control)
    if not local and settings.tls_certificate is None:
        _log.warning("access_file without tls_certificate: tokens travel where others may read")
    return Guard(Reloaded([file], lambda: read_identities(file)))


def _certificates(settings: Settings) -> Certificates | None:
    """Raises ConfigurationError when they cannot be read, or do not fit each other."""
    if settings.tls_certificate is None or settings.tls_key is None:
        return None
    files = CertificateFiles(settings.tls_certificate, settings.tls_key, settings.tls_client_ca)
    return Certificates(files)


def _stream_limits(settings: Settings) -> StreamLimits:
    return StreamLimits(
        settings.max_sessions,
        settings.max_connection_sessions,
        settings.max_buffered_samples,
        settings.max_session_ttl,
        settings.max_stream_bytes or _quarter_of_memory(),
    )


@asynccontextmanager
async def running(
    settings: Settings, build: Build = rpc.build
) -> AsyncIterator[tuple[App, Addresses]]:
    """A server that is up inside the block and stopped in order after it."""
    app = App(settings, build)
    try:
        addresses = await app.start()
        yield app, addresses
    finally:
        await app.stop()


def settle_memory() -> None:
    """What is in memory once models serve is there to stay: the collector need not walk it again.

    Nothing that a request makes is part of a cycle, nor is a model: both are freed without it.
    """
    gc.collect()
    gc.freeze()


async def serve(settings: Settings) -> bool:
    """Serves until SIGTERM or SIGINT, then stops in order; a second signal stops at once.

    Returns whether everything has ended. If not, a thread still runs inside ONNX Runtime, and the
    interpreter must not be torn down around it.
    """
    keep_freed_memory()
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.set)
    async with running(settings) as (app, addresses):
        settle_memory()
        print(  # noqa: T201 (the contract: the first line on standard output says where)
            f"headrace serves gRPC on {addresses.grpc} and HTTP on {addresses.http}", flush=True
        )
        await stopping.wait()
        _log.info("stopping: refusing new requests, answering those in flight")
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, _stop_at_once, number)
    _log.info("stopped")
    return not app.stuck


def _stop_at_once(number: int) -> None:
    """Ends the process as the signal would. Torn down around threads that still run it would abort
    instead, with a message that alarms."""
    _log.warning("stopping at once: a second signal came; what was in flight is lost")
    os._exit(128 + number)
