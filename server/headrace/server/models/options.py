"""What a model's configuration says, as far as it is honoured.

Two forms are read: Triton's `config.pbtxt`, and our own `model.toml`. Both become ModelOptions.
"""

from __future__ import annotations

import json
import pathlib
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from google.protobuf import json_format, text_format
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from headrace.inference.tensors import DATATYPES
from headrace.inference.v2 import model_config_pb2 as pb
from headrace.server.errors import LoadFailed
from headrace.server.executors.session import Provider
from headrace.server.mistyped import meant
from headrace.server.models.controls import ControlDeclaration, ControlKind
from headrace.server.models.states import StateDeclaration
from headrace.server.quality.options import QualityOptions, from_text

_DATATYPE_NAMES = {d.config_value: d.name for d in DATATYPES.values()}
_THREAD_PARAMETERS = {
    "intra_op_thread_count": "intra_op_threads",
    "inter_op_thread_count": "inter_op_threads",
}
# TOML, as the table [quality] of model.toml.
_QUALITY_PARAMETER = "headrace_quality"
_HONOURED = {
    "name", "platform", "backend", "runtime", "max_batch_size", "version_policy", "input",
    "output", "instance_group", "default_model_filename", "dynamic_batching", "parameters",
    "sequence_batching", "model_operations",
}  # fmt: skip
_HONOURED_BATCHING = {
    "preferred_batch_size", "max_queue_delay_microseconds", "default_queue_policy",
    "priority_levels", "default_priority_level",
}  # fmt: skip
_HONOURED_SEQUENCES = {"state", "control_input", "max_sequence_idle_microseconds"}
_HONOURED_STATE = {"input_name", "output_name", "data_type", "dims", "initial_state"}
_HONOURED_TENSOR = {
    "name", "data_type", "dims", "reshape", "label_filename",
}  # fmt: skip
_HONOURED_QUEUE = {
    "default_timeout_microseconds", "allow_timeout_override", "max_queue_size",
}  # fmt: skip
_HONOURED_INSTANCES = {"count", "kind", "name", "gpus"}


@dataclass(frozen=True, slots=True)
class TensorDeclaration:
    """A declared input or output. `dims` leave out the batch dimension of a batched model."""

    name: str
    datatype: str = ""
    dims: tuple[int, ...] | None = None
    reshape: tuple[int, ...] | None = None
    labels: str = ""


@dataclass(frozen=True, slots=True)
class VersionPolicy:
    """Which versions are served: the `latest` n, all of them (None), or those of `specific`."""

    latest: int | None = 1
    specific: tuple[int, ...] = ()

    def choose(self, versions: list[int]) -> list[int]:
        """The served ones among `versions`, ascending."""
        if self.specific:
            return sorted(set(versions) & set(self.specific))
        ordered = sorted(versions)
        return ordered if self.latest is None else ordered[-self.latest :]


@dataclass(frozen=True, slots=True)
class ModelOptions:
    """The honoured part of a model's configuration; None means: not said, the server decides.

    max_batch_size: rows; 0 turns batching off. instances: executors. cpu_helpers: executors on the
    CPU beside those on CUDA. timeout: the longest, in seconds, that any request is worth waiting
    for; override_timeout lets a caller's be shorter. latency_objective: seconds within which one is
    to be answered that brings no deadline.
    preferred_batch_sizes (rows), max_delay (seconds): either one replaces learned sizes. padding:
    whether requests of unequal length may be padded to one, where that is found to be safe.
    hang_seconds: a run that takes longer, and far longer than predicted, is given up.
    states: outputs that feed inputs of the next run. controls: inputs that tell of a row's
    sequence. constants: inputs that are the same at every run, by name. max_sequence_idle: seconds
    until a sequence that nobody continues is forgotten.
    operator_libraries: of custom operators, as the configuration names them. quality: how answers
    are watched, None for not at all.
    not_honoured: keys that were set and have no effect here.
    """

    max_batch_size: int | None = None
    instances: int | None = None
    cpu_helpers: int = 0
    intra_op_threads: int | None = None
    inter_op_threads: int | None = None
    provider: Provider | None = None
    device_id: int = 0
    filename: str = "model.onnx"
    versions: VersionPolicy = VersionPolicy()
    inputs: tuple[TensorDeclaration, ...] = ()
    outputs: tuple[TensorDeclaration, ...] = ()
    timeout: float | None = None
    override_timeout: bool = False
    latency_objective: float | None = None
    max_queued_requests: int | None = None
    preferred_batch_sizes: tuple[int, ...] = ()
    max_delay: float | None = None
    default_priority: int | None = None
    priority_levels: int = 0
    padding: bool = True
    not_honoured: tuple[str, ...] = ()
    states: tuple[StateDeclaration, ...] = ()
    controls: tuple[ControlDeclaration, ...] = ()
    constants: Mapping[str, Any] = field(default_factory=dict)
    max_sequence_idle: float | None = None
    operator_libraries: tuple[str, ...] = ()
    quality: QualityOptions | None = None
    hang_seconds: float | None = None
    source: pb.ModelConfig = field(default_factory=pb.ModelConfig)


