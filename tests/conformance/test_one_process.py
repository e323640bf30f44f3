"""tritonclient and headrace.client in one program, whichever is imported first."""

from __future__ import annotations

import pathlib
import subprocess
import sys

import pytest

from support import models, server

IMPORTS = ("import tritonclient.grpc as triton", "from headrace.client import Client")
CALLS = """
import sys
import numpy as np
x = np.array([[1, 2]], np.float32)
tensor = triton.InferInput("x", [1, 2], "FP32")
tensor.set_data_from_numpy(x)
with triton.InferenceServerClient(sys.argv[1]) as theirs, Client(sys.argv[1]) as ours:
    for _ in range(2):
        assert (theirs.infer("double", [tensor]).as_numpy("y") == 2 * x).all()
        assert (ours.infer("double", {"x": x})["y"] == 2 * x).all()
print("both were answered")
"""


@pytest.mark.parametrize("imports", [IMPORTS, IMPORTS[::-1]], ids=["theirs first", "ours first"])
def test_both_clients_in_one_process(tmp_path: pathlib.Path, imports: tuple[str, str]) -> None:
    models.write(tmp_path / "models", "double", models.scaled(2))
    with server.serving(tmp_path / "log", tmp_path / "models") as running:
        done = subprocess.run(
            [sys.executable, "-c", "\n".join(imports) + CALLS, running.grpc],
            capture_output=True,
            text=True,
            timeout=server.PATIENCE,
            check=False,
        )
    assert done.stdout == "both were answered\n", done.stderr
