"""Triton's form of a model's configuration: ModelConfig, as `config.pbtxt` or in a load request."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping
from typing import Any

from google.protobuf import json_format, text_format

from headrace.inference.tensors import DATATYPES
from headrace.inference.v2 import model_config_pb2 as pb
from headrace.server.errors import LoadFailed
from headrace.server.executors.session import Provider
from headrace.server.models.controls import ControlDeclaration, ControlKind
from headrace.server.models.options import (
    ModelOptions,
    TensorDeclaration,
    VersionPolicy,
    check_inside,
)
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


def from_pbtxt(path: pathlib.Path) -> ModelOptions:
    """Raises LoadFailed naming the file, or the value that cannot be right."""
    try:
        config = text_format.Parse(path.read_text(), pb.ModelConfig())
    except (text_format.ParseError, UnicodeDecodeError) as error:
        raise LoadFailed(f"{path.name}: {error}") from error
    return from_config(config, path.parent.name)


def from_json(text: str, name: str) -> ModelOptions:
    """The configuration a load request carries: ModelConfig as JSON. Raises LoadFailed."""
    try:
        config = json_format.Parse(text, pb.ModelConfig())
    except json_format.ParseError as error:
        raise LoadFailed(f"parameter 'config': {error}") from error
    return from_config(config, name)


def from_config(config: pb.ModelConfig, name: str) -> ModelOptions:
    """Reads Triton's configuration. Raises LoadFailed for a value that cannot be right."""
    if config.name and config.name != name:
        raise LoadFailed(f"name: expected '{name}', as the folder is called, got '{config.name}'")
    kind = config.backend or config.platform
    if kind not in ("", "onnxruntime", "onnxruntime_onnx"):
        raise LoadFailed(f"backend/platform: expected onnxruntime, got '{kind}'")
    _check_numbers(config)
    check_inside("default_model_filename", config.default_model_filename)
    for tensor in config.output:
        check_inside("output.label_filename", tensor.label_filename)
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