class _TomlState(BaseModel):
    """One [[state]] of model.toml."""

    model_config = ConfigDict(extra="forbid", strict=True)

    input: str
    output: str
    batch_axis: int | None = Field(default=None, ge=0)
    dims: tuple[Annotated[int, Field(ge=0)], ...] | None = Field(default=None, strict=False)
    initial: Literal["zeros"] = "zeros"


class _Toml(BaseModel):
    """The keys of model.toml. Anything else is an error, and so is `true` or "16" for a number."""

    model_config = ConfigDict(extra="forbid", strict=True)

    max_batch_size: int | None = Field(default=None, ge=0)
    instances: int | None = Field(default=None, ge=1)
    cpu_helpers: int = Field(default=0, ge=0)
    intra_op_threads: int | None = Field(default=None, ge=1)
    inter_op_threads: int | None = Field(default=None, ge=1)
    provider: Provider | None = Field(default=None, strict=False)
    device_id: int = Field(default=0, ge=0)
    filename: str = "model.onnx"
    versions: Literal["all"] | Annotated[list[int], Field(min_length=1)] | None = None
    timeout: float | None = Field(default=None, gt=0)
    latency_objective: float | None = Field(default=None, gt=0)
    max_queued_requests: int | None = Field(default=None, ge=1)
    preferred_batch_sizes: tuple[Annotated[int, Field(ge=1)], ...] = Field(default=(), strict=False)
    max_delay: float | None = Field(default=None, ge=0)
    padding: Literal["auto", "off"] = "auto"
    state: list[_TomlState] = Field(default_factory=list)
    constants: dict[str, Any] = Field(default_factory=dict)
    max_sequence_idle: float | None = Field(default=None, gt=0)
    operator_libraries: tuple[Annotated[str, Field(min_length=1)], ...] = Field(
        default=(), strict=False
    )
    quality: QualityOptions | None = None
    hang_seconds: float | None = Field(default=None, gt=0)


def read_options(folder: pathlib.Path) -> ModelOptions:
    """The configuration beside a model's versions; all defaults when there is none.

    Raises LoadFailed naming the file and the key.
    """
    pbtxt, toml = folder / "config.pbtxt", folder / "model.toml"
    if pbtxt.exists() and toml.exists():
        raise LoadFailed(f"{folder.name} has both config.pbtxt and model.toml: keep one")
    if pbtxt.exists():
        try:
            config = text_format.Parse(pbtxt.read_text(), pb.ModelConfig())
        except (text_format.ParseError, UnicodeDecodeError) as error:
            raise LoadFailed(f"{pbtxt.name}: {error}") from error
        return from_config(config, folder.name)
    if toml.exists():
        return _from_toml(toml)
    return ModelOptions()


def from_json(text: str, name: str) -> ModelOptions:
    """The configuration a load request carries: ModelConfig as JSON. Raises LoadFailed."""
    try:
        config = json_format.Parse(text, pb.ModelConfig())
    except json_format.ParseError as error:
        raise LoadFailed(f"parameter 'config': {error}") from error
    return from_config(config, name)


def _from_toml(path: pathlib.Path) -> ModelOptions:
    try:
        values = _Toml.model_validate(tomllib.loads(path.read_text()))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise LoadFailed(f"{path.name}: {error}") from error
    except ValidationError as error:
        raise LoadFailed(
            f"{path.name}: " + "; ".join(dict.fromkeys(map(_line, error.errors())))
        ) from error
    _check_inside("filename", values.filename)
    given = values.model_dump(exclude={"versions", "state", "quality"})
    given["quality"] = values.quality
    given["padding"] = values.padding == "auto"
    given["states"] = tuple(
        StateDeclaration(state.input, state.output, state.batch_axis, state.dims)
        for state in values.state
    )
    if values.versions == "all":
        given["versions"] = VersionPolicy(latest=None)
    elif values.versions is not None:
        given["versions"] = VersionPolicy(specific=tuple(values.versions))
    return ModelOptions(**given)


