"""Computes parts: rows in, answers out, put into their place. Every engine has some of these."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field

from headrace.inference.tensors import Array
from headrace.server.batch import pictures
from headrace.server.batch.answers import (
    Answers,
    layout_of,
    presentable,
    write_npz,
    write_parquet,
)
from headrace.server.batch.engine import Engine
from headrace.server.batch.folder import OutputFolder
from headrace.server.batch.job import Job, Part, PartDone, Skipped
from headrace.server.batch.mapping import map_columns
from headrace.server.batch.sources import Contents, read_part
from headrace.server.batch.values import Column, Fitted, Unfit, fit
from headrace.server.errors import InvalidInput

# Rows that are tensors at the same time: of images, decoding all of a part would take gigabytes.
_SLICE = 256


class BadRow(InvalidInput):
    """A row that cannot be computed, where that ends the run."""


@dataclass(slots=True)
class _Tally:
    """What has become of a part's rows so far, by their index in the part."""

    computed: list[tuple[int, Sequence[Array]]] = field(default_factory=list)
    skipped: dict[int, Skipped] = field(default_factory=dict)


class Worker:
    """A model, and what it is asked. `run` may be called for several parts at once."""

    def __init__(self, job: Job, engine: Engine, contents: Contents) -> None:
        """Raises ConfigurationError, InvalidInput where the input cannot be the model's."""
        self._job = job
        self._engine = engine
        self._images = contents.images
        self._wanted = map_columns(engine.inputs, engine.batched, job.columns, contents.columns)
        if self._images:
            for wanted in self._wanted:
                pictures.check_wanted(wanted, job.images)
        self._layout = layout_of(engine.outputs, engine.batched, contents.kept)
        self._folder = OutputFolder(job.output, job.form)
        names = [name for wanted in self._wanted for name in wanted.columns]
        self._names = list(dict.fromkeys((*names, *job.keep)))

    async def run(self, part: Part) -> PartDone:
        """Computes a part and puts it into its place.

        Raises BadRow where a row cannot be computed and that is to end the run; InvalidInput where
        a whole column cannot.
        """
        columns = {} if self._images else await asyncio.to_thread(read_part, part, self._names)
        tally = _Tally()
        for start in range(0, part.rows, _SLICE):
            end = min(start + _SLICE, part.rows)
            tensors = await asyncio.to_thread(self._tensors, part, columns, start, end)
            await self._compute(part, start, tensors, tally)
        return await asyncio.to_thread(self._commit, part, columns, tally)

    def _tensors(
        self, part: Part, columns: dict[str, Column], start: int, end: int
    ) -> list[Fitted]:
        """For each input its tensor in each of these rows."""
        if self._images:
            files = part.files[start:end]
            return [pictures.fit_images(files, w, self._job.images) for w in self._wanted]
        found = []
        for wanted in self._wanted:
            given = [columns[name].part(start, end) for name in wanted.columns]
            try:
                found.append(fit(given, wanted))
            except InvalidInput as error:
                raise InvalidInput(f"{part.files[0]}: {error}") from None
        return found

    async def _compute(
        self, part: Part, start: int, tensors: Sequence[Fitted], tally: _Tally
    ) -> None:
        """Has the rows computed whose first is `start`, and tells `tally`."""
        places, rows = [], []
        for index, row in enumerate(zip(*tensors, strict=True), start):
            unfit = next((value for value in row if isinstance(value, Unfit)), None)
            if unfit is not None:
                self._skip(part, index, unfit.column, unfit.message, tally)
            else:
                places.append(index)
                rows.append([value for value in row if not isinstance(value, Unfit)])
        for index, outcome in zip(places, await self._engine.answer(rows), strict=True):
            if isinstance(outcome, Exception):
                self._skip(part, index, "", str(outcome), tally)
            else:
                tally.computed.append((index, outcome))

    def _skip(self, part: Part, index: int, column: str, message: str, tally: _Tally) -> None:
        bad = Skipped(*part.place(index), column, message)
        if self._job.on_error == "fail":
            raise BadRow(str(bad))
        tally.skipped[index] = bad

    def _commit(self, part: Part, columns: dict[str, Column], tally: _Tally) -> PartDone:
        found = self._answers(part, columns, tally.computed)
        write = write_parquet if self._job.form == "parquet" else write_npz
        skipped = [tally.skipped[index] for index in sorted(tally.skipped)]
        return self._folder.commit(part, skipped, lambda out: write(found, self._layout, out))

    def _answers(
        self,
        part: Part,
        columns: dict[str, Column],
        computed: Sequence[tuple[int, Sequence[Array]]],
    ) -> Answers:
        indices = [index for index, _ in computed]
        places = [part.place(index) for index in indices]
        outputs = [
            [presentable(row[number], spec.datatype) for _, row in computed]
            for number, spec in enumerate(self._engine.outputs)
        ]
        return Answers(
            [file for file, _ in places],
            [row for _, row in places],
            [columns[name].at(indices) for name in self._job.keep],
            outputs,
        )
