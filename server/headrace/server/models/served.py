"""A model version that is loaded: its contract, its executors, its runner, its figures."""

from __future__ import annotations

import asyncio
import pathlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import onnxruntime as ort

from headrace.batcher.cost import CostTable
from headrace.batcher.executor import Executor
from headrace.batcher.fixed import Fixed
from headrace.batcher.learned import Learned
from headrace.batcher.placement import lone_was_measured
from headrace.batcher.policy import Policy
from headrace.batcher.request import Batch
from headrace.batcher.runner import Runner
from headrace.batcher.state import Device, Limits
from headrace.server.errors import LoadFailed
from headrace.server.executors.layout import PLAIN
from headrace.server.executors.onnx import OnnxExecutor, Seat
from headrace.server.executors.payload import Key
from headrace.server.executors.running import Session, run_session
from headrace.server.executors.session import Provider, SessionOptions, open_session
from headrace.server.models.lengths import Lengths
from headrace.server.models.operators import OperatorLibraries
from headrace.server.models.options import ModelOptions
from headrace.server.models.padding import PaddingVerdict, probe_padding
from headrace.server.models.plan import Layout, Plan, configured
from headrace.server.models.plan_cache import PlanCache
from headrace.server.models.planner import Planner, Subject, open_rows
from headrace.server.models.probe import Verdict, probe, probe_fixed
from headrace.server.models.profile import synthetic_rows
from headrace.server.models.quality import check_quality, quality_of
from headrace.server.models.replacing import Replacer
from headrace.server.models.spec import ModelSpec, read_spec
from headrace.server.models.steady import is_steady
from headrace.server.telemetry.statistics import ModelStatistics
from headrace.server.telemetry.watch import Watch

# Bounds only: the size of each batch is chosen by what the model was measured to cost.
_WARM_UP_RUNS = 2
DEFAULT_MAX_BATCH = {Provider.CPU: 64, Provider.CUDA: 128}


@dataclass(frozen=True, slots=True)
class Host:
    """What all models of a server have in common.

    provider: where a model runs unless its configuration says. cache: where measured plans are
    kept, None for nowhere. device: counts what runs. watch: is told what becomes of requests.
    operators: libraries that models may have loaded.
    hang_seconds: runs that take longer, and far longer than predicted, are given up, unless a model
    says otherwise. deserted: executors that were.
    """

    provider: Provider = Provider.AUTO
    cache: PlanCache | None = None
    device: Device = field(default_factory=Device)
    watch: Watch = field(default_factory=Watch)
    operators: OperatorLibraries = field(default_factory=OperatorLibraries)
    hang_seconds: float = 30.0
    deserted: list[OnnxExecutor] = field(default_factory=list)


def make_policy(options: ModelOptions) -> Policy:
    """Learned batching, unless the configuration insists on sizes or a delay."""
    if options.preferred_batch_sizes or options.max_delay is not None:
        return Fixed(options.preferred_batch_sizes, options.max_delay or 0.0)
    return Learned()


@dataclass(frozen=True, slots=True)
class Opened:
    """What opening and examining a model's file gives; `sessions` has one for each executor of
    each of the plan's layouts, in their order. steady: whether a run may be made on the event loop
    where it is brief. path: of the file. stamp: what tells whether that has changed since."""

    path: pathlib.Path
    stamp: tuple[int, int, int]
    spec: ModelSpec
    plan: Plan
    sessions: Sequence[Sequence[Session]]
    verdict: Verdict
    padding: PaddingVerdict
    labels: Mapping[str, Sequence[str]]
    steady: bool = False


