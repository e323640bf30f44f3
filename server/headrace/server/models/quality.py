"""What a model's configuration asks of its quality, held against its contract."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from headrace.server.errors import LoadFailed
from headrace.server.models.spec import ModelSpec, TensorSpec
from headrace.server.quality.drift import require_scipy
from headrace.server.quality.options import QualityOptions
from headrace.server.quality.predictions import is_score
from headrace.server.quality.quality import Quality


def check_quality(spec: ModelSpec, options: QualityOptions | None) -> None:
    """Raises LoadFailed for what `spec` cannot give, or this installation."""
    if options is None:
        return
    output = _scored(spec, options)
    if options.task == "regression" and output.datatype in ("BYTES", "BOOL"):
        raise LoadFailed(
            f"quality.task: expected classification for an output of {output.datatype}, as "
            f"'{output.name}' is, got regression"
        )
    _check_axis(spec, options, output)
    if options.drift:
        require_scipy()


def _check_axis(spec: ModelSpec, options: QualityOptions, output: TensorSpec) -> None:
    """An unbatched output is one row."""
    rank = len(output.shape) + (not spec.batched)
    axis = options.axis if options.axis >= 0 else rank + options.axis
    scores = options.task == "classification" and is_score(output.datatype) and rank > 1
    if scores and not 0 < axis < rank:
        raise LoadFailed(
            f"quality.axis: expected one of 1 to {rank - 1}, or -{rank - 1} to -1, as output "
            f"'{output.name}' has them beside that of rows, got {options.axis}"
        )


def _scored(spec: ModelSpec, options: QualityOptions) -> TensorSpec:
    outputs = [tensor for tensor in spec.outputs if not tensor.state]
    found = [tensor for tensor in outputs if options.output in ("", tensor.name)]
    if not found:
        known = ", ".join(f"'{tensor.name}'" for tensor in outputs)
        raise LoadFailed(f"quality.output: expected one of {known}, got '{options.output}'")
    return found[0]


def quality_of(
    spec: ModelSpec, options: QualityOptions | None, labels: Mapping[str, Sequence[str]]
) -> Quality | None:
    """None where nothing is asked. `options` have been checked; `labels` are those of outputs."""
    if options is None:
        return None
    output = _scored(spec, options)
    return Quality(spec.name, options, output, labels.get(output.name, ()), spec.batched)
