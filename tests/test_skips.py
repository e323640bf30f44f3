"""A skip is a failure where SKIP_NOTHING says that nothing is missing, as CI does."""

from __future__ import annotations

import os
import pathlib
import subprocess
import sys

import pytest

HERE = pathlib.Path(__file__).parent
ONE = """
import pytest

@pytest.mark.skipif(True, reason="no such program")
def test_marked(): ...

def test_said_inside():
    pytest.skip("no such package")

@pytest.mark.gpu
@pytest.mark.skipif(True, reason="no device")
def test_device(): ...

@pytest.mark.xfail
def test_expected():
    assert False
"""
WHOLE = 'import pytest\n\npytest.importorskip("there_is_none", reason="no such library")\n'


def outcome(folder: pathlib.Path, text: str, **more: str) -> str:
    (folder / "test_given.py").write_text(text)
    (folder / "pytest.ini").write_text("[pytest]\nmarkers = gpu\nasyncio_mode = auto\n")
    kept = {name: value for name, value in os.environ.items() if name != "SKIP_NOTHING"}
    command = [sys.executable, "-m", "pytest", "-p", "conftest", "-p", "no:cacheprovider", "-rA"]
    done = subprocess.run(
        command,
        cwd=folder,
        env=kept | {"PYTHONPATH": str(HERE)} | more,
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stdout


@pytest.mark.parametrize("variable", [{}, {"SKIP_NOTHING": "0"}], ids=["unset", "0"])
def test_a_person_may_lack_what_is_missing(
    tmp_path: pathlib.Path, variable: dict[str, str]
) -> None:
    assert "3 skipped, 1 xfailed" in outcome(tmp_path, ONE, **variable)
    assert "1 skipped" in outcome(tmp_path, WHOLE, **variable)


def test_ci_may_lack_a_device_alone(tmp_path: pathlib.Path) -> None:
    found = outcome(tmp_path, ONE, SKIP_NOTHING="1")
    assert "1 failed, 1 skipped, 1 xfailed, 1 error" in found
    for reason in ("no such program", "no such package", "tests/tools.sh"):
        assert reason in found
    found = outcome(tmp_path, WHOLE, SKIP_NOTHING="1")
    assert "1 error" in found
    assert "no such library" in found