def _line(error: Any) -> str:
    where = ".".join(map(str, error["loc"]))
    if error["type"] == "extra_forbidden":
        return f"{where}: no such key{meant(str(error['loc'][-1]), _Toml.model_fields)}"
    if error["loc"][0] == "versions":  # one error for each thing that it is not
        return f"versions: expected 'all' or a list of numbers from 1, {_got(error['input'])}"
    expected = error["msg"].replace("Input should be", "expected", 1)
    return f"{where}: {expected}, {_got(error['input'])}"


def _got(value: Any) -> str:
    return f"got {json.dumps(value, default=str)}"


def from_config(config: pb.ModelConfig, name: str) -> ModelOptions:
    """Reads Triton's configuration. Raises LoadFailed for a value that cannot be right."""
    if config.name and config.name != name:
        raise LoadFailed(f"name: expected '{name}', as the folder is called, got '{config.name}'")
    kind = config.backend or config.platform
    if kind not in ("", "onnxruntime", "onnxruntime_onnx"):
        raise LoadFailed(f"backend/platform: expected onnxruntime, got '{kind}'")
    _check_numbers(config)
    _check_inside("default_model_filename", config.default_model_filename)
    for tensor in config.output:
        _check_inside("output.label_filename", tensor.label_filename)
    batching = config.dynamic_batching
    queue = batching.default_queue_policy
    rejects = queue.timeout_action == pb.ModelQueuePolicy.REJECT
    timeout = queue.default_timeout_microseconds if rejects else 0
    return ModelOptions(
        max_batch_size=_max_batch_size(config),
        **_instances(config),
        **_threads(config.parameters),
        filename=config.default_model_filename or "model.onnx",
        versions=_version_policy(config.version_policy),
        inputs=tuple(_declaration(tensor) for tensor in config.input),
        outputs=tuple(_declaration(tensor) for tensor in config.output),
        timeout=timeout / 1e6 if timeout else None,
        override_timeout=queue.allow_timeout_override,
        max_queued_requests=queue.max_queue_size or None,
        preferred_batch_sizes=tuple(sorted(batching.preferred_batch_size)),
        max_delay=batching.max_queue_delay_microseconds / 1e6
        if batching.max_queue_delay_microseconds
        else None,
        default_priority=batching.default_priority_level or None,
        priority_levels=batching.priority_levels,
        states=_states(config.sequence_batching),
        controls=_controls(config.sequence_batching),
        max_sequence_idle=config.sequence_batching.max_sequence_idle_microseconds / 1e6 or None,
        operator_libraries=tuple(config.model_operations.op_library_filename),
        quality=_quality(config.parameters),
        not_honoured=tuple(_not_honoured(config)),
        source=config,
    )


def _states(batching: pb.ModelSequenceBatching) -> tuple[StateDeclaration, ...]:
    found = []
    for state in batching.state:
        for initial in state.initial_state:
            if initial.data_file:
                raise LoadFailed(
                    "sequence_batching.state.initial_state.data_file: expected zero_data, states "
                    f"start from zeros here, got '{initial.data_file}'"
                )
        dims = tuple(state.dims) if state.dims else None
        found.append(StateDeclaration(state.input_name, state.output_name, dims=dims))
    return tuple(found)


def _controls(batching: pb.ModelSequenceBatching) -> tuple[ControlDeclaration, ...]:
    found = []
    for tensor in batching.control_input:
        for control in tensor.control:
            kind = ControlKind(pb.ModelSequenceBatching.Control.Kind.Name(control.kind))
            values = [
                *control.int32_false_true, *control.fp32_false_true, *control.bool_false_true
            ]  # fmt: skip
            if kind is not ControlKind.CORRID and len(values) != 2:
                raise LoadFailed(
                    f"sequence_batching.control_input '{tensor.name}': expected two values, for "
                    f"false and true, got {len(values)}"
                )
            found.append(ControlDeclaration(tensor.name, kind, *values[:2]))
    return tuple(found)


def _check_numbers(config: pb.ModelConfig) -> None:
    numbers = [("max_batch_size", config.max_batch_size, 0)]
    numbers += [("instance_group.count", group.count, 0) for group in config.instance_group]
    key = "dynamic_batching.preferred_batch_size"
    numbers += [(key, size, 1) for size in config.dynamic_batching.preferred_batch_size]
    for key, value, least in numbers:
        if value < least:
            raise LoadFailed(f"{key}: expected {least} or more, got {value}")
    policy = config.version_policy
    if policy.HasField("specific") and not policy.specific.versions:
        raise LoadFailed("version_policy.specific: expected at least one version, got none")


