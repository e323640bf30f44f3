"""Our own form of a model's configuration: `model.toml`."""

from __future__ import annotations

import pathlib
import tomllib
from collections.abc import Iterable
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from headrace.server.errors import LoadFailed
from headrace.server.executors.session import Provider
from headrace.server.models.options import ModelOptions, VersionPolicy, check_inside
from headrace.server.models.states import StateDeclaration
from headrace.server.quality.options import QualityOptions
from headrace.server.wrong_keys import wrong_keys

_Versions = Literal["all"] | Annotated[list[Annotated[int, Field(ge=1)]], Field(min_length=1)]


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
    versions: _Versions | None = None
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


def from_toml(path: pathlib.Path) -> ModelOptions:
    """Raises LoadFailed naming the file and every key that is wrong."""
    try:
        values = _Toml.model_validate(tomllib.loads(path.read_text()))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise LoadFailed(f"{path.name}: {error}") from error
    except ValidationError as error:
        raise LoadFailed(f"{path.name}: {wrong_keys(error, _known)}") from error
    check_inside("filename", values.filename)
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


def _known(table: str) -> Iterable[str]:
    """The keys of `table`, which is empty for those that are in none."""
    tables = {"state": _TomlState.model_fields, "quality": QualityOptions.model_fields}
    return tables.get(table, _Toml.model_fields)
