"""Our stubs are the protocol's, live in a pool of their own, and are those of the sources."""

from __future__ import annotations

import pathlib
import subprocess
import sys
from typing import Any

import pytest
from google.protobuf import descriptor_pool
from tritonclient.grpc import model_config_pb2 as their_config
from tritonclient.grpc import service_pb2 as theirs

from headrace.inference.pool import POOL
from headrace.inference.tensors import DATATYPES
from headrace.inference.v2 import grpc_service_pb2 as pb
from headrace.inference.v2 import model_config_pb2 as config_pb

Fields = list[tuple[int, str, int, bool]]


def messages(descriptor: Any) -> dict[str, Fields]:
    """Every message of a file, nested ones too, with its fields as they are on the wire."""
    found: dict[str, Fields] = {}
    waiting = list(descriptor.message_types_by_name.values())
    while waiting:
        message = waiting.pop()
        fields = [(f.number, f.name, f.type, f.is_repeated) for f in message.fields]
        found[message.full_name] = sorted(fields)
        waiting += message.nested_types
    return found


@pytest.mark.parametrize(
    ("ours", "other"), [(pb, theirs), (config_pb, their_config)], ids=["service", "config"]
)
def test_messages_are_tritons(ours: Any, other: Any) -> None:
    assert messages(ours.DESCRIPTOR) == messages(other.DESCRIPTOR)


def test_methods_are_tritons() -> None:
    def methods(module: Any) -> dict[str, tuple[str, str]]:
        service = module.DESCRIPTOR.services_by_name["GRPCInferenceService"]
        return {m.name: (m.input_type.name, m.output_type.name) for m in service.methods}

    assert methods(pb) == methods(theirs)
    assert pb.DESCRIPTOR.services_by_name["GRPCInferenceService"].full_name == (
        "inference.GRPCInferenceService"
    )


def test_our_messages_are_not_in_the_pool_that_others_share() -> None:
    name = "inference.ModelInferRequest"
    assert POOL.FindMessageTypeByName(name) is pb.ModelInferRequest.DESCRIPTOR
    assert descriptor_pool.Default().FindMessageTypeByName(name) is (
        theirs.ModelInferRequest.DESCRIPTOR
    )


def test_datatypes_have_the_numbers_of_the_model_configuration() -> None:
    numbers = {"TYPE_" + d.name: d.config_value for d in DATATYPES.values()}
    numbers["TYPE_STRING"] = numbers.pop("TYPE_BYTES")
    assert numbers == {k: v for k, v in config_pb.DataType.items() if k != "TYPE_INVALID"}


def test_the_stubs_are_those_of_the_sources() -> None:
    script = pathlib.Path(__file__).parents[2] / "protos" / "generate.py"
    done = subprocess.run(
        [sys.executable, str(script), "--check"], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
