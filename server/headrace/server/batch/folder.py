"""The output folder: what is in it is complete, whenever the process that writes it dies.

A part's file is written under another name, flushed to the disk, and then renamed: it is there
whole or not at all, and its presence says that the part is done. The rows that a part has skipped
are written before it, so a part that is there has its report. `manifest.json` says what was asked
for and of what; a run that asks for something else is refused.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import pathlib
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import IO, Any

from headrace.server.batch.job import OutputFormat, Part, PartDone, Skipped
from headrace.server.errors import ConfigurationError, ServerError

MANIFEST, SUMMARY, SKIPPED, LOCK = "manifest.json", "summary.json", "skipped.jsonl", ".lock"
_FORMAT = 1
_UNFINISHED = ".unfinished-"
# What may change from one run to the next: parts without bad rows are the same under both.
_LENIENT = {"on_error": ("fail", "skip")}

Manifest = dict[str, Any]


class OutputFolder:
    """Holds the parts of one job."""

    def __init__(self, path: pathlib.Path, form: OutputFormat) -> None:
        self.path = path
        self._suffix = f".{form}"

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Made if it is not there, and nobody else's inside the block; a killed process lets go.

        Raises ConfigurationError where another run has it, or it holds something else.
        """
        self._create()
        with (self.path / LOCK).open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise ConfigurationError(
                    f"--output: another headrace batch is writing to {self.path}"
                ) from None
            for left in self.path.glob(f"{_UNFINISHED}*"):
                left.unlink(missing_ok=True)
            yield

    def _create(self) -> None:
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigurationError(
                f"--output: cannot make the folder {self.path}: {error.strerror}"
            ) from None
        names = {entry.name for entry in self.path.iterdir()}
        ours = {name for name in names if name == LOCK or name.startswith(_UNFINISHED)}
        if MANIFEST not in names and names - ours:
            raise ConfigurationError(
                f"--output: expected a new or empty folder, or one that an earlier run has left, "
                f"got {self.path} with {min(names - ours)}"
            )

    def agree(self, asked: Manifest) -> None:
        """Notes what is asked for, or makes sure that it is what was asked for before.

        Raises ConfigurationError naming what differs.
        """
        asked = json.loads(json.dumps({"format": _FORMAT, **asked}))
        file = self.path / MANIFEST
        if file.exists():
            kept = json.loads(file.read_text())
            lines = list(_differences(kept, asked))
            if lines:
                raise ConfigurationError(
                    f"{self.path} holds another run's output; choose another --output, or give "
                    "what that run was given:\n" + "\n".join(lines)
                )
            if kept == asked:
                return
        self._write(MANIFEST, lambda out: out.write(json.dumps(asked, indent=1).encode()))

    def name_of(self, number: int) -> str:
        return f"part-{number:06}{self._suffix}"

    def has(self, part: Part) -> bool:
        return (self.path / self.name_of(part.number)).exists()

    def commit(
        self, part: Part, skipped: Iterable[Skipped], write: Callable[[IO[bytes]], object]
    ) -> PartDone:
        """Puts a part into its place: after this it is done, before it is not begun."""
        lines = [json.dumps(asdict(row)) + "\n" for row in skipped]
        report = self._report_of(part.number)
        if lines:
            self._write(report.name, lambda out: out.write("".join(lines).encode()))
        else:
            report.unlink(missing_ok=True)  # of a run that died before it put the part here
        self._write(self.name_of(part.number), write)
        return PartDone(part.number, part.rows, len(lines))

    def _report_of(self, number: int) -> pathlib.Path:
        return self.path / f"part-{number:06}.skipped.jsonl"

    def done(self, part: Part) -> PartDone:
        """What `commit` gave for a part that is there."""
        return PartDone(part.number, part.rows, len(self._skipped_in(part)))

    def _skipped_in(self, part: Part) -> list[str]:
        report = self._report_of(part.number)
        return report.read_text().splitlines(keepends=True) if report.exists() else []

    def finish(self, parts: Sequence[Part], rows_in: Callable[[pathlib.Path], int]) -> int:
        """Once all parts are there: counts their rows, gathers what was skipped, writes the
        summary. Returns how many rows were skipped.

        Raises ServerError where the rows are not those of the input: nothing may be lost or be
        there twice.
        """
        lines: list[str] = []
        rows = written = 0
        for part in parts:
            skipped = self._skipped_in(part)
            file = self.path / self.name_of(part.number)
            found = rows_in(file)
            if found != part.rows - len(skipped):
                raise ServerError(f"{file}: expected {part.rows - len(skipped)} rows, got {found}")
            rows, written = rows + part.rows, written + found
            lines += skipped
        if lines:
            self._write(SKIPPED, lambda out: out.write("".join(lines).encode()))
        summary = {"rows": rows, "written": written, "skipped": len(lines), "parts": len(parts)}
        self._write(SUMMARY, lambda out: out.write(json.dumps(summary, indent=1).encode()))
        return len(lines)

    def _write(self, name: str, write: Callable[[IO[bytes]], object]) -> None:
        """The file is there whole, on the disk, under its name; or not at all."""
        unfinished = self.path / f"{_UNFINISHED}{uuid.uuid4().hex}"
        try:
            with unfinished.open("xb") as file:
                write(file)
                file.flush()
                os.fsync(file.fileno())
            unfinished.replace(self.path / name)
        except BaseException:
            unfinished.unlink(missing_ok=True)
            raise
        folder = os.open(self.path, os.O_RDONLY)
        try:
            os.fsync(folder)  # the name, too, is on the disk
        finally:
            os.close(folder)


def _differences(kept: Manifest, asked: Manifest) -> Iterator[str]:
    """A line for each key that is another than before."""
    for key in sorted({*kept, *asked}):
        before, now = kept.get(key), asked.get(key)
        if before == now or _LENIENT.get(key) == (before, now):
            continue
        if isinstance(before, Mapping) and isinstance(now, Mapping):
            yield from (f"{key}.{line}" for line in _differences(dict(before), dict(now)))
        elif isinstance(before, list) and isinstance(now, list) and len(before) == len(now):
            place = next(i for i, (a, b) in enumerate(zip(before, now, strict=True)) if a != b)
            yield f"{key}[{place}]: was {json.dumps(before[place])}, is {json.dumps(now[place])}"
        else:
            yield f"{key}: was {json.dumps(before)}, is {json.dumps(now)}"
