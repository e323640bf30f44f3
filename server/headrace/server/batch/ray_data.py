"""The engine `ray`: workers on the nodes of a Ray cluster, fed by Ray Data.

A worker is an actor with a model of its own, which lays out its executors over the processors of
its node. Parts are put into their places by the workers themselves, so all nodes must see the
model, the input and the output under the same paths. What Ray does again after a failure of a node
is harmless: a part is there whole or not at all, and the same whoever computes it.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import logging
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from headrace.batcher.errors import BatcherError
from headrace.server.batch.engine import find_model, model_digest, opened
from headrace.server.batch.job import Job, Part, PartDone
from headrace.server.batch.sources import Contents
from headrace.server.batch.worker import Worker
from headrace.server.errors import ConfigurationError, LoadFailed, ServerError

# Blocks that Ray Data hands out, at most: one for each part as long as parts are few.
_MOST_BLOCKS = 2048


@dataclass(frozen=True, slots=True)
class Cluster:
    """address: of a running cluster; None for what RAY_ADDRESS says, or a new one on this machine.
    workers: None for one on each node. cpus: that each reserves; None for all of a node but one."""

    address: str | None = None
    workers: int | None = None
    cpus: int | None = None

    def run(
        self,
        job: Job,
        contents: Contents,
        parts: Sequence[Part],
        tell: Callable[[PartDone], None],
    ) -> None:
        """Computes `parts`; each that is in its place is told. Raises ServerError."""
        if importlib.util.find_spec("ray") is None:
            raise ConfigurationError(
                "--engine ray: Ray is missing, which comes with an extra: "
                "pip install 'headrace[ray]'"
            )
        import ray

        ours = not ray.is_initialized()
        if ours:
            ray.init(address=self.address, log_to_driver=False, logging_level=logging.WARNING)
        try:
            for row in self._dataset(job, contents, parts).iter_rows():
                if row["error"]:
                    raise ServerError(row["error"])
                tell(PartDone(row["number"], row["rows"], row["skipped"]))
        finally:
            if ours:
                ray.shutdown()

    def _dataset(self, job: Job, contents: Contents, parts: Sequence[Part]) -> Any:
        import ray

        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = False  # ours is shown
        logging.getLogger("ray.data").setLevel(logging.WARNING)
        listed: Any = ray.nodes
        nodes = [node["Resources"].get("CPU", 0) for node in listed() if node["Alive"]]
        computing = [int(cpus) for cpus in nodes if cpus >= 1] or [1]
        workers = min(self.workers or len(computing), len(parts))
        _, source = find_model(job)
        given = _Given(job, contents, {part.number: part for part in parts}, model_digest(source))
        actor: Any = _Actor  # Ray makes one for each worker
        return ray.data.from_items(
            [{"number": part.number} for part in parts],
            override_num_blocks=min(len(parts), _MOST_BLOCKS),
        ).map(
            actor,
            fn_constructor_args=(given,),
            compute=ray.data.ActorPoolStrategy(size=workers),
            num_cpus=self.cpus or max(1, min(computing) - 1),
            num_gpus=1 if job.provider == "cuda" else None,
        )


@dataclass(frozen=True, slots=True)
class _Given:
    """What every worker gets. digest: of the model where the run was started."""

    job: Job
    contents: Contents
    parts: dict[int, Part]
    digest: str


class _Actor:
    """A worker of its own process. Errors are answers: raised, Ray would try again."""

    def __init__(self, given: _Given) -> None:
        self._given = given
        self._runner = asyncio.Runner()
        self._open = contextlib.AsyncExitStack()
        self._worker: Worker | None = None

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        number = int(row["number"])
        try:
            done = self._runner.run(self._run(self._given.parts[number]))
        except (ServerError, BatcherError, OSError) as error:
            return asdict(PartDone(number, 0, 0)) | {"error": str(error) or repr(error)}
        return asdict(done) | {"error": ""}

    async def _run(self, part: Part) -> PartDone:
        if self._worker is None:
            self._worker = await self._start()
        return await self._worker.run(part)

    async def _start(self) -> Worker:
        """Raises LoadFailed where the model of this node is another."""
        job = self._given.job
        _, source = find_model(job)
        if model_digest(source) != self._given.digest:
            raise LoadFailed(f"{job.model} on this node is another model than where the run began")
        engine = await self._open.enter_async_context(opened(job))
        return Worker(job, engine, self._given.contents)
