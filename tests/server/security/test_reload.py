"""Files read again: when they changed, not more often, and never for worse."""

from __future__ import annotations

import logging
import os
import pathlib

import pytest

from headrace.server.errors import ConfigurationError
from headrace.server.security.reload import FRESH_SECONDS, Reloaded


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class File:
    """Counts how often it is read; what begins with "bad" cannot be."""

    def __init__(self, path: pathlib.Path) -> None:
        self.path = path
        self.reads = 0
        self.clock = Clock()

    def read(self) -> str:
        self.reads += 1
        text = self.path.read_text() if self.path.exists() else "bad: gone"
        if text.startswith("bad"):
            raise ConfigurationError(text)
        return text


@pytest.fixture
def file(tmp_path: pathlib.Path) -> File:
    (tmp_path / "file").write_text("one")
    return File(tmp_path / "file")


def test_read_again_after_a_change_and_only_then(file: File) -> None:
    reloaded = Reloaded([file.path], file.read, file.clock)
    file.path.write_text("another")
    assert reloaded.current() == "one"  # it is fresh enough
    file.clock.now += FRESH_SECONDS
    assert reloaded.current() == "another"
    file.clock.now += FRESH_SECONDS
    assert reloaded.current() == "another"
    assert file.reads == 2


def test_a_moved_link_is_a_change(file: File, tmp_path: pathlib.Path) -> None:
    link, other = tmp_path / "link", tmp_path / "other"
    link.symlink_to(file.path)
    other.write_text("two")
    os.utime(other, ns=(0, file.path.stat().st_mtime_ns))
    linked = File(link)
    reloaded = Reloaded([link], linked.read, linked.clock)
    link.unlink()
    link.symlink_to(other)
    linked.clock.now += FRESH_SECONDS
    assert reloaded.current() == "two"


def test_what_cannot_be_read_changes_nothing_and_is_told_once(
    file: File, caplog: pytest.LogCaptureFixture
) -> None:
    reloaded = Reloaded([file.path], file.read, file.clock)
    file.path.write_text("bad: no good")
    with caplog.at_level(logging.ERROR):
        for _ in range(3):
            file.clock.now += FRESH_SECONDS
            assert reloaded.current() == "one"
    assert [record.getMessage().endswith("bad: no good") for record in caplog.records] == [True]
    file.path.unlink()
    file.clock.now += FRESH_SECONDS
    assert reloaded.current() == "one"
    file.path.write_text("three")
    file.clock.now += FRESH_SECONDS
    assert reloaded.current() == "three"


def test_what_cannot_be_read_at_first_is_the_callers_error(file: File) -> None:
    file.path.write_text("bad")
    with pytest.raises(ConfigurationError):
        Reloaded([file.path], file.read, file.clock)
