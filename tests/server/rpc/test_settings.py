"""TraceSetting: all of a change or nothing of it. (Its effect: tests/integration/test_otlp.py.)"""

from __future__ import annotations

import pytest

from headrace.inference.v2 import grpc_service_pb2 as pb
from headrace.server.errors import InvalidInput
from headrace.server.rpc.settings import trace_setting
from headrace.server.telemetry.sampling import Rule, Sampling


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("trace_level", "LOUD"),
        ("trace_rate", "0"),
        ("trace_count", "many"),
        ("trace_file", "/tmp/x"),
        ("speed", "1"),
    ],
)
def test_a_wrong_setting_changes_nothing(key: str, value: str) -> None:
    sampling = Sampling(Rule(ratio=0.01))
    message = pb.TraceSettingRequest(model_name="")
    message.settings["trace_rate"].value.append("7")
    message.settings[key].value[:] = [value]
    with pytest.raises(InvalidInput, match=key):
        trace_setting(sampling, message)
    assert sampling.get() == (Rule(ratio=0.01), -1)
