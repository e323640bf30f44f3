"""The soak test in its short form: every fault, and nobody is forgotten or told something wrong."""

from __future__ import annotations

import os
import pathlib
import re
import subprocess
import sys

PROGRAM = pathlib.Path(__file__).parents[2] / "benchmarks" / "soak.py"
FAULTS = {
    "saturation", "70% of saturation", "100% of saturation", "300% of saturation", "late answers",
    "callers vanish", "slow readers", "executor raises", "out of memory", "executors hang",
    "2 reloads", "3 reloads", "SIGTERM", "no room for logs", "clock jumps",
}  # fmt: skip
# On a machine that is busy enough, nobody is in time.
HURRIED = {"70% of saturation", "100% of saturation", "300% of saturation", "clock jumps"}


def test_nobody_is_lost_and_nobody_wrong() -> None:
    done = subprocess.run(
        [sys.executable, PROGRAM, "--short", "--markdown"],
        capture_output=True,
        text=True,
        timeout=110,  # it takes a tenth of that where nothing else runs
        check=False,
        env={**os.environ, "COLUMNS": "400"},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    rows = {
        cells[0]: [int(number) for number in cells[1:9]]
        for line in done.stdout.splitlines()
        if re.match(r"\| .* \| \d+ \|", line) and (cells := line.strip("| ").split(" | "))
    }
    assert FAULTS - {"clock jumps"} <= set(rows) <= FAULTS
    for name, (sent, right, _, _, failed, left, lost, wrong) in rows.items():
        assert right > 0 or name in HURRIED, (name, done.stdout)
        assert (lost, wrong) == (0, 0), done.stdout
        assert sent >= right + failed + left
    assert re.search(r"three times the saturation left \d+% of the goodput", done.stdout)
    assert re.search(
        r"\| [1-9]\d* answers after their deadlines, .* the server counted [1-9]", done.stdout
    )
    assert rows["executors hang"][4] >= 3
    assert rows["executor raises"][4] > 0
    assert rows["out of memory"][2] > 0
    assert rows["callers vanish"][5] > 0
