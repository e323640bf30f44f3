"""tritonclient, unchanged, against the real server: one test for each named case.

The cases run in subprocesses, one for each file of them, and report by name.
"""

from __future__ import annotations

import functools
import json
import pathlib
import subprocess
import sys
from collections.abc import Callable, Iterator

import pytest

from conformance import (
    cases_control,
    cases_errors,
    cases_health,
    cases_loading,
    cases_scheduling,
    cases_sequences,
    cases_streams,
    cases_tensors,
)
from conformance.cases import Cases
from support import models, server

GROUPS: dict[str, Cases] = {
    "cases_tensors": cases_tensors.case,
    "cases_errors": cases_errors.case,
    "cases_control": cases_control.case,
    "cases_health": cases_health.case,
    "cases_loading": cases_loading.case,
    "cases_scheduling": cases_scheduling.case,
    "cases_streams": cases_streams.case,
    "cases_sequences": cases_sequences.case,
}
NAMES = [(group, name) for group, cases in GROUPS.items() for name in cases.functions]

Report = Callable[[str], dict[str, str]]

# One executor, so that what runs and what waits is known.
SINGLE = "instance_group [{ count: 1 kind: KIND_CPU }]\n"


def write_repository(path: pathlib.Path) -> pathlib.Path:
    """A model for each trait. Cases that count have models that nobody else calls."""
    write = functools.partial(models.write, path)
    for datatype in models.ONNX_TYPES:
        write(f"identity_{datatype}", models.identity(datatype))
    write("scalar", models.identity("FP32", ()))
    write("no_batch_axis", models.identity("FP32", (3,)))
    write("fixed_batch", models.identity("FP32", (4, 2)))
    write("fixed_mixed", models.mixes_rows(3))
    write("arithmetic", models.arithmetic())
    write("optional", models.optional_input())
    write("shout", models.shout())
    classes = (
        'max_batch_size: 8\ninput [{ name: "x" data_type: TYPE_FP32 dims: [4] }]\n'
        'output [{ name: "y" data_type: TYPE_FP32 dims: [4] label_filename: "labels.txt" }]\n'
    )
    write(
        "classes",
        models.identity("FP32", ("batch", 4)),
        config=classes,
        files={"labels.txt": "cat\ndog\nbird\nfish\n"},
    )
    for name in ("lab", "lab_counted", "lab_unloaded", "lab_deadlines", "lab_neighbours"):
        write(name, models.lab(), config=SINGLE)
    # Each run costs the same whatever it carries, so what waits together runs together. Nobody
    # else calls this one: the server learns what a batch costs, and a slow one would put it off.
    write("lab_sharing", models.slowed(models.lab()), config=SINGLE)
    # So many that wait are one batch, whatever the machine makes of the costs.
    for name, size in (("lab_leaving", 2), ("lab_failing", 4)):
        together = SINGLE + f"dynamic_batching {{ preferred_batch_size: [ {size} ] }}\n"
        write(name, models.slowed(models.lab()), config=together)
    # Its check at load takes a second or two of matrix products.
    write("lab_slow_to_load", models.lab(steps_factor=3_000), config=SINGLE)
    bounded = SINGLE + "dynamic_batching { default_queue_policy { max_queue_size: 2 } }\n"
    write("lab_bounded", models.lab(), config=bounded)
    for name in ("loadable", "watched", "kserve"):
        write(name, models.scaled())
    for version in (1, 2, 3):
        write("versions", models.scaled(version), version=version, toml="versions = [1, 3]\n")
    state = 'state { input_name: "state" output_name: "next" data_type: TYPE_FP32 dims: [1] }'
    write("accumulate", models.accumulate(), config=f"sequence_batching {{ {state} }}\n")
    write("controlled", models.controlled(), config=models.CONTROLLED)
    write("broken", b"this is not a model")
    return path


@pytest.fixture(scope="session")
def reports(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Report]:
    """Runs each group of cases at its first use, all on one server."""
    folder = tmp_path_factory.mktemp("conformance")
    repository = write_repository(folder / "models")
    with server.serving(folder / "server.log", repository) as running:

        @functools.cache
        def report(group: str) -> dict[str, str]:
            return run_cases(group, running)

        yield report


def run_cases(group: str, running: server.RunningServer) -> dict[str, str]:
    """What went wrong, by case; empty for what went well."""
    script = pathlib.Path(__file__).with_name("run_cases.py")
    with subprocess.Popen(
        [sys.executable, script, group, running.grpc, running.http],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        # An exception here would be met again by every case of the group: it is reported instead.
        try:
            output, errors = process.communicate(timeout=100)
        except subprocess.TimeoutExpired:
            process.kill()
            output, errors = process.communicate()
    lines = [json.loads(line) for line in output.splitlines()]
    problems = {line["case"]: line["problem"] for line in lines}
    for name in GROUPS[group].functions:
        problems.setdefault(name, f"it was not run: exit {process.returncode}\n{errors[-4000:]}")
    return problems


@pytest.mark.parametrize(("group", "name"), NAMES, ids=[f"{g[6:]}-{n}" for g, n in NAMES])
def test_case(reports: Report, group: str, name: str) -> None:
    problem = reports(group)[name]
    assert not problem, problem
