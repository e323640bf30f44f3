"""The unit: what systemd itself says of it, with a program in the place of the one installed."""

from __future__ import annotations

import pathlib
import shlex
import shutil
import subprocess
import sys

import pytest

from support.server import PATIENCE

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


def waits(health: pathlib.Path, main: str) -> list[str]:
    """The command of ExecStartPost, as systemd would make it, with `health` for `headrace`."""
    (line,) = (line for line in UNIT.read_text().splitlines() if line.startswith("ExecStartPost="))
    words = shlex.split(line.partition("=")[2].replace("/opt/headrace/bin/headrace", str(health)))
    return [word.replace("${MAINPID}", main).replace("$$", "$") for word in words]


def test_it_is_started_once_it_answers(tmp_path: pathlib.Path) -> None:
    """The second time that it is asked, here; and only while its process lives."""
    health = tmp_path / "health"
    health.write_text(f"#!/bin/sh\nmkdir {tmp_path}/asked && exit 1\nexit 0\n")
    health.chmod(0o755)
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as main:
        done = subprocess.run(waits(health, str(main.pid)), timeout=PATIENCE, check=False)
        main.kill()
    assert done.returncode == 0
    assert (tmp_path / "asked").is_dir()


def test_a_server_that_has_exited_is_not_waited_for() -> None:
    """Else RestartPreventExitStatus= would be read after TimeoutStartSec= alone."""
    main = subprocess.Popen([sys.executable, "-c", ""])
    main.wait(PATIENCE)
    for pid in (str(main.pid), ""):  # none, where systemd has seen it go before
        command = waits(pathlib.Path("/bin/false"), pid)
        done = subprocess.run(command, timeout=PATIENCE, capture_output=True, check=False)
        assert done.returncode == 1
