"""A fixed number of runs of the coverage-guided fuzzer, from good requests on."""

from __future__ import annotations

import pathlib

from headrace.inference.v2 import grpc_service_pb2 as pb
from support.fuzzing import fuzz, needs_atheris

PROGRAM = pathlib.Path(__file__).with_name("fuzz_codec.py")


def corpus() -> dict[str, bytes]:
    """A good request of each way to carry a tensor: mutations of these go deepest."""
    raw = pb.ModelInferRequest(model_name="m", id="1", raw_input_contents=[bytes(4)])
    raw.inputs.add(name="x", datatype="FP32", shape=[1, 1])
    typed = pb.ModelInferRequest(model_name="m")
    typed.inputs.add(name="x", datatype="INT32", shape=[2]).contents.int_contents.extend([1, 2])
    typed.parameters["priority"].int64_param = 1
    text = pb.ModelInferRequest(model_name="m", raw_input_contents=[b"\2\0\0\0ab"])
    text.inputs.add(name="x", datatype="BYTES", shape=[1])
    text.outputs.add(name="y").parameters["classification"].int64_param = 2
    return {
        str(number): message.SerializeToString()
        for number, message in enumerate((raw, typed, text))
    }


@needs_atheris
def test_no_bytes_surprise_the_codec(tmp_path: pathlib.Path) -> None:
    fuzz(PROGRAM, 20_000, corpus(), tmp_path)
