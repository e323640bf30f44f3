"""Breaks the scheduler on purpose, one rule at a time, and tells whether its tests notice.

    .venv/bin/python tests/batcher/mutations.py

Each run takes the room's tests with a copy of its sources, of which one line was changed. In the
first none was, and it must pass. Exits with 1 where a mutation survives, or no longer
fits the sources. Takes up to a minute for each, so it is no part of `make test`.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Final, NamedTuple

_ROOT: Final = Path(__file__).parents[2]
_SOURCES: Final = _ROOT / "batcher" / "headrace"


class Mutation(NamedTuple):
    breaks: str
    file: str
    line: str
    by: str


_MUTATIONS: Final = (
    Mutation(
        "what has expired is not dropped",
        "learned.py",
        "        if doomed and not request.trial:",
        "        if doomed and request.trial:",
    ),
    Mutation(
        "a batch takes one row more than it may",
        "policy.py",
        "        if requests and (taken > rows or request.solo or request.group is not group):",
        "        if requests and (taken > rows + 1 or request.solo or request.group is not group):",
    ),
    Mutation(
        "who asked to run alone has company",
        "policy.py",
        "        if requests and (taken > rows or request.solo or request.group is not group):",
        "        if requests and (taken > rows or request.group is not group):",
    ),
    Mutation(
        "the halves of a failed batch run together again",
        "scheduler.py",
        "        group = object()",
        "        group = None",
    ),
    Mutation(
        "the second half of a failed batch is lost",
        "scheduler.py",
        "        self._retry(members[middle:])",
        "        self._retry(members[middle + 1 :])",
    ),
    Mutation(
        "an executor idles while work waits",
        "placement.py",
        "        if executor not in state.helpers:",
        "        if executor not in state.helpers and queue.rows > 1:",
    ),
    Mutation(
        "the least urgent goes first",
        "policy.py",
        "    return item[1].head.rank",
        "    return tuple(-part for part in item[1].head.rank)",
    ),
    Mutation(
        "who cannot be in time is let in",
        "admission.py",
        "    if overdue <= 0:",
        "    if overdue <= 1e9:",
    ),
    Mutation(
        "one caller's flood keeps its turn",
        "fairness.py",
        "    if before is not None:",
        "    if before is None:",
    ),
    Mutation(
        "deadlines do not make batches smaller",
        "learned.py",
        "        skip, rows = _in_time(state, seen, wanted, now)",
        "        skip, rows = [], wanted",
    ),
    Mutation(
        "who left still holds a place in the queue",
        "state.py",
        "        self.queued_requests -= len(requests)",
        "        self.queued_requests -= len(requests) - 1",
    ),
    Mutation(
        "an executor that was given up is given work",
        "state.py",
        "            if batch is None and self.teams[name] == team and name not in self.absent",
        "            if batch is None and self.teams[name] == team",
    ),
)


def _run(sources: Path) -> tuple[bool, str]:
    """Whether the tests pass with `sources` in the place of the room's, and their last line."""
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "-n", "0"]
    done = subprocess.run(
        [*command, "tests/batcher"],
        cwd=_ROOT,
        env=os.environ
        | {
            "PYTHONPATH": str(sources),
            "PYTHONDONTWRITEBYTECODE": "1",
            # What hypothesis found is of that mutation, and no example of the sources'.
            "HYPOTHESIS_STORAGE_DIRECTORY": str(sources / "hypothesis"),
        },
        capture_output=True,
        text=True,
        check=False,
    )
    lines = done.stdout.strip().splitlines() or [done.stderr.strip()]
    failed = [line for line in lines if line.startswith("FAILED")]
    return done.returncode == 0, (failed or lines)[-1].split(" - ")[0]


def _mutated(mutation: Mutation | None) -> tuple[bool, str]:
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder)
        shutil.copytree(_SOURCES, copy / "headrace", ignore=shutil.ignore_patterns("__pycache__"))
        if mutation is not None:
            file = copy / "headrace" / "batcher" / mutation.file
            text = file.read_text()
            if text.count(mutation.line) != 1:
                return True, f"{mutation.file} has not this line once: {mutation.line.strip()}"
            file.write_text(text.replace(mutation.line, mutation.by))
        return _run(copy)


def main() -> int:
    passed, last = _mutated(None)
    print(f"unchanged: {last}", flush=True)
    survivors = 0
    for mutation in _MUTATIONS:
        survived, last = _mutated(mutation)
        survivors += survived
        print(f"{'SURVIVED' if survived else 'caught'}: {mutation.breaks} ({last})", flush=True)
    print(f"{len(_MUTATIONS) - survivors} of {len(_MUTATIONS)} caught")
    return int(survivors > 0 or not passed)


if __name__ == "__main__":
    sys.exit(main())