class ServedModel:
    """One version of a model, ready to run. Build it with `load`, inside the event loop."""

    def __init__(self, opened: Opened, options: ModelOptions, host: Host) -> None:
        self.spec = spec = opened.spec
        self.options = options
        self.plan = opened.plan
        self.verdict = opened.verdict
        self.padding = opened.padding
        self.labels = opened.labels
        self.inputs = {tensor.name: tensor for tensor in spec.inputs}
        self.outputs = {tensor.name: tensor for tensor in spec.outputs}
        self.default_outputs = tuple(t.name for t in spec.outputs if not t.state)
        self.statistics = ModelStatistics()
        self.quality = quality_of(spec, options.quality, opened.labels)
        self._closing: asyncio.Task[None] | None = None
        self._path, self._stamp, self._steady = opened.path, opened.stamp, opened.steady
        seats = list(_seats(opened))
        self._seats = {seat.name: (seat, options) for seat, options, _ in seats}
        self._executors: list[OnnxExecutor] = []
        for seat, _, session in seats:
            self._seated(seat.name, session)
        hang = options.hang_seconds or host.hang_seconds
        limits = Limits(max_batch_rows=spec.max_batch_size, hang_seconds=hang)
        if options.max_queued_requests:
            limits = replace(limits, max_queued_requests=options.max_queued_requests)
        observer = host.watch.observer(spec.name, spec.version, self.statistics)
        self.runner = Runner(
            self._executors, make_policy(options), limits, time.monotonic, observer, host.device
        )
        self.changed: Callable[[], None] = lambda: None
        self._replacer = Replacer(
            label=f"model {spec.name} version {spec.version}",
            runner=self.runner,
            open=self._reopened,
            seat=self._seated,
            patience=hang,
            deserted=host.deserted,
            changed=lambda: self.changed(),
        )
        self.runner.lost = self._lost
        self.costs = self._learn()
        self.lengths: Lengths | None = None
        if opened.padding.padding is not None:
            first = self._executors[0].name
            self.lengths = Lengths(
                opened.padding.padding, self.runner.state, first, self.statistics
            )

    def __repr__(self) -> str:
        return f"<ServedModel: {self.spec.name} version {self.spec.version}, {self.runner!r}>"

    def same(self, key: Key) -> Key:
        """The object that costs were learned under at load, where it equals `key`: dictionaries
        then find it without comparing, a dozen times for each batch."""
        found = (measured.profile.key for measured in self.plan.measured)
        return next((known for known in found if known == key), key)

    @property
    def able(self) -> bool:
        """Whether it has any executor left: those whose runs hang are given up."""
        return self.runner.state.able

    def _seated(self, name: str, session: Session) -> OnnxExecutor:
        """A new executor for the place called `name`."""
        seat, options = self._seats[name]
        steady = self._steady and options.on_caller
        executor = OnnxExecutor(seat, session, self.padding.padding, steady=steady)
        self._executors.append(executor)
        return executor

    def _reopened(self, name: str) -> Session:
        """A session as the place called `name` had one. Blocks; raises LoadFailed."""
        if _stamp(self._path) != self._stamp:
            raise LoadFailed(
                f"{self._path.name} is not what it was when the model was loaded: load it again"
            )
        _, options = self._seats[name]
        opened = open_session(self._path, options)
        session = open_rows(self.spec, opened)
        _warm_up(self.plan, self.spec, [[session]])
        return session

    def _lost(self, executor: Executor, batch: Batch) -> None:
        assert isinstance(executor, OnnxExecutor)
        self._executors.remove(executor)  # to close it would be to wait for it
        self._replacer.lost(executor, batch)

    def _learn(self) -> CostTable | None:
        """Teaches what was measured at load. Returns the costs of the profiled key on the main
        executors, None where nothing could be measured."""
        costs = self.runner.state.cost
        tables = {}
        for measured in self.plan.measured:
            profile, kind = measured.profile, measured.layout.kind
            if profile.runs:
                tables[kind] = costs.table(kind, profile.key, profile.row_bytes)
                tables[kind].profile(profile.runs)
        main, lone = self.plan.main.kind, self.plan.lone.kind if self.plan.lone else ""
        alone = {measured.layout.kind: measured.alone for measured in self.plan.measured}
        if main in tables and lone in tables:
            lone_was_measured(tables[main], tables[lone], alone[main], alone[lone])
        return tables.get(main)

    async def close(self) -> None:
        """Answers what was accepted, then lets go of threads and sessions.

        May be called more than once; a caller who is cancelled does not stop it half-way.
        """
        if self._closing is None:
            self._closing = asyncio.get_running_loop().create_task(self._close())
        await asyncio.shield(self._closing)

    async def _close(self) -> None:
        await self.runner.drain()
        self._replacer.close()
        # What knows each other is not freed by counting (app.py, _settle_memory).
        del self._replacer
        self.runner.lost = lambda executor, batch: None
        for executor in self._executors:
            await asyncio.to_thread(executor.close)
        if self.quality is not None:
            self.quality.close()


