"""Everything that is asked about models and the server, and the loading and unloading of models."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

from headrace.inference.v2 import grpc_service_pb2 as pb
from headrace.server.errors import InvalidInput, ModelNotFound, ModelUnavailable, Unsupported
from headrace.server.models.registry import READY, Registry
from headrace.server.models.served import ServedModel
from headrace.server.models.spec import PLATFORM, TensorSpec
from headrace.server.rpc.model_config import effective_config
from headrace.server.rpc.settings import log_settings, trace_setting
from headrace.server.telemetry.sampling import Sampling
from headrace.server.telemetry.statistics import Duration

EXTENSIONS = (
    "classification",
    "model_repository",
    "model_configuration",
    "schedule_policy",
    "sequence",
    "binary_tensor_data",
    "parameters",
    "statistics",
    "trace",
    "logging",
)


class ControlService:
    """The unary methods besides ModelInfer. Each takes a request message and gives its response."""

    def __init__(
        self, registry: Registry, is_ready: Callable[[], bool], sampling: Sampling | None = None
    ) -> None:
        """`sampling`: of traces; None where none are sent."""
        self._registry = registry
        self._is_ready = is_ready
        self._sampling = sampling

    @property
    def registry(self) -> Registry:
        """Whose models it tells of."""
        return self._registry

    async def ServerLive(self, _: pb.ServerLiveRequest) -> pb.ServerLiveResponse:
        return pb.ServerLiveResponse(live=True)

    async def ServerReady(self, _: pb.ServerReadyRequest) -> pb.ServerReadyResponse:
        return pb.ServerReadyResponse(ready=self._is_ready())

    async def ModelReady(self, request: pb.ModelReadyRequest) -> pb.ModelReadyResponse:
        try:
            self._registry.check_ready(request.name, request.version)
        except (ModelNotFound, ModelUnavailable):
            return pb.ModelReadyResponse(ready=False)
        return pb.ModelReadyResponse(ready=True)

    async def ServerMetadata(self, _: pb.ServerMetadataRequest) -> pb.ServerMetadataResponse:
        return pb.ServerMetadataResponse(
            name="headrace", version=version("headrace"), extensions=EXTENSIONS
        )

    async def ModelMetadata(self, request: pb.ModelMetadataRequest) -> pb.ModelMetadataResponse:
        spec = self._registry.get(request.name, request.version).spec
        return pb.ModelMetadataResponse(
            name=spec.name,
            versions=self._registry.versions(spec.name),
            platform=PLATFORM,
            inputs=[_metadata(tensor) for tensor in spec.inputs if not tensor.state],
            outputs=[_metadata(tensor) for tensor in spec.outputs if not tensor.state],
        )

    async def ModelConfig(self, request: pb.ModelConfigRequest) -> pb.ModelConfigResponse:
        model = self._registry.get(request.name, request.version)
        return pb.ModelConfigResponse(config=effective_config(model))

    async def ModelStatistics(
        self, request: pb.ModelStatisticsRequest
    ) -> pb.ModelStatisticsResponse:
        if request.name:
            chosen = self._registry.get(request.name, request.version)
            names = [request.version or v for v in self._registry.versions(request.name)]
            models = [self._registry.get(request.name, v) for v in dict.fromkeys(names)] or [chosen]
        else:
            models = self._registry.ready_models()
        return pb.ModelStatisticsResponse(model_stats=[_statistics(model) for model in models])

    async def RepositoryIndex(
        self, request: pb.RepositoryIndexRequest
    ) -> pb.RepositoryIndexResponse:
        entries = await asyncio.to_thread(self._registry.index)
        response = pb.RepositoryIndexResponse()
        for entry in entries:
            if entry.state == READY or not request.ready:
                response.models.add(
                    name=entry.name, version=entry.version, state=entry.state, reason=entry.reason
                )
        return response

    async def RepositoryModelLoad(
        self, request: pb.RepositoryModelLoadRequest
    ) -> pb.RepositoryModelLoadResponse:
        name, kserve = _model_of(request)
        files = [key for key in request.parameters if key.startswith("file:")]
        if files:
            raise Unsupported(
                f"parameter '{files[0]}': model files are read from the repository, not from calls"
            )
        config = request.parameters["config"].string_param if "config" in request.parameters else ""
        await self._registry.load(name, config or None)
        answer = pb.RepositoryModelLoadResponse
        return answer.FromString(_kserve_answer(name)) if kserve else answer()

    async def RepositoryModelUnload(
        self, request: pb.RepositoryModelUnloadRequest
    ) -> pb.RepositoryModelUnloadResponse:
        name, kserve = _model_of(request)
        await self._registry.unload(name)
        answer = pb.RepositoryModelUnloadResponse
        return answer.FromString(_kserve_answer(name)) if kserve else answer()

    async def LogSettings(self, request: pb.LogSettingsRequest) -> pb.LogSettingsResponse:
        return log_settings(request)

    async def TraceSetting(self, request: pb.TraceSettingRequest) -> pb.TraceSettingResponse:
        if request.model_name:
            self._registry.get(request.model_name)
        return trace_setting(self._sampling, request)

    async def unsupported(self, request: Any) -> Any:
        """The methods of the protocol that are not offered, for now."""
        kind = type(request).__name__.removesuffix("Request")
        for prefix, sentence in _NOT_OFFERED.items():
            if kind.startswith(prefix):
                raise Unsupported(f"{kind}: {sentence}")
        raise Unsupported(f"{kind} is not offered")


_NOT_OFFERED = {
    "SystemSharedMemory": "shared memory is not offered, send tensors in the message",
    "CudaSharedMemory": "shared memory is not offered, send tensors in the message",
}


def _model_of(request: Any) -> tuple[str, bool]:
    """The model to load or unload, and whether the caller speaks KServe's form.

    KServe numbers its only field 1, which is repository_name here.
    """
    if request.model_name:
        return request.model_name, False
    if request.repository_name:
        return request.repository_name, True
    raise InvalidInput("model_name: expected the name of a model, got an empty string")


def _kserve_answer(name: str) -> bytes:
    """KServe's response: `model_name` is field 1, `isLoaded` or `isUnloaded` field 2."""
    as_kserve = pb.ModelReadyRequest(name=name).SerializeToString()
    return as_kserve + b"\x10\x01"


def _metadata(tensor: TensorSpec) -> pb.ModelMetadataResponse.TensorMetadata:
    return pb.ModelMetadataResponse.TensorMetadata(
        name=tensor.name, datatype=tensor.datatype, shape=tensor.shape
    )


def _statistics(model: ServedModel) -> pb.ModelStatistics:
    figures = model.statistics
    message = pb.ModelStatistics(
        name=model.spec.name,
        version=model.spec.version,
        last_inference=figures.last_inference_ms,
        inference_count=figures.rows,
        execution_count=figures.executions,
    )
    stats = message.inference_stats
    _fill(stats.success, figures.success)
    _fill(stats.fail, figures.fail)
    _fill(stats.queue, figures.queue)
    _fill(stats.compute_input, figures.input)
    _fill(stats.compute_infer, figures.infer)
    _fill(stats.compute_output, figures.output)
    for size in sorted(figures.sizes):
        batch = message.batch_stats.add(batch_size=size)
        _fill(batch.compute_input, figures.sizes[size].input)
        _fill(batch.compute_infer, figures.sizes[size].infer)
        _fill(batch.compute_output, figures.sizes[size].output)
    return message


def _fill(message: pb.StatisticDuration, duration: Duration) -> None:
    message.count, message.ns = duration.count, int(duration.seconds * 1e9)
