"""What the connection options mean to gRPC."""

import json
from pathlib import Path

import grpc
import pytest

from headrace.client import TLS, ChannelOptions
from headrace.client.channel import settings


def arguments(options: ChannelOptions) -> dict[str, str | int]:
    return dict(settings(options)["options"])


def test_messages_are_unlimited_and_one_address_is_used_unless_told_otherwise() -> None:
    found = arguments(ChannelOptions())
    assert found["grpc.max_send_message_length"] == -1
    assert found["grpc.max_receive_message_length"] == -1
    assert json.loads(str(found["grpc.service_config"])) == {
        "loadBalancingConfig": [{"pick_first": {}}]
    }
    assert "grpc.keepalive_time_ms" not in found


def test_every_option_reaches_grpc() -> None:
    options = ChannelOptions(
        tls=TLS(server_name="inner"),
        max_message_bytes=10,
        keepalive_seconds=1.5,
        load_balancing="round_robin",
        authority="models.example",
        compression=grpc.Compression.Gzip,
        arguments={"grpc.max_receive_message_length": 20, "grpc.enable_retries": 0},
    )
    found = arguments(options)
    assert found["grpc.max_send_message_length"] == 10
    assert found["grpc.max_receive_message_length"] == 20
    assert found["grpc.enable_retries"] == 0
    assert found["grpc.keepalive_time_ms"] == 1500
    assert json.loads(str(found["grpc.service_config"])) == {
        "loadBalancingConfig": [{"round_robin": {}}],
        "healthCheckConfig": {"serviceName": ""},
    }
    assert found["grpc.default_authority"] == "models.example"
    assert found["grpc.ssl_target_name_override"] == "inner"
    assert settings(options)["compression"] is grpc.Compression.Gzip


def test_pings_come_at_a_positive_interval() -> None:
    with pytest.raises(ValueError, match="keepalive_seconds"):
        ChannelOptions(keepalive_seconds=0)


def test_a_client_certificate_comes_with_its_key() -> None:
    with pytest.raises(ValueError, match="together"):
        TLS(client_key=b"key")


def test_a_key_is_not_shown() -> None:
    assert "secret" not in repr(TLS(client_key=b"secret", client_certificate=b"public"))


def test_certificates_are_read_from_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[tuple[bytes | None, ...]] = []
    monkeypatch.setattr(grpc, "ssl_channel_credentials", lambda *pems: given.append(pems))
    (tmp_path / "roots.pem").write_bytes(b"roots")
    (tmp_path / "key.pem").write_bytes(b"key")
    TLS(tmp_path / "roots.pem", str(tmp_path / "key.pem"), b"certificate").credentials()
    TLS().credentials()
    assert given == [(b"roots", b"key", b"certificate"), (None, None, None)]
    with pytest.raises(FileNotFoundError):
        TLS(tmp_path / "absent.pem").credentials()