def _check_inside(key: str, name: str) -> None:
    """A configuration can come with a call; it must not read files from all over the machine."""
    path = pathlib.PurePath(name)
    if path.is_absolute() or ".." in path.parts:
        raise LoadFailed(f"{key}: expected a file in the model's folder, got '{name}'")


def _max_batch_size(config: pb.ModelConfig) -> int | None:
    """Triton takes an absent max_batch_size for 0. An absent one in a config that declares no
    tensors (a minimal one) says nothing about the shapes, so the server decides."""
    if config.max_batch_size or config.input or config.output:
        return config.max_batch_size
    return None


def _instances(config: pb.ModelConfig) -> dict[str, Any]:
    """Executors by where they run. CPU groups beside GPU ones help those."""
    groups = config.instance_group
    on_cpu = sum(g.count or 1 for g in groups if g.kind == pb.ModelInstanceGroup.KIND_CPU)
    others = sum(g.count or 1 for g in groups if g.kind != pb.ModelInstanceGroup.KIND_CPU)
    found: dict[str, Any] = {}
    if any(group.kind == pb.ModelInstanceGroup.KIND_GPU for group in groups):
        found = {"instances": others, "provider": Provider.CUDA, "cpu_helpers": on_cpu}
    elif groups:
        found = {"instances": on_cpu + others}
        if on_cpu:
            found["provider"] = Provider.CPU
    gpus = [gpu for group in groups for gpu in group.gpus]
    if gpus:
        found["device_id"] = gpus[0]
    return found


def _threads(parameters: Mapping[str, Any]) -> dict[str, Any]:
    found = {}
    for key, name in _THREAD_PARAMETERS.items():
        if key not in parameters:
            continue
        text = parameters[key].string_value
        if not text.isdecimal():
            raise LoadFailed(f"parameters.{key}: expected a number of threads, got '{text}'")
        if int(text):  # 0 leaves the choice to the server, as in ONNX Runtime
            found[name] = int(text)
    return found


def _quality(parameters: Mapping[str, Any]) -> QualityOptions | None:
    if _QUALITY_PARAMETER not in parameters:
        return None
    text = parameters[_QUALITY_PARAMETER].string_value
    return from_text(f"parameters.{_QUALITY_PARAMETER}", text)


def _version_policy(policy: pb.ModelVersionPolicy) -> VersionPolicy:
    choice = policy.WhichOneof("policy_choice")
    if choice == "all":
        return VersionPolicy(latest=None)
    if choice == "specific":
        return VersionPolicy(specific=tuple(policy.specific.versions))
    return VersionPolicy(latest=max(1, policy.latest.num_versions))


def _declaration(tensor: pb.ModelInput | pb.ModelOutput) -> TensorDeclaration:
    return TensorDeclaration(
        tensor.name,
        _DATATYPE_NAMES.get(tensor.data_type, ""),
        tuple(tensor.dims) if tensor.dims or tensor.HasField("reshape") else None,
        tuple(tensor.reshape.shape) if tensor.HasField("reshape") else None,
        tensor.label_filename if isinstance(tensor, pb.ModelOutput) else "",
    )


def _not_honoured(config: pb.ModelConfig) -> list[str]:
    """The keys that are set and have no effect, dotted, once each."""
    found = _unknown(config, _HONOURED, "")
    found += _unknown(config.dynamic_batching, _HONOURED_BATCHING, "dynamic_batching.")
    queue = config.dynamic_batching.default_queue_policy
    found += _unknown(queue, _HONOURED_QUEUE, "dynamic_batching.default_queue_policy.")
    sequences = config.sequence_batching
    found += _unknown(sequences, _HONOURED_SEQUENCES, "sequence_batching.")
    for state in sequences.state:
        found += _unknown(state, _HONOURED_STATE, "sequence_batching.state.")
    found += [key for t in config.input for key in _unknown(t, _HONOURED_TENSOR, "input.")]
    found += [key for t in config.output for key in _unknown(t, _HONOURED_TENSOR, "output.")]
    for group in config.instance_group:
        found += _unknown(group, _HONOURED_INSTANCES, "instance_group.")
    if len({gpu for group in config.instance_group for gpu in group.gpus}) > 1:
        found.append("instance_group: gpus beyond the first")
    known = {*_THREAD_PARAMETERS, _QUALITY_PARAMETER}
    found += [f"parameters.{key}" for key in config.parameters if key not in known]
    return sorted(set(found))


def _unknown(message: Any, honoured: set[str], prefix: str) -> list[str]:
    return [prefix + field.name for field, _ in message.ListFields() if field.name not in honoured]
