"""What `headrace inspect` says of a repository."""

from __future__ import annotations

import pathlib

import pytest

from headrace.server.inspect import main
from support import models


def test_a_broken_model_says_nothing_of_the_others(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    models.write(tmp_path, "a_first", models.scaled())
    models.write(tmp_path, "broken", b"this is not a model")
    models.write(tmp_path, "last", models.scaled())
    assert main(tmp_path, "cpu") == 1
    said = capsys.readouterr()
    assert "a_first version 1" in said.out
    assert "last version 1" in said.out
    assert "headrace inspect: " in said.err
    assert "broken" in said.err


def test_what_is_not_there_is_named(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(tmp_path / "nothing", "cpu") == 1
    assert "nothing" in capsys.readouterr().err
