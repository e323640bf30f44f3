"""The unit: what systemd itself says of it, with a program in the place of the one installed."""

from __future__ import annotations

import pathlib
import shutil
import subprocess

import pytest

UNIT = pathlib.Path(__file__).parents[2] / "deploy" / "systemd" / "headrace.service"


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not installed")
def test_systemd_knows_every_word(tmp_path: pathlib.Path) -> None:
    copy = tmp_path / UNIT.name

    def verify(text: str) -> str:
        copy.write_text(text.replace("/opt/headrace/bin/headrace", "/bin/sh"))
        command = ["systemd-analyze", "verify", "--man=no", str(copy)]
        done = subprocess.run(command, capture_output=True, text=True)
        return "\n".join(line for line in done.stderr.splitlines() if UNIT.name in line)

    text = UNIT.read_text()
    assert verify(text) == ""
    assert "MemoryMx" in verify(text.replace("MemoryMax", "MemoryMx"))
