"""A fixed number of runs of the coverage-guided fuzzer, from good requests on."""

from __future__ import annotations

import importlib.util
import pathlib
import re
import subprocess
import sys

import pytest

from headrace.inference.v2 import grpc_service_pb2 as pb

PROGRAM = pathlib.Path(__file__).with_name("fuzz_codec.py")
RUNS = 20_000


def corpus(folder: pathlib.Path) -> pathlib.Path:
    """A good request of each way to carry a tensor: mutations of these go deepest."""
    raw = pb.ModelInferRequest(model_name="m", id="1", raw_input_contents=[bytes(4)])
    raw.inputs.add(name="x", datatype="FP32", shape=[1, 1])
    typed = pb.ModelInferRequest(model_name="m")
    typed.inputs.add(name="x", datatype="INT32", shape=[2]).contents.int_contents.extend([1, 2])
    typed.parameters["priority"].int64_param = 1
    text = pb.ModelInferRequest(model_name="m", raw_input_contents=[b"\2\0\0\0ab"])
    text.inputs.add(name="x", datatype="BYTES", shape=[1])
    text.outputs.add(name="y").parameters["classification"].int64_param = 2
    for number, message in enumerate((raw, typed, text)):
        (folder / str(number)).write_bytes(message.SerializeToString())
    return folder


@pytest.mark.skipif(
    importlib.util.find_spec("atheris") is None, reason="atheris is not installed: Linux alone"
)
def test_no_bytes_surprise_the_codec(tmp_path: pathlib.Path) -> None:
    (tmp_path / "corpus").mkdir()
    arguments = [f"-runs={RUNS}", "-seed=1", "-max_len=512", f"-artifact_prefix={tmp_path}/"]
    done = subprocess.run(
        [sys.executable, PROGRAM, *arguments, corpus(tmp_path / "corpus")],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert re.search(rf"Done {RUNS} runs", done.stderr)
