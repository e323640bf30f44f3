"""ModelConfig as it is in force, for callers that ask."""

from __future__ import annotations

import math
from collections.abc import Iterator

from headrace.inference.tensors import DATATYPES
from headrace.inference.v2 import model_config_pb2 as config_pb
from headrace.server.executors.session import Provider
from headrace.server.models.plan import Layout
from headrace.server.models.served import ServedModel
from headrace.server.models.spec import BACKEND, PLATFORM, TensorSpec


def effective_config(model: ServedModel) -> config_pb.ModelConfig:
    """The model's configuration as it is in force: what was given, completed by what was found."""
    spec, plan = model.spec, model.plan
    config = config_pb.ModelConfig()
    config.CopyFrom(model.options.source)
    config.name, config.platform, config.backend = spec.name, PLATFORM, BACKEND
    config.max_batch_size = spec.max_batch_size if spec.batched else 0
    config.default_model_filename = model.options.filename
    if not config.HasField("version_policy"):
        config.version_policy.latest.num_versions = 1
    stateless = not spec.states
    if spec.batched and stateless and config.WhichOneof("scheduling_choice") is None:
        config.dynamic_batching.SetInParent()
    skip = 1 if spec.batched else 0
    given_inputs = {tensor.name: tensor for tensor in model.options.source.input}
    given_outputs = {tensor.name: tensor for tensor in model.options.source.output}
    del config.input[:], config.output[:], config.instance_group[:]
    for state in () if config.HasField("sequence_batching") else spec.states:
        kept = config.sequence_batching.state.add(input_name=state.input, output_name=state.output)
        kept.data_type = DATATYPES[state.datatype].config_value  # type: ignore[assignment]
        kept.dims[:] = [d for axis, d in enumerate(state.shape) if not skip or axis != state.axis]
    for tensor in (spec for spec in spec.inputs if not spec.state):
        declared = config.input.add()
        if tensor.name in given_inputs:
            declared.CopyFrom(given_inputs[tensor.name])
        _declare(declared, tensor, 0 if tensor.optional else skip)
        declared.optional = tensor.optional
    for tensor in (spec for spec in spec.outputs if not spec.state):
        result = config.output.add()
        if tensor.name in given_outputs:
            result.CopyFrom(given_outputs[tensor.name])
        _declare(result, tensor, skip)
    for layout in (plan.main, plan.helpers):
        if layout is not None:
            _describe(config.instance_group.add(name=spec.name), layout)
    for name, value in _found(model):
        config.parameters[name].string_value = value
    return config


def _found(model: ServedModel) -> Iterator[tuple[str, str]]:
    """What was found out about the model at load, as parameters."""
    spec, plan, deviation, padding = model.spec, model.plan, model.verdict.deviation, model.padding
    yield "intra_op_thread_count", str(plan.main.session.intra_op_threads)
    yield "headrace_plan", plan.in_words
    if not math.isnan(deviation):
        yield "headrace_batch_deviation", f"{deviation:.3g}"
    if spec.unbatched_because:
        yield "headrace_unbatched_because", spec.unbatched_because
    if padding.padding is not None:
        yield "headrace_padding", padding.padding.mode.value
    elif padding.reason:
        yield "headrace_unpadded_because", padding.reason


def _describe(group: config_pb.ModelInstanceGroup, layout: Layout) -> None:
    group.count = layout.instances
    cuda = layout.session.provider is Provider.CUDA
    group.kind = group.KIND_GPU if cuda else group.KIND_CPU
    if cuda:
        group.gpus.append(layout.session.device_id)


def _declare(
    declared: config_pb.ModelInput | config_pb.ModelOutput, tensor: TensorSpec, skip: int
) -> None:
    declared.name = tensor.name
    declared.data_type = DATATYPES[tensor.datatype].config_value  # type: ignore[assignment]
    declared.dims[:] = tensor.shape[skip:]
