"""A model version that is loaded: its contract, its executors, its runner, its figures."""

from __future__ import annotations

import asyncio
import pathlib
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import onnxruntime as ort

from headrace.batcher.cost import CostTable
from headrace.batcher.fixed import Fixed
from headrace.batcher.learned import Learned
from headrace.batcher.policy import Policy
from headrace.batcher.runner import Runner
from headrace.batcher.state import Limits
from headrace.server.errors import LoadFailed
from headrace.server.executors.cpus import usable_cpus
from headrace.server.executors.onnx import OnnxExecutor
from headrace.server.executors.session import Provider, SessionOptions, open_session, resolve
from headrace.server.models.options import ModelOptions
from headrace.server.models.probe import Verdict, probe
from headrace.server.models.profile import Profile, profile
from headrace.server.models.spec import ModelSpec, read_spec
from headrace.server.telemetry.statistics import ModelStatistics

# Bounds only: the size of each batch is chosen by what the model was measured to cost.
DEFAULT_MAX_BATCH = {Provider.CPU: 64, Provider.CUDA: 128}
_MOST_INSTANCES = 8


@dataclass(frozen=True, slots=True)
class Plan:
    """How a model is laid out on its device: so many executors, each with so many threads."""

    session: SessionOptions
    instances: int


def make_plan(options: ModelOptions, preferred: Provider) -> Plan:
    """The layout for `options`, where they leave it open: a single-threaded executor per CPU.

    That is the layout of highest throughput for most CPU models; measuring it for each model is the
    planner's work. Raises LoadFailed when the provider cannot be had.
    """
    provider = resolve(options.provider or preferred)
    threads = options.intra_op_threads or 1
    fitting = max(1, min(_MOST_INSTANCES, usable_cpus() // threads))
    instances = options.instances or (fitting if provider is Provider.CPU else 1)
    session = SessionOptions(provider, threads, options.inter_op_threads or 1, options.device_id)
    return Plan(session, instances)


def make_policy(options: ModelOptions) -> Policy:
    """Learned batching, unless the configuration insists on sizes or a delay."""
    if options.preferred_batch_sizes or options.max_delay is not None:
        return Fixed(options.preferred_batch_sizes, options.max_delay or 0.0)
    return Learned()


@dataclass(frozen=True, slots=True)
class Opened:
    """What opening and examining a model's file gives; `sessions` has one for each executor."""

    spec: ModelSpec
    sessions: Sequence[ort.InferenceSession]
    verdict: Verdict
    profile: Profile
    labels: Mapping[str, Sequence[str]]


class ServedModel:
    """One version of a model, ready to run. Build it with `load`, inside the event loop."""

    def __init__(self, opened: Opened, options: ModelOptions, plan: Plan) -> None:
        self.spec = spec = opened.spec
        self.options = options
        self.plan = plan
        self.verdict = opened.verdict
        self.labels = opened.labels
        self.inputs = {tensor.name: tensor for tensor in spec.inputs}
        self.outputs = {tensor.name: tensor for tensor in spec.outputs}
        self.default_outputs = tuple(t.name for t in spec.outputs if not t.state)
        self.statistics = ModelStatistics()
        self._closing: asyncio.Task[None] | None = None
        kind, loop = plan.session.provider.value, asyncio.get_running_loop()
        self._executors = [
            OnnxExecutor(f"{spec.name}/{spec.version}/{kind}{number}", kind, session, loop)
            for number, session in enumerate(opened.sessions)
        ]
        limits = Limits(max_batch_rows=spec.max_batch_size)
        if options.max_queued_requests:
            limits = replace(limits, max_queued_requests=options.max_queued_requests)
        self.runner = Runner(
            self._executors, make_policy(options), limits, time.monotonic, self.statistics
        )
        self.costs = self._learn(opened.profile)

    def __repr__(self) -> str:
        return f"<ServedModel: {self.spec.name} version {self.spec.version}, {self.runner!r}>"

    def _learn(self, profile: Profile) -> CostTable | None:
        """The costs of the profiled key, from its runs; None where nothing could be profiled."""
        if profile.key is None:
            return None
        executor = self._executors[0].name
        table = self.runner.state.table(executor, profile.key, profile.row_bytes)
        for rows, seconds in profile.runs:
            table.observe(rows, seconds)
        return table

    async def close(self) -> None:
        """Answers what was accepted, then lets go of threads and sessions.

        May be called more than once; a caller who is cancelled does not stop it half-way.
        """
        if self._closing is None:
            self._closing = asyncio.get_running_loop().create_task(self._close())
        await asyncio.shield(self._closing)

    async def _close(self) -> None:
        await self.runner.drain()
        for executor in self._executors:
            await asyncio.to_thread(executor.close)


async def load(
    name: str, version: str, path: pathlib.Path, options: ModelOptions, preferred: Provider
) -> ServedModel:
    """Opens, examines and starts a model. Raises LoadFailed."""
    plan = make_plan(options, preferred)
    opened = await asyncio.to_thread(examine, name, version, path, options, plan)
    return ServedModel(opened, options, plan)


def examine(
    name: str, version: str, path: pathlib.Path, options: ModelOptions, plan: Plan
) -> Opened:
    """Opens the model, probes whether it may be batched, and measures what batches cost.

    Blocks for as long as that takes. Raises LoadFailed.
    """
    first = open_session(path, plan.session)
    spec = read_spec(name, version, first, options, DEFAULT_MAX_BATCH[plan.session.provider])
    verdict = probe(spec, first) if spec.batched and spec.max_batch_size > 1 else Verdict()
    if verdict.reason:
        spec = spec.unbatched(verdict.reason)
    sessions = [first]
    # On one thread ONNX Runtime runs where it is called, so executors share the session and its
    # weights. More threads are a pool of the session's own: each executor needs its own.
    for _ in range(plan.instances - 1):
        shared = plan.session.intra_op_threads == 1 and plan.session.provider is Provider.CPU
        sessions.append(first if shared else open_session(path, plan.session))
    return Opened(spec, sessions, verdict, profile(spec, first), _read_labels(path, options))


def _read_labels(path: pathlib.Path, options: ModelOptions) -> dict[str, list[str]]:
    """The class names of each output that declares a label file, one a line."""
    labels = {}
    for tensor in options.outputs:
        if not tensor.labels:
            continue
        file = next(
            (f / tensor.labels for f in path.parents[:2] if (f / tensor.labels).is_file()), None
        )
        if file is None:
            raise LoadFailed(f"output '{tensor.name}': no label file {tensor.labels}")
        labels[tensor.name] = file.read_text().splitlines()
    return labels
