"""The table [quality] of a model's configuration. Without it nothing of this is done."""

from __future__ import annotations

import tomllib
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from headrace.server.errors import LoadFailed
from headrace.server.wrong_keys import wrong_keys

Task = Literal["classification", "regression"]


class QualityOptions(BaseModel):
    """How a model's answers are watched.

    task: what truths are compared with, None to take none. output: which one; empty for the first.
    classes: names, by index; empty for those of the output's label file. axis: of the classes'
    scores, in an output that has several elements a row. threshold: from which on a lone score is
    class 1. sample: share of the requests that is looked at. answers, answers_bytes: how many wait
    for their truths at most, and in how much memory. window: how many scores, and how many rows of
    tensors, the figures are over. drift: whether rows are compared with those of a reference
    window, the first `reference` rows.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    task: Task | None = None
    output: str = ""
    classes: tuple[Annotated[str, Field(min_length=1)], ...] = Field(default=(), strict=False)
    axis: int = -1
    threshold: float = 0.5
    sample: float = Field(default=1.0, gt=0, le=1)
    answers: int = Field(default=10_000, ge=1, le=1_000_000)
    answers_bytes: int = Field(default=64 << 20, ge=1 << 10, le=1 << 30)
    window: int = Field(default=1_000, ge=10, le=100_000)
    reference: int = Field(default=1_000, ge=10, le=100_000)
    drift: bool = True


def from_text(key: str, text: str) -> QualityOptions:
    """The table as TOML in a string, where a configuration has no room for tables. Raises
    LoadFailed naming `key`."""
    try:
        return QualityOptions.model_validate(tomllib.loads(text))
    except tomllib.TOMLDecodeError as error:
        raise LoadFailed(f"{key}: {error}") from error
    except ValidationError as error:
        said = wrong_keys(error, lambda table: QualityOptions.model_fields)
        raise LoadFailed(f"{key}: {said}") from error
