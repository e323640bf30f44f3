"""docs/protocol.html, which `make protos` makes, lacks nothing and links to what is there.

That it is current, `make check` finds out.
"""

from __future__ import annotations

import pathlib
import re
from collections.abc import Iterator
from typing import Any

from headrace.feedback.v1 import feedback_pb2
from headrace.inference.v2 import grpc_service_pb2, model_config_pb2
from headrace.stream.v1 import stream_pb2

PAGE = (pathlib.Path(__file__).parents[2] / "docs/protocol.html").read_text()
MODULES = (grpc_service_pb2, model_config_pb2, stream_pb2, feedback_pb2)
FILES = [module.DESCRIPTOR for module in MODULES]


def messages(parent: Any) -> Iterator[Any]:
    """All messages of a file or message, but for those that stand for map entries."""
    kinds = getattr(parent, "message_types_by_name", None) or parent.nested_types_by_name
    for kind in kinds.values():
        if not kind.GetOptions().map_entry:
            yield kind
            if kind.nested_types_by_name:
                yield from messages(kind)


def section(name: str) -> str:
    """What is said of a message, enumeration or service."""
    found = re.search(rf'<h3 id="{re.escape(name)}">.*?(?=<h[23]|</body>)', PAGE, re.DOTALL)
    assert found, name
    return found[0]


def test_every_message_and_field_is_there() -> None:
    fields = [(kind, field) for file in FILES for kind in messages(file) for field in kind.fields]
    assert len(fields) > 300
    for kind, field in fields:
        row = f"<td>{field.number}</td><td><code>{field.name}</code></td>"
        assert row in section(kind.full_name), field.full_name


def test_every_value_of_an_enumeration_and_every_method_is_there() -> None:
    for file in FILES:
        for enum in file.enum_types_by_name.values():
            for value in enum.values:
                assert f"<code>{value.name}</code>" in section(enum.full_name)
        for service in file.services_by_name.values():
            for method in service.methods:
                assert f"<code>{method.name}</code>" in section(service.full_name)


def test_comments_are_there_as_text() -> None:
    assert "<p>Several commands may travel in one message; they are carried out in order.</p>" in (
        section("headrace.stream.v1.StreamRequest")
    )
    opening = PAGE[PAGE.index('<h2 id="headrace-stream-v1-stream.proto"') :][:2000]
    assert "<p>Sensor streams: signals sent as they come" in opening
    assert "<pre>  client" in opening


def test_every_link_leads_somewhere() -> None:
    targets = set(re.findall(r' id="([^"]+)"', PAGE))
    links = set(re.findall(r'href="#([^"]+)"', PAGE))
    assert links
    assert links <= targets
