"""Puts the gRPC server together: our services, health, reflection."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import grpc
from google.protobuf import descriptor_pb2, text_format
from google.protobuf.message import DecodeError
from google.protobuf.message_factory import GetMessageClass
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection, reflection_pb2

from headrace.inference.pool import POOL
from headrace.inference.v2 import grpc_service_pb2 as pb
from headrace.server.config import Settings
from headrace.server.errors import InvalidInput, ServerError
from headrace.server.models.registry import ModelListener
from headrace.server.rpc.control import ControlService
from headrace.server.rpc.engine import Engine, choose, grpcio_options
from headrace.server.rpc.feedback import SERVICE as FEEDBACK
from headrace.server.rpc.feedback import FeedbackService
from headrace.server.rpc.handlers import guarded
from headrace.server.rpc.service import InferenceService
from headrace.server.rpc.streams import StreamService
from headrace.server.rpc.tls import server_credentials
from headrace.server.security.tls import Certificates
from headrace.server.telemetry.watch import Watch
from headrace.stream.v1 import stream_pb2 as stream_pb

_log = logging.getLogger(__name__)

_SERVICE = pb.DESCRIPTOR.services_by_name["GRPCInferenceService"]
_STREAM_SERVICE = stream_pb.DESCRIPTOR.services_by_name["SensorStream"]
# Names that grpc.health.v1 knows beside those of models.
_SERVICES = ("", _SERVICE.full_name, _STREAM_SERVICE.full_name, FEEDBACK.full_name)
_REFLECTION_V1 = "grpc.reflection.v1.ServerReflection"
_SERVING = health_pb2.HealthCheckResponse.SERVING
_NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


class Health(ModelListener):
    """`grpc.health.v1`: the server under "" and its services' names, each model under its own."""

    def __init__(self) -> None:
        self.servicer = health.aio.HealthServicer()
        self._up = False

    async def start(self) -> None:
        """Known, and not serving yet."""
        await self._set_all(_NOT_SERVING)

    async def ready(self) -> None:
        self._up = True
        await self._set_all(_SERVING)

    async def set_server(self, able: bool) -> None:
        if self._up:
            await self._set_all(_SERVING if able else _NOT_SERVING)

    async def _set_all(self, status: health_pb2.HealthCheckResponse.ServingStatus) -> None:
        for name in _SERVICES:
            await self.servicer.set(name, status)

    async def set_model(self, name: str, ready: bool) -> None:
        await self.servicer.set(name, _SERVING if ready else _NOT_SERVING)

    async def drain(self) -> None:
        """Everything turns NOT_SERVING, for good."""
        await self.servicer.enter_graceful_shutdown()


def build(
    inference: InferenceService,
    control: ControlService,
    streams: StreamService,
    health_: Health,
    settings: Settings,
    watch: Watch,
) -> Engine:
    """A server with everything registered and no port yet.

    Raises ConfigurationError when the engine that `settings` names cannot be had.
    """
    chosen = choose(settings.rpc_engine)
    _log.info("RPC engine: %s", chosen)
    server = grpcio(inference, control, streams, health_, settings, watch)
    if chosen == "grpcio":
        return server
    from headrace.server.rpc.native import NativeServer  # an extra

    method = f"/{_SERVICE.full_name}/ModelInfer"
    return NativeServer(
        server, inference, method, settings.max_message_bytes, settings.max_connection_calls
    )


def grpcio(
    inference: InferenceService,
    control: ControlService,
    streams: StreamService,
    health_: Health,
    settings: Settings,
    watch: Watch,
) -> grpc.aio.Server:
    """Everything that is served, by grpc.aio."""
    options = grpcio_options(settings.max_message_bytes, settings.max_connection_calls)
    # Beyond them a call is refused before its message is read.
    server = grpc.aio.server(options=options, maximum_concurrent_rpcs=settings.max_calls)
    server.add_generic_rpc_handlers(
        (
            grpc.method_handlers_generic_handler(
                _SERVICE.full_name, _handlers(inference, control, watch)
            ),
        )
    )
    server.add_generic_rpc_handlers((_stream_handler(streams),))
    feedback = FeedbackService(control.registry, watch, inference.guard, inference.in_flight)
    server.add_generic_rpc_handlers((_feedback_handler(feedback),))
    health_pb2_grpc.add_HealthServicer_to_server(health_.servicer, server)
    _add_reflection(server)
    return server


