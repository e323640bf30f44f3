"""The output folder: complete or absent, agreed upon, and nobody else's."""

from __future__ import annotations

import json
import pathlib
from typing import IO, Any

import pytest

from headrace.server.batch.folder import MANIFEST, SKIPPED, SUMMARY, OutputFolder
from headrace.server.batch.job import Part, Skipped
from headrace.server.errors import ConfigurationError, ServerError

ASKED: dict[str, Any] = {
    "model": {"name": "m", "sha256": "1"},
    "inputs": [{"path": "a", "bytes": 1}, {"path": "b", "bytes": 2}],
    "rows_per_part": 10,
    "on_error": "fail",
}
PARTS = [Part(0, ("a",), 0, 10), Part(1, ("a",), 10, 3)]
BAD = Skipped("a", 11, "c", "expected FP32, got null")


def text(content: str) -> Any:
    return lambda out: out.write(content.encode())


@pytest.fixture
def folder(tmp_path: pathlib.Path) -> OutputFolder:
    return OutputFolder(tmp_path / "deep" / "out", "npz")


def names(folder: OutputFolder) -> set[str]:
    return {path.name for path in folder.path.iterdir()}


def rows_by_content(path: pathlib.Path) -> int:
    return int(path.read_text())


def test_a_part_is_there_once_it_is_committed(folder: OutputFolder) -> None:
    with folder.locked():
        folder.agree(ASKED)
        assert not folder.has(PARTS[0])
        folder.commit(PARTS[0], [], text("10"))
        assert folder.has(PARTS[0])
        assert folder.commit(PARTS[1], [BAD], text("2")).skipped == 1
        assert folder.done(PARTS[1]).skipped == 1
        assert folder.finish(PARTS, rows_by_content) == 1
    found = json.loads((folder.path / SUMMARY).read_text())
    assert found == {"rows": 13, "written": 12, "skipped": 1, "parts": 2}
    (line,) = (folder.path / SKIPPED).read_text().splitlines()
    assert json.loads(line) == {
        "file": "a",
        "row": 11,
        "column": "c",
        "message": "expected FP32, got null",
    }


def test_what_cannot_be_written_leaves_nothing(folder: OutputFolder) -> None:
    def fail(out: IO[bytes]) -> None:
        out.write(b"half of it")
        raise OSError("the disk is full")

    with folder.locked():
        before = names(folder)
        with pytest.raises(OSError, match="full"):
            folder.commit(PARTS[0], [], fail)
        assert names(folder) == before


def test_what_a_killed_run_left_is_cleared(folder: OutputFolder) -> None:
    """An unfinished file, and the report of a part that was never put there."""
    with folder.locked():
        folder.agree(ASKED)
        folder.commit(PARTS[1], [BAD], text("2"))
        (folder.path / folder.name_of(1)).unlink()
    (folder.path / ".unfinished-0").write_text("half of it")
    with folder.locked():
        assert ".unfinished-0" not in names(folder)
        folder.commit(PARTS[0], [], text("10"))
        assert folder.commit(PARTS[1], [], text("3")).skipped == 0
        assert folder.finish(PARTS, rows_by_content) == 0


@pytest.mark.parametrize("found", ["9", "11"])
def test_a_row_that_is_lost_or_there_twice_is_found(folder: OutputFolder, found: str) -> None:
    with folder.locked():
        folder.commit(PARTS[0], [], text(found))
        with pytest.raises(ServerError, match=f"expected 10 rows, got {found}"):
            folder.finish(PARTS[:1], rows_by_content)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"rows_per_part": 5}, "rows_per_part: was 10, is 5"),
        ({"model": {"name": "m", "sha256": "2"}}, 'model.sha256: was "1", is "2"'),
        ({"inputs": [ASKED["inputs"][0], {"path": "b", "bytes": 3}]}, "inputs[1]: was "),
        ({"inputs": []}, "inputs: was "),
    ],
)
def test_another_job_is_refused(folder: OutputFolder, change: dict[str, Any], said: str) -> None:
    with folder.locked():
        folder.agree(ASKED)
        folder.agree(ASKED)
        with pytest.raises(ConfigurationError) as caught:
            folder.agree({**ASKED, **change})
        assert said in str(caught.value)
        folder.agree(ASKED)


def test_bad_rows_may_be_skipped_later_but_not_failed_later(folder: OutputFolder) -> None:
    """No part that is there has one; after skipping, some may."""
    with folder.locked():
        folder.agree(ASKED)
        folder.agree({**ASKED, "on_error": "skip"})
        with pytest.raises(ConfigurationError, match=r'on_error: was "skip", is "fail"'):
            folder.agree(ASKED)


def test_one_run_at_a_time(folder: OutputFolder) -> None:
    other = OutputFolder(folder.path, "parquet")
    refused = pytest.raises(ConfigurationError, match="another headrace batch")
    with folder.locked(), refused, other.locked():
        pass
    with folder.locked():
        pass


def test_a_folder_of_somebody_elses_is_left_alone(folder: OutputFolder) -> None:
    folder.path.mkdir(parents=True)
    (folder.path / "thesis.tex").write_text("")
    with pytest.raises(ConfigurationError, match=r"got .* with thesis\.tex"), folder.locked():
        pass
    assert names(folder) == {"thesis.tex"}
    assert MANIFEST not in names(folder)
