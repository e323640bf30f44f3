"""What is to be computed, and the pieces in which it is done."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

OutputFormat = Literal["parquet", "npz"]
OnError = Literal["fail", "skip"]
ProviderName = Literal["auto", "cpu", "cuda"]


@dataclass(frozen=True, slots=True)
class ImageOptions:
    """How a decoded image becomes numbers of a floating point input.

    Pixels are divided by 255; then each channel has its `mean` subtracted and is divided by its
    `std`. One number holds for all channels. Integer inputs get the pixels as they are.
    """

    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)


@dataclass(frozen=True, slots=True)
class Job:
    """All that settles what comes out. Paths are absolute: other machines may read them, too.

    name: of the model, where `model` holds several. columns: those that feed an input, by the
    input's name; without, the column called like it does. outputs: those wanted, empty for all.
    keep: columns to be copied beside them. on_error: what a row that cannot be computed does.
    """

    model: pathlib.Path
    inputs: tuple[pathlib.Path, ...]
    output: pathlib.Path
    name: str = ""
    columns: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    outputs: tuple[str, ...] = ()
    keep: tuple[str, ...] = ()
    form: OutputFormat = "parquet"
    rows_per_part: int = 4096
    on_error: OnError = "fail"
    provider: ProviderName = "auto"
    cache_dir: str = "auto"
    operator_libraries: tuple[pathlib.Path, ...] = ()
    images: ImageOptions = ImageOptions()


@dataclass(frozen=True, slots=True)
class Part:
    """Some rows of the input, in order, whose answers are one file of the output.

    files: the file that has them, or for images a file for each row. start: the first of them,
    counted in the file from 0. offset: where it begins in bytes, for files that must be read from
    there.
    """

    number: int
    files: tuple[str, ...]
    start: int
    rows: int
    offset: int = 0

    def place(self, index: int) -> tuple[str, int]:
        """File and row of the part's row `index`."""
        if len(self.files) > 1:
            return self.files[index], 0
        return self.files[0], self.start + index


@dataclass(frozen=True, slots=True)
class Skipped:
    """A row that has no answer. column: that is to blame, empty where the model is."""

    file: str
    row: int
    column: str
    message: str

    def __str__(self) -> str:
        column = f", column '{self.column}'" if self.column else ""
        return f"{self.file}, row {self.row}{column}: {self.message}"


@dataclass(frozen=True, slots=True)
class PartDone:
    """A part whose file is in its place."""

    number: int
    rows: int
    skipped: int
