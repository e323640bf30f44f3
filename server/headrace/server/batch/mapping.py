"""Which columns feed which inputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from headrace.server.batch.values import Wanted
from headrace.server.errors import ConfigurationError
from headrace.server.models.spec import TensorSpec


def map_columns(
    inputs: Sequence[TensorSpec],
    batched: bool,
    chosen: Mapping[str, tuple[str, ...]],
    columns: Sequence[str],
) -> list[Wanted]:
    """What each of `inputs` wants of a row, by the columns `chosen` for it, or the one of its name.
    A single column feeds a single input, whatever they are called.

    Raises ConfigurationError naming the input or the column at fault.
    """
    names = [spec.name for spec in inputs]
    for name in chosen:
        if name not in names:
            raise ConfigurationError(f"--input: expected one of {_listed(names)}, got '{name}'")
    # A model that takes a row at a time: the row has the dimension that counts them, if 1 is right.
    lead = not batched and all(spec.shape[:1] in ((-1,), (1,)) for spec in inputs)
    wanted = []
    for spec in inputs:
        found = chosen.get(spec.name)
        if found is None:
            alone = len(inputs) == len(columns) == 1
            found = (columns[0],) if alone else (spec.name,)
        _check(spec.name, found, columns)
        shape = spec.shape[1:] if batched or lead else spec.shape
        if len(found) > 1 and (len(shape) != 1 or shape[0] not in (-1, len(found))):
            raise ConfigurationError(
                f"--input {spec.name}: {len(found)} columns make rows of shape [{len(found)}], "
                f"the model wants {list(shape)} (-1: any)"
            )
        wanted.append(Wanted(spec.name, spec.datatype, shape, found, lead))
    return wanted


def _check(name: str, found: Sequence[str], columns: Sequence[str]) -> None:
    for column in found:
        if column not in columns:
            raise ConfigurationError(
                f"input '{name}': expected a column '{column}' in every file, got "
                f"{_listed(columns)}; --input {name}=COLUMN names another"
            )


def _listed(names: Sequence[str]) -> str:
    return ", ".join(f"'{name}'" for name in names) or "none"
