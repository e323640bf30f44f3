"""One model in this process: loaded, planned and batched as the server does it, without gRPC."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import math
import pathlib
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import replace

import numpy as np

from headrace.batcher.errors import ExecutionFailed, Overloaded
from headrace.inference.tensors import Array
from headrace.server.batch.job import Job
from headrace.server.contract import InputTensor
from headrace.server.errors import ConfigurationError, InvalidInput
from headrace.server.exchange import InferenceRequest, InferenceResult
from headrace.server.executors.session import Provider
from headrace.server.inference import infer
from headrace.server.models.operators import OperatorLibraries
from headrace.server.models.plan_cache import plan_cache
from headrace.server.models.registry import Registry
from headrace.server.models.repository import Catalogue, ModelSource
from headrace.server.models.served import Host, ServedModel
from headrace.server.models.spec import TensorSpec
from headrace.server.models.trust import external_data
from headrace.server.telemetry.watch import Watch

# Requests that wait for each executor, so that none is idle between two.
_AHEAD = 3

Row = Sequence[Array]
Outcome = Sequence[Array] | InvalidInput | ExecutionFailed


class Engine:
    """A model that serves. Made by `opened`; `answer` may be called several times at once."""

    def __init__(self, registry: Registry, model: ServedModel, outputs: Sequence[str]) -> None:
        """Raises ConfigurationError for an output that the model does not have."""
        self._registry = registry
        self._name = model.spec.name
        names = tuple(outputs) or model.default_outputs
        for name in names:
            if name not in model.outputs:
                known = ", ".join(f"'{known}'" for known in model.outputs)
                raise ConfigurationError(f"--outputs: expected some of {known}, got '{name}'")
        self._wanted = names
        self.outputs: list[TensorSpec] = [model.outputs[name] for name in names]
        self.inputs = [s for s in model.spec.inputs if not (s.optional or s.state)]
        self.batched = model.spec.batched
        self._rows = _rows_of_a_request(model)
        ahead = _AHEAD * len(model.runner.state.kinds) * max(1, model.spec.max_batch_size)
        self._room = asyncio.Semaphore(max(2, ahead // self._rows))

    async def answer(self, rows: Sequence[Row]) -> list[Outcome]:
        """For each row, whose tensors are in the order of `inputs`, its outputs or its error.

        Rows of equal shapes that follow each other travel together. Where such a request fails its
        rows are run one by one, so that those at fault are found and no other fails with them.
        """
        outcomes: list[Outcome] = [()] * len(rows)

        async def ask(start: int, end: int) -> None:
            try:
                outcomes[start:end] = await self._ask(rows[start:end])
            except (InvalidInput, ExecutionFailed) as error:
                if end - start == 1:
                    outcomes[start] = error
                    return
                for single in range(start, end):
                    await ask(single, single + 1)

        async with asyncio.TaskGroup() as group:
            for start, end in self._requests(rows):
                await self._room.acquire()
                task = group.create_task(ask(start, end))
                task.add_done_callback(lambda _: self._room.release())
        return outcomes

    def _requests(self, rows: Sequence[Row]) -> Iterator[tuple[int, int]]:
        """Start and end of the rows that travel together."""
        start = 0
        while start < len(rows):
            shapes = [array.shape for array in rows[start]]
            end, last = start + 1, min(start + self._rows, len(rows))
            while end < last and [array.shape for array in rows[end]] == shapes:
                end += 1
            yield start, end
            start = end

    async def _ask(self, rows: Sequence[Row]) -> list[Sequence[Array]]:
        """The outputs of rows of one shape. Raises the errors of `infer` but Overloaded."""
        columns = zip(*rows, strict=True)
        gathered = [np.stack(arrays) if self.batched else arrays[0] for arrays in columns]
        inputs = [
            InputTensor(spec.name, spec.datatype, array)
            for spec, array in zip(self.inputs, gathered, strict=True)
        ]
        while True:
            request = InferenceRequest(self._name, "", inputs, time.monotonic(), self._wanted)
            try:
                result = await infer(self._registry, request)
            except Overloaded as error:  # more waits than may: nothing is lost, it is asked again
                await asyncio.sleep(error.retry_after)
                continue
            return self._split(result, len(rows))

    def _split(self, result: InferenceResult, rows: int) -> list[Sequence[Array]]:
        arrays = [array for _, array in result.outputs]
        if not self.batched:
            return [arrays]
        return [[array[index, ...] for array in arrays] for index in range(rows)]


def _rows_of_a_request(model: ServedModel) -> int:
    """The fewest rows that are computed at nearly the peak rate, by what was measured at load."""
    if not model.spec.batched:
        return 1
    limit = min(model.spec.max_batch_size, model.spec.row_limit or model.spec.max_batch_size)
    plan = model.costs.plan if model.costs is not None else None
    return max(1, min(limit, plan.sustaining(math.inf) if plan is not None else limit))


@contextlib.asynccontextmanager
async def opened(job: Job) -> AsyncIterator[Engine]:
    """The job's model, serving inside the block. Raises ConfigurationError, LoadFailed."""
    catalogue, source = find_model(job)
    operators = OperatorLibraries(job.operator_libraries)
    watch = Watch(warns=False)  # a full queue only means that there is enough to do
    host = Host(Provider(job.provider), plan_cache(job.cache_dir), watch=watch, operators=operators)
    registry = Registry(catalogue, host)
    try:
        await registry.load(source.name)
        model = registry.get(source.name)
        # Nobody waits: what the configuration says of latency is for those who do.
        model.options = replace(model.options, timeout=None, latency_objective=None)
        yield Engine(registry, model, job.outputs)
    finally:
        registry.abort()
        await registry.drain()


def find_model(job: Job) -> tuple[Catalogue, ModelSource]:
    """The model that the job means. Raises ConfigurationError."""
    catalogue = Catalogue([job.model])
    sources = catalogue.sources()
    if job.name:
        if job.name not in sources:
            raise ConfigurationError(f"--model: expected one of {_names(sources)}, got {job.name}")
        return catalogue, sources[job.name]
    if len(sources) != 1:
        raise ConfigurationError(
            f"--model: expected the name of one model, {job.model} holds {_names(sources)}"
        )
    return catalogue, next(iter(sources.values()))


def _names(sources: dict[str, ModelSource]) -> str:
    return ", ".join(sources) or "none"


def model_digest(source: ModelSource) -> str:
    """SHA-256 over the files of the version that is served: the graph, its weights where they lie
    beside it, and the configuration. Raises LoadFailed."""
    options = source.options()
    files = source.files(options)
    graph = files[max(files)]
    source.check_model(graph)
    weights = [graph.parent / name for name in sorted(set(external_data(graph)))]
    configuration = [source.path / name for name in ("config.pbtxt", "model.toml")]
    found = hashlib.sha256()
    for file in (graph, *filter(pathlib.Path.is_file, (*weights, *configuration))):
        found.update(_digest(file))
    return found.hexdigest()


def _digest(file: pathlib.Path) -> bytes:
    with file.open("rb") as opened_file:
        return hashlib.file_digest(opened_file, "sha256").digest()
