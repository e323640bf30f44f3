"""What a model's configuration says, as far as it is honoured.

Two forms are read: Triton's `config.pbtxt` (`triton_config.py`), and our own `model.toml`
(`model_toml.py`). Both become ModelOptions.
"""

from __future__ import annotations

import pathlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from headrace.inference.v2 import model_config_pb2 as pb
from headrace.server.errors import LoadFailed
from headrace.server.executors.session import Provider
from headrace.server.models.controls import ControlDeclaration
from headrace.server.models.states import StateDeclaration
from headrace.server.quality.options import QualityOptions


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


def check_inside(key: str, name: str) -> None:
    """A configuration can come with a call; it must not read files from all over the machine."""
    path = pathlib.PurePath(name)
    if path.is_absolute() or ".." in path.parts:
        raise LoadFailed(f"{key}: expected a file in the model's folder, got '{name}'")