def _handlers(inference: InferenceService, control: ControlService, watch: Watch) -> dict[str, Any]:
    """A handler for every method that the protocol has."""
    handlers: dict[str, Any] = {}
    for method in _SERVICE.methods:
        if method.name in ("ModelInfer", "ModelStreamInfer"):
            continue
        handlers[method.name] = grpc.unary_unary_rpc_method_handler(
            guarded(
                getattr(control, method.name, control.unsupported),
                watch,
                f"{_SERVICE.full_name}/{method.name}",
                inference.guard,
                inference.in_flight,
            ),
            _lenient(GetMessageClass(method.input_type).FromString),
            GetMessageClass(method.output_type).SerializeToString,
        )
    # Bytes in and out: the codec knows how to leave tensors where they are.
    handlers["ModelInfer"] = grpc.unary_unary_rpc_method_handler(inference.model_infer)
    handlers["ModelStreamInfer"] = grpc.stream_stream_rpc_method_handler(
        inference.model_stream_infer
    )
    return handlers


def _stream_handler(streams: StreamService) -> grpc.GenericRpcHandler:
    # Responses are put together as bytes.
    method: Any = grpc.stream_stream_rpc_method_handler(
        streams.stream, _lenient(stream_pb.StreamRequest.FromString), None
    )
    return grpc.method_handlers_generic_handler(_STREAM_SERVICE.full_name, {"Stream": method})


def _feedback_handler(feedback: FeedbackService) -> grpc.GenericRpcHandler:
    handlers: dict[str, Any] = {
        name: grpc.unary_unary_rpc_method_handler(
            handler, _lenient(message.FromString), lambda response: response.SerializeToString()
        )
        for name, message, handler in feedback.handlers()
    }
    return grpc.method_handlers_generic_handler(FEEDBACK.full_name, handlers)


def _lenient(parse: Callable[[bytes], Any]) -> Any:
    """`parse`, which gives the error to be answered for what is no such message.

    Left to gRPC that would be UNKNOWN to the caller, and a traceback in the log for each. Any:
    gRPC's type stubs expect a message, any object will do.
    """

    def parse_or_error(data: bytes) -> Any:
        try:
            return parse(data)
        except DecodeError as error:
            return InvalidInput(f"the message cannot be parsed: {error}")

    return parse_or_error


def _add_reflection(server: grpc.aio.Server) -> None:
    """Reflection, v1alpha and v1: their messages are the same, only the service's name differs."""
    POOL.AddSerializedFile(health_pb2.DESCRIPTOR.serialized_pb)
    alpha = reflection_pb2.DESCRIPTOR.serialized_pb
    POOL.AddSerializedFile(alpha)
    text = text_format.MessageToString(descriptor_pb2.FileDescriptorProto.FromString(alpha))
    v1 = text_format.Parse(text.replace("v1alpha", "v1"), descriptor_pb2.FileDescriptorProto())
    POOL.AddSerializedFile(v1.SerializeToString())
    names = (
        _SERVICE.full_name,
        _STREAM_SERVICE.full_name,
        FEEDBACK.full_name,
        health.SERVICE_NAME,
        reflection.SERVICE_NAME,
        _REFLECTION_V1,
    )
    servicer = reflection.aio.ReflectionServicer(names, POOL)
    handler = grpc.stream_stream_rpc_method_handler(
        servicer.ServerReflectionInfo,
        reflection_pb2.ServerReflectionRequest.FromString,
        reflection_pb2.ServerReflectionResponse.SerializeToString,
    )
    for name in (reflection.SERVICE_NAME, _REFLECTION_V1):
        server.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler(name, {"ServerReflectionInfo": handler}),)
        )


def bind(server: Engine, host: str, port: int, certificates: Certificates | None = None) -> int:
    """Binds and returns the port, with TLS if there are `certificates`. Raises ServerError when it
    cannot be had."""
    address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    message = (
        f"grpc: cannot listen on {address}: another server may be there already, or the address is "
        "not this machine's; choose with --host and --grpc-port (0 takes a free port)"
    )
    bound: Any
    try:
        if certificates is None:
            bound = server.add_insecure_port(address)
        else:
            bound = server.add_secure_port(address, server_credentials(certificates))
    except RuntimeError as error:
        raise ServerError(message) from error
    if bound == 0:
        raise ServerError(message)
    return int(bound)
