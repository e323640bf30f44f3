"""`headrace batch`: offline prediction over files, which a kill at any moment does not harm."""

from __future__ import annotations

import argparse
import pathlib
import sys
from collections.abc import Callable, Sequence

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from headrace.server.batch import arrow
from headrace.server.batch.answers import rows_in
from headrace.server.batch.engine import find_model, model_digest
from headrace.server.batch.folder import SKIPPED, Manifest, OutputFolder
from headrace.server.batch.job import ImageOptions, Job, Part, PartDone
from headrace.server.batch.local import run_local
from headrace.server.batch.sources import Contents, Source, find_source
from headrace.server.errors import ConfigurationError, ServerError

EXIT_FAILURE, EXIT_USAGE, EXIT_INTERRUPTED = 1, 2, 130


def main(namespace: argparse.Namespace) -> int:
    """Computes what is not there yet. Returns 0 once all of it is; 2 for bad usage, 1 for a
    failure, 130 when interrupted: what is done then stays, and the same command goes on."""
    try:
        job = _job(namespace)
        return _run(job, namespace)
    except ConfigurationError as error:
        print(f"headrace batch: {error}", file=sys.stderr)
        return EXIT_USAGE
    except ServerError as error:
        print(f"headrace batch: {error}", file=sys.stderr)
        return EXIT_FAILURE
    except KeyboardInterrupt:
        print("headrace batch: interrupted; the same command goes on from here", file=sys.stderr)
        return EXIT_INTERRUPTED


def _run(job: Job, namespace: argparse.Namespace) -> int:
    source = find_source(job)
    find_model(job)
    if job.form == "parquet":  # after what the command names, which no package would mend
        arrow.need_arrow()
    folder = OutputFolder(job.output, job.form)
    with folder.locked():
        contents = source.contents(job)
        parts = list(source.parts(job.rows_per_part))
        folder.agree(_manifest(job, source, len(parts)))
        pending = [part for part in parts if not folder.has(part)]
        done = [folder.done(part) for part in parts if folder.has(part)]
        if pending:
            with _Bar(sum(part.rows for part in parts), done) as bar:
                _engine(namespace)(job, contents, pending, bar.tell)
        skipped = folder.finish(parts, rows_in)
    rows = sum(part.rows for part in parts)
    print(
        f"{rows - skipped} of {rows} rows are in {len(parts)} parts in {job.output}"
        + (f"; {skipped} were skipped: {job.output / SKIPPED}" if skipped else "")
    )
    return 0


Run = Callable[[Job, Contents, Sequence[Part], Callable[[PartDone], None]], None]


def _engine(namespace: argparse.Namespace) -> Run:
    if namespace.engine == "local":
        return run_local
    from headrace.server.batch.ray_data import Cluster  # an extra

    return Cluster(namespace.ray_address, namespace.ray_workers, namespace.ray_cpus).run


def _manifest(job: Job, source: Source, parts: int) -> Manifest:
    """Everything that the output depends on."""
    _, model = find_model(job)
    return {
        "model": {"name": model.name, "sha256": model_digest(model)},
        "inputs": source.describe(),
        "parts": parts,
        "columns": {name: list(columns) for name, columns in job.columns.items()},
        "outputs": list(job.outputs),
        "keep": list(job.keep),
        "format": job.form,
        "rows_per_part": job.rows_per_part,
        "on_error": job.on_error,
        "image_mean": list(job.images.mean),
        "image_std": list(job.images.std),
    }


def _job(namespace: argparse.Namespace) -> Job:
    """Raises ConfigurationError."""
    model: pathlib.Path = namespace.model
    return Job(
        model=model.absolute(),
        inputs=tuple(path.absolute() for path in namespace.inputs),
        output=namespace.output.absolute(),
        name=namespace.model_name,
        columns=_columns(namespace.columns),
        outputs=_names(namespace.outputs),
        keep=_names(namespace.keep),
        form=namespace.format,
        rows_per_part=namespace.rows_per_part,
        on_error=namespace.on_error,
        provider=namespace.provider,
        cache_dir=namespace.cache_dir,
        operator_libraries=tuple(path.absolute() for path in namespace.operator_libraries),
        images=ImageOptions(namespace.image_mean, namespace.image_std),
    )


def _columns(texts: Sequence[str]) -> dict[str, tuple[str, ...]]:
    found: dict[str, tuple[str, ...]] = {}
    for text in texts:
        name, _, columns = text.partition("=")
        if not name or not _names([columns]):
            raise ConfigurationError(f"--input: expected NAME=COLUMN[,COLUMN...], got {text}")
        if name in found:
            raise ConfigurationError(f"--input: '{name}' is given more than once")
        found[name] = _names([columns])
    return found


def _names(texts: Sequence[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(name for text in texts for name in text.split(",") if name))


class _Bar:
    """How far it is, on standard error where that is a terminal."""

    def __init__(self, rows: int, done: Sequence[PartDone]) -> None:
        console = Console(stderr=True)
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
        self._progress = Progress(
            *columns, TimeRemainingColumn(), console=console, disable=not console.is_terminal
        )
        self._skipped = sum(each.skipped for each in done)
        before = sum(each.rows for each in done)
        self._task = self._progress.add_task(self._words(), total=rows, completed=before)

    def __enter__(self) -> _Bar:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def tell(self, part: PartDone) -> None:
        self._skipped += part.skipped
        self._progress.update(self._task, advance=part.rows, description=self._words())

    def _words(self) -> str:
        return f"rows ({self._skipped} skipped)" if self._skipped else "rows"
