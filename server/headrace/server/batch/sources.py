"""The input: which files, how they are cut into parts, and how the rows of a part are read."""

from __future__ import annotations

import hashlib
import pathlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from headrace.server.batch import pictures
from headrace.server.batch.job import Job, Part
from headrace.server.batch.tables import TABLES, open_table
from headrace.server.batch.values import Column
from headrace.server.errors import ConfigurationError, InvalidInput

_KNOWN = {*TABLES, *pictures.SUFFIXES}


@dataclass(frozen=True, slots=True)
class Contents:
    """What the files of a source have in common. columns: those that every file has, in the order
    of the first. kept: those that are copied to the output, with their Arrow types where it is
    Parquet, None elsewhere."""

    columns: tuple[str, ...]
    images: bool
    kept: tuple[tuple[str, Any], ...] = ()


@dataclass(frozen=True, slots=True)
class Source:
    """The files of a job, in order: all of them images, or none."""

    files: tuple[pathlib.Path, ...]

    @property
    def images(self) -> bool:
        return self.files[0].suffix.lower() in pictures.SUFFIXES

    def contents(self, job: Job) -> Contents:
        """Raises ConfigurationError where not every file has what is to be kept, InvalidInput for
        a file that cannot be read."""
        if self.images:
            return Contents((pictures.COLUMN,), images=True)
        tables = [open_table(file) for file in self.files]
        first, *others = (table.columns() for table in tables)
        columns = tuple(name for name in first if all(name in names for names in others))
        for name in job.keep:
            if name not in columns:
                known = ", ".join(f"'{known}'" for known in columns) or "none"
                raise ConfigurationError(
                    f"--keep: expected columns of every file, {known}; got '{name}'"
                )
        if job.form != "parquet":
            return Contents(columns, False, tuple((name, None) for name in job.keep))
        types = [table.types(job.keep) for table in tables]
        for file, found in zip(self.files, types, strict=True):
            for name, kind, expected in zip(job.keep, found, types[0], strict=True):
                if kind != expected:
                    raise ConfigurationError(
                        f"--keep: column '{name}': expected {expected} as in {self.files[0]}, got "
                        f"{kind} in {file}"
                    )
        return Contents(columns, False, tuple(zip(job.keep, types[0], strict=True)))

    def parts(self, rows: int) -> Iterator[Part]:
        """The parts, of at most so many rows each. A part ends with its file."""
        if self.images:
            for number, start in enumerate(range(0, len(self.files), rows)):
                some = tuple(map(str, self.files[start : start + rows]))
                yield Part(number, some, 0, len(some))
            return
        number = 0
        for file in self.files:
            for start, count, offset in open_table(file).pieces(rows):
                yield Part(number, (str(file),), start, count, offset)
                number += 1

    def describe(self) -> list[dict[str, object]]:
        """What tells these files from others: size and digest of each; of images, which may be
        many, one digest over names, sizes and times."""
        if not self.images:
            return [_describe(file) for file in self.files]
        found = hashlib.sha256()
        for file in self.files:
            status = file.stat()
            found.update(f"{file}\0{status.st_size}\0{status.st_mtime_ns}\0".encode())
        return [{"images": len(self.files), "sha256": found.hexdigest()}]


def _describe(file: pathlib.Path) -> dict[str, object]:
    with file.open("rb") as opened:
        digest = hashlib.file_digest(opened, "sha256").hexdigest()
    return {"path": str(file), "bytes": file.stat().st_size, "sha256": digest}


def find_source(job: Job) -> Source:
    """The files that the job names, those of folders in the order of their names.

    Raises ConfigurationError for paths that hold nothing to read, tables and images together, and
    an output among the inputs.
    """
    files: list[pathlib.Path] = []
    for path in job.inputs:
        if path.is_dir():
            if job.output.resolve().is_relative_to(path.resolve()):
                raise ConfigurationError(f"--output: expected a folder outside {path}, got within")
            files += _files_in(path)
        elif not path.is_file():
            raise ConfigurationError(f"INPUT: no such file or folder: {path}")
        elif path.suffix.lower() in _KNOWN:
            files.append(path)
        else:
            raise ConfigurationError(f"INPUT: expected {_expected()}, got {path}")
    images = [file for file in files if file.suffix.lower() in pictures.SUFFIXES]
    if images and len(images) < len(files):
        table = next(file for file in files if file.suffix.lower() in TABLES)
        raise ConfigurationError(f"INPUT: expected all images or none, got {images[0]} and {table}")
    if images:
        pictures.need_pillow()
        if job.keep:
            raise ConfigurationError("--keep: images have no columns beside the image itself")
    return Source(tuple(files))


def _files_in(folder: pathlib.Path) -> list[pathlib.Path]:
    found = sorted(
        path
        for path in folder.rglob("*")
        if path.is_file()
        and path.suffix.lower() in _KNOWN
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    )
    if not found:
        raise ConfigurationError(f"INPUT: expected {_expected()} in {folder}, got none")
    return found


def _expected() -> str:
    return "a file in " + ", ".join(sorted(_KNOWN))


def read_part(part: Part, names: Sequence[str]) -> dict[str, Column]:
    """The columns of these names in a part of a table. Raises InvalidInput."""
    (file,) = part.files
    columns = open_table(pathlib.Path(file)).read(part.start, part.rows, part.offset, names)
    for column in columns:
        if len(column.values) != part.rows:
            raise InvalidInput(
                f"{file}: expected rows {part.start} to {part.start + part.rows - 1}, got "
                f"{len(column.values)} of them: it has changed"
            )
    return {column.name: column for column in columns}
