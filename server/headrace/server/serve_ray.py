"""Models as an application of Ray Serve: each replica is the engine of `headrace serve`, behind
Ray's gRPC proxies.

The proxies pass requests on as the bytes that came, by `add_inference_to_server`, so that tensors
are not parsed on the way; the replica answers with bytes and, for errors, with the status and the
details of the server's table. What a proxy cannot carry is left out: ModelStreamInfer, sensor
streams, and the control of models, which would reach one replica of many. deploy/ray/README.md
says how to run it.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

import grpc
from google.protobuf.message import DecodeError
from google.protobuf.message_factory import GetMessageClass

from headrace.inference.v2 import grpc_service_pb2 as pb
from headrace.server import errors
from headrace.server.app import host_for, limits_for
from headrace.server.config import Settings, load_settings
from headrace.server.models.registry import Registry
from headrace.server.models.repository import Catalogue
from headrace.server.rpc.calls import CALLER, details_of, log_unexpected
from headrace.server.rpc.control import ControlService
from headrace.server.rpc.service import InferenceService
from headrace.server.streams.budget import StateBudget
from headrace.server.streams.sequences import Sequences
from headrace.server.telemetry.watch import Watch

_SERVICE = pb.DESCRIPTOR.services_by_name["GRPCInferenceService"]
_READING = (
    "ServerLive", "ServerReady", "ModelReady", "ServerMetadata", "ModelMetadata", "ModelConfig",
    "ModelStatistics", "RepositoryIndex",
)  # fmt: skip
# Settings of what a replica has: its own port, streams and control it has not.
_HONOURED = (
    "models", "follow_links", "provider", "cache_dir", "operator_libraries", "hang_seconds",
    "access_log", "max_inflight_bytes", "max_tensor_elements", "max_dimensions", "max_parameters",
    "max_caller_calls", "max_state_bytes", "sequence_idle_seconds",
)  # fmt: skip


def add_inference_to_server(servicer: Any, server: grpc.aio.Server) -> None:
    """For `grpc_servicer_functions` in Ray Serve's configuration: the unary methods of
    inference.GRPCInferenceService, bytes in and bytes out."""
    handlers: dict[str, Any] = {
        name: grpc.unary_unary_rpc_method_handler(getattr(servicer, name))
        for name in ("ModelInfer", *_READING)
    }
    handler = grpc.method_handlers_generic_handler(_SERVICE.full_name, handlers)
    server.add_generic_rpc_handlers((handler,))


@dataclass(frozen=True, slots=True)
class Reply:
    """Bytes in the place of a message: Ray serializes what a replica returns."""

    data: bytes

    def SerializeToString(self) -> bytes:
        return self.data


class Replica:
    """One engine. Ray calls the methods on the event loop that made it."""

    async def __init__(self, given: Mapping[str, Any]) -> None:  # type: ignore[misc]
        """Loads the models. Ray awaits it: the replica is not there before they serve.

        `given`: settings of `headrace serve`, those in `_HONOURED`. Raises ConfigurationError,
        LoadFailed.
        """
        settings = _settings(given)
        watch = Watch(access_log=settings.access_log)
        catalogue = Catalogue(settings.models, follow_links=settings.follow_links)
        self._registry = Registry(catalogue, host_for(settings, watch))
        await self._registry.load_all()
        if not self._registry.ready_models():
            reasons = [f"{entry.name}: {entry.reason}" for entry in self._registry.index()]
            raise errors.LoadFailed("no model could be loaded: " + "; ".join(reasons))
        budget = StateBudget(settings.max_state_bytes)
        sequences = Sequences(self._registry, budget, settings.sequence_idle_seconds)
        self._inference = InferenceService(sequences, watch, limits=limits_for(settings))
        self._control = ControlService(self._registry, lambda: self._registry.able)

    def check_health(self) -> None:
        """Ray asks this every few seconds, and replaces a replica that raises."""
        if not self._registry.able:
            raise RuntimeError("no model has an executor left: their runs hang")

    async def ModelInfer(self, data: bytes, grpc_context: Any) -> Reply:
        """Ray tells no deadline, but cancels this when the caller's has passed: a request that
        still waits then is dropped."""
        return await _reply(self._infer(data, grpc_context), grpc_context)

    async def _infer(self, data: bytes, context: Any) -> bytes:
        caller = dict(context.invocation_metadata()).get(CALLER) or str(context.peer())
        response, charge = await self._inference.answer(data, time.monotonic(), None, caller)
        charge.release()  # Ray has it now
        return response

    async def _read(self, name: str, data: bytes) -> bytes:
        """Any of `_READING`."""
        method = _SERVICE.methods_by_name[name]
        try:
            request = GetMessageClass(method.input_type).FromString(data)
        except DecodeError as error:
            raise errors.InvalidInput(f"the message cannot be parsed: {error}") from None
        answer = await getattr(self._control, name)(request)
        return bytes(answer.SerializeToString())


async def _reply(work: Awaitable[bytes], context: Any) -> Reply:
    """The answer; or none, and what went wrong told to the context: of an exception Ray would pass
    on neither details nor the time to come back."""
    try:
        return Reply(await work)
    except Exception as error:  # noqa: BLE001 (the table knows what each error means)
        log_unexpected(error)
        context.set_code(errors.row_of(error).code)
        context.set_details(errors.message_of(error))
        context.set_trailing_metadata(list(details_of(error)))
        return Reply(b"")


def _reading(name: str) -> Callable[[Replica, bytes, Any], Awaitable[Reply]]:
    async def method(self: Replica, data: bytes, grpc_context: Any) -> Reply:
        return await _reply(self._read(name, data), grpc_context)

    method.__name__ = name
    return method


for _name in _READING:
    setattr(Replica, _name, _reading(_name))


def _settings(given: Mapping[str, Any]) -> Settings:
    """Raises ConfigurationError, also for a setting that would have no effect."""
    settings = load_settings(given, None)
    for name in given:
        if name not in _HONOURED:
            raise errors.ConfigurationError(
                f"{name}: has no effect under Ray Serve, expected any of {', '.join(_HONOURED)}"
            )
    return settings


def app(args: Mapping[str, Any]) -> Any:
    """The application, for `import_path` in Ray Serve's configuration. `args`: settings of
    `headrace serve` (`models` at least, a list of paths that every node has). How many replicas,
    where, and when more, is said in that configuration for the deployment Headrace."""
    from ray import serve

    _settings(args)  # what is wrong is said at once, not by each replica
    deployment: Any = serve.deployment(Replica, name="Headrace")
    return deployment.bind(dict(args))
