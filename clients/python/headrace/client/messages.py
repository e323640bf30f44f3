"""Requests into messages and messages into results: all that the two clients do but for waiting.

A `Call` is a unary call before it is made; there is one function here for each. What a stream
needs follows them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import grpc
from google.protobuf.message import Message

from headrace.client.errors import BadResponse, HeadraceError, error_of
from headrace.client.options import InferOptions, ParameterValue, expect
from headrace.client.results import (
    InferResult,
    ModelIndex,
    ModelMetadata,
    ServerMetadata,
    StreamAnswer,
    StreamRequest,
    TensorMetadata,
)
from headrace.client.tensors import Inputs, as_tensor, read_outputs
from headrace.inference.tensors import encode_raw
from headrace.inference.v2 import grpc_service_pb2 as pb
from headrace.inference.v2.model_config_pb2 import ModelConfig

T = TypeVar("T")
Headers = Mapping[str, str | bytes]

# Set by a Headrace server on in-band errors, which the protocol gives only a message.
STATUS_PARAMETER = "headrace_status"
REASON_PARAMETER = "headrace_error_reason"
RETRY_PARAMETER = "headrace_retry_after_ms"
# Asks a Headrace server to run a request alone.
SOLO_PARAMETER = "headrace_solo"


@dataclass(frozen=True, slots=True)
class Call(Generic[T]):
    """A unary call: method of the service, request, and how to read the response.
    `of_feedback`: the service is Feedback, not that of inference.

    Not `repeatable` is a call whose second arrival could be noticed; it is never retried.
    """

    method: str
    request: Message
    read: Callable[[Any], T]
    repeatable: bool = True
    of_feedback: bool = False


def infer(model: str, inputs: Inputs, options: InferOptions) -> Call[InferResult]:
    request = infer_request(model, inputs, options)
    # An attempt that was lost on its way back has already advanced the sequence's state.
    repeatable = "sequence_id" not in request.parameters
    return Call("ModelInfer", request, read_result, repeatable)


def server_live() -> Call[bool]:
    return Call("ServerLive", pb.ServerLiveRequest(), lambda response: bool(response.live))


def server_ready() -> Call[bool]:
    return Call("ServerReady", pb.ServerReadyRequest(), lambda response: bool(response.ready))


def model_ready(model: str, version: str) -> Call[bool]:
    request = pb.ModelReadyRequest(name=model, version=version)
    return Call("ModelReady", request, lambda response: bool(response.ready))


def server_metadata() -> Call[ServerMetadata]:
    return Call("ServerMetadata", pb.ServerMetadataRequest(), _read_server_metadata)


def model_metadata(model: str, version: str) -> Call[ModelMetadata]:
    request = pb.ModelMetadataRequest(name=model, version=version)
    return Call("ModelMetadata", request, _read_model_metadata)


def model_config(model: str, version: str) -> Call[ModelConfig]:
    request = pb.ModelConfigRequest(name=model, version=version)
    return Call("ModelConfig", request, _read_model_config)


def model_statistics(model: str, version: str) -> Call[tuple[pb.ModelStatistics, ...]]:
    request = pb.ModelStatisticsRequest(name=model, version=version)
    return Call("ModelStatistics", request, lambda response: tuple(response.model_stats))


def repository_index(ready: bool) -> Call[tuple[ModelIndex, ...]]:
    request = pb.RepositoryIndexRequest(ready=ready)
    return Call("RepositoryIndex", request, _read_index)


def load_model(model: str) -> Call[None]:
    request = pb.RepositoryModelLoadRequest(model_name=model)
    return Call("RepositoryModelLoad", request, _read_nothing)


def unload_model(model: str) -> Call[None]:
    request = pb.RepositoryModelUnloadRequest(model_name=model)
    return Call("RepositoryModelUnload", request, _read_nothing)


def infer_request(model: str, inputs: Inputs, options: InferOptions) -> pb.ModelInferRequest:
    """The message for one inference, every input as raw contents.

    Raises TypeError or ValueError, naming the input or parameter, for what cannot be sent.
    """
    expect("model", model, str, "its name")
    request = pb.ModelInferRequest(
        model_name=model, model_version=options.version, id=options.request_id
    )
    if not isinstance(inputs, Mapping):
        raise TypeError(f"inputs: expected arrays by input name, got {type(inputs).__name__}")
    for name, value in inputs.items():
        expect("inputs", name, str, "names")
        try:
            array, datatype = as_tensor(value)
            request.raw_input_contents.append(encode_raw(array, datatype))
        except TypeError as error:
            raise TypeError(f"input {name!r}: {error}") from error
        except ValueError as error:
            raise ValueError(f"input {name!r}: {error}") from error
        request.inputs.add(name=name, datatype=datatype.name, shape=array.shape)
    for name in options.outputs or ():
        request.outputs.add(name=name)
    for name, parameter in (options.parameters or {}).items():
        _set_parameter(request.parameters[name], name, parameter)
    if options.priority is not None:
        request.parameters["priority"].int64_param = options.priority
    if options.solo:
        request.parameters[SOLO_PARAMETER].bool_param = True
    return request


def _set_parameter(message: pb.InferParameter, name: str, value: ParameterValue) -> None:
    # bool before int: it is one in Python.
    if isinstance(value, bool):
        message.bool_param = value
    elif isinstance(value, int):
        if value < 2**63:
            message.int64_param = value
        else:
            message.uint64_param = value
    elif isinstance(value, float):
        message.double_param = value
    elif isinstance(value, str):
        message.string_param = value
    else:
        raise TypeError(
            f"parameter {name!r}: expected bool, int, float or str, got {type(value).__name__}"
        )


def read_result(response: pb.ModelInferResponse) -> InferResult:
    """The result in a response. Raises BadResponse where its tensors contradict themselves."""
    try:
        arrays = read_outputs(response)
    except ValueError as error:
        raise BadResponse(f"model {response.model_name!r}: {error}") from error
    return InferResult(
        arrays,
        model=response.model_name,
        version=response.model_version,
        id=response.id,
        parameters=_read_parameters(response.parameters),
    )


def _read_parameters(messages: Mapping[str, pb.InferParameter]) -> dict[str, ParameterValue]:
    read: dict[str, ParameterValue] = {}
    for name, message in messages.items():
        choice = message.WhichOneof("parameter_choice")
        # Unset is legal on the wire and says nothing: the parameter is left out.
        if choice is not None:
            read[name] = getattr(message, choice)
    return read


def _read_server_metadata(response: pb.ServerMetadataResponse) -> ServerMetadata:
    return ServerMetadata(response.name, response.version, tuple(response.extensions))


def _read_model_metadata(response: pb.ModelMetadataResponse) -> ModelMetadata:
    inputs, outputs = (
        tuple(TensorMetadata(t.name, t.datatype, tuple(t.shape)) for t in tensors)
        for tensors in (response.inputs, response.outputs)
    )
    versions = tuple(response.versions)
    return ModelMetadata(response.name, versions, response.platform, inputs, outputs)


def _read_model_config(response: pb.ModelConfigResponse) -> ModelConfig:
    return response.config


def _read_index(response: pb.RepositoryIndexResponse) -> tuple[ModelIndex, ...]:
    return tuple(ModelIndex(m.name, m.version, m.state, m.reason) for m in response.models)


def _read_nothing(response: Message) -> None:
    return None


def metadata(*headers: Headers | None) -> tuple[tuple[str, str | bytes], ...]:
    """Headers as gRPC wants them; a later mapping wins. Keys are lower-cased, as HTTP/2 asks."""
    merged: dict[str, str | bytes] = {}
    for mapping in headers:
        for key, value in (mapping or {}).items():
            merged[key.lower()] = value
    return tuple(merged.items())


def stream_request(request: StreamRequest, position: int) -> pb.ModelInferRequest:
    """The message for the request at `position` of a stream. Raises TypeError or ValueError, naming
    that, for what cannot be sent."""
    expect(f"request #{position}", request, StreamRequest)
    options = request.options
    try:
        if options.headers:
            raise ValueError("headers belong to the stream: pass them to infer_stream")
        message = infer_request(request.model, request.inputs, options)
    except TypeError as error:
        raise TypeError(f"request #{position}: {error}") from error
    except ValueError as error:
        raise ValueError(f"request #{position}: {error}") from error
    if not message.id:
        message.id = f"#{position}"
    if options.deadline is not None:
        # gRPC's deadline is the stream's; this parameter is Triton's, in microseconds.
        message.parameters["timeout"].int64_param = max(1, round(options.deadline * 1e6))
    return message


def stream_answer(response: pb.ModelStreamInferResponse) -> StreamAnswer:
    """The answer in a stream's response. It never raises: one bad answer leaves the others be."""
    answered = response.infer_response
    if response.error_message:
        return StreamAnswer(answered.id, error=_in_band_error(response))
    try:
        return StreamAnswer(answered.id, result=read_result(answered))
    except BadResponse as error:
        return StreamAnswer(answered.id, error=error)


def _in_band_error(response: pb.ModelStreamInferResponse) -> HeadraceError:
    parameters = _read_parameters(response.infer_response.parameters)
    name = parameters.get(STATUS_PARAMETER)
    # Servers other than Headrace send the message alone: an error of unknown kind.
    code = grpc.StatusCode.UNKNOWN
    if isinstance(name, str):
        code = grpc.StatusCode.__members__.get(name, code)
    reason, delay = parameters.get(REASON_PARAMETER), parameters.get(RETRY_PARAMETER)
    retry_after = delay / 1000 if isinstance(delay, int) else None
    said = reason if isinstance(reason, str) else ""
    return error_of(code, response.error_message, said, retry_after)


class Kept:
    """A context that keeps the exception raised in it, for another task or thread to raise.

    A stream's requests are iterated on gRPC's behalf, where an exception would be logged and lost.
    Kept, it ends the requests and reaches the caller after the last answer to those already sent.
    """

    def __init__(self) -> None:
        self._error: Exception | None = None

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> bool:
        if not isinstance(error, Exception):
            return False
        self._error = error
        return True

    def release(self) -> None:
        """Raise what was kept, if anything."""
        if self._error is not None:
            raise self._error