def _seats(opened: Opened) -> Iterator[tuple[Seat, SessionOptions, Session]]:
    """Every place, with the session for it and how that was opened."""
    spec = opened.spec
    for (team, layout), sessions in zip(opened.plan.layouts, opened.sessions, strict=True):
        between = "-" if layout.kind[-1].isdigit() else ""
        cpu = next(iter(layout.session.cpus), None)
        for number, session in enumerate(sessions):
            name = f"{spec.name}/{spec.version}/{layout.kind}{between}{number}"
            yield Seat(name, layout.kind, team, cpu), layout.session, session


def _stamp(path: pathlib.Path) -> tuple[int, int, int]:
    found = path.stat()
    return found.st_ino, found.st_size, found.st_mtime_ns


async def load(
    name: str, version: str, path: pathlib.Path, options: ModelOptions, host: Host
) -> ServedModel:
    """Opens, examines and starts a model. Raises LoadFailed."""
    opened = await asyncio.to_thread(examine, name, version, path, options, host)
    return ServedModel(opened, options, host)


def examine(
    name: str, version: str, path: pathlib.Path, options: ModelOptions, host: Host
) -> Opened:
    """Opens the model, probes whether it may be batched, and measures what it costs.

    Blocks for as long as that takes. Raises LoadFailed.
    """
    libraries = host.operators.find(options.operator_libraries)
    plan = configured(options, host.provider, libraries)
    stamp = _stamp(path)
    first = open_session(path, plan.main.session)
    spec = read_spec(name, version, first, options, DEFAULT_MAX_BATCH[plan.main.session.provider])
    spec, verdict = _check_rows(spec, first)
    check_quality(spec, options.quality)
    subject = Subject(spec, path, open_rows(spec, first))
    padding = _check_lengths(spec, subject.first, options)
    labels = _read_labels(path, options)
    opened_as = plan.main.session
    plan = Planner(host.cache, host.device).complete(plan, options, subject)
    sessions = [_open(layout, subject, opened_as) for _, layout in plan.layouts]
    _warm_up(plan, spec, sessions)
    steady = is_steady(path, spec, plan)
    return Opened(path, stamp, spec, plan, sessions, verdict, padding, labels, steady)


def _open(layout: Layout, subject: Subject, opened: SessionOptions) -> list[Session]:
    """A session for each executor of `layout`; the first, which was opened as `opened`, is used."""
    sessions = [subject.first] if layout.session == opened else []
    while len(sessions) < (1 if layout.shares_session else layout.instances):
        sessions.append(subject.open(layout.session))
    return sessions * layout.instances if layout.shares_session else sessions


def _warm_up(plan: Plan, spec: ModelSpec, sessions: Sequence[Sequence[Session]]) -> None:
    """The first runs of a session take several times as long as later ones. They are not to be
    learned from, and no request is to meet them."""
    profile = plan.measured[0].profile
    if profile.key is None:
        return
    arrays = synthetic_rows(spec, 1, profile.recipe)
    for session in {id(session): session for each in sessions for session in each}.values():
        for _ in range(_WARM_UP_RUNS):
            run_session(session, profile.key, arrays)


def _check_rows(spec: ModelSpec, session: ort.InferenceSession) -> tuple[ModelSpec, Verdict]:
    """The contract that the model itself bears out, and what was seen of it."""
    if spec.fixed_rows:
        verdict = probe_fixed(spec, session)
        if verdict.reason:
            return spec.unbatched(f"{spec.unbatched_because}, and {verdict.reason}"), verdict
        return spec.with_open_rows(), verdict
    verdict = probe(spec, session) if spec.batched and spec.max_batch_size > 1 else Verdict()
    return spec.unbatched(verdict.reason) if verdict.reason else spec, verdict


def _check_lengths(spec: ModelSpec, session: Session, options: ModelOptions) -> PaddingVerdict:
    if not options.padding:
        return PaddingVerdict(reason='the configuration says padding = "off"')
    if spec.layout is not PLAIN or spec.controls:
        return PaddingVerdict(reason="the model has inputs that its callers do not send")
    return probe_padding(spec, session)


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
