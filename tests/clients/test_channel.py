"""What the connection options mean to gRPC."""

import json
from pathlib import Path

import grpc
import pytest

from headrace.client import TLS, AsyncClient, ChannelOptions, Client
from headrace.client.channel import settings, target, with_token
from headrace.client.messages import metadata


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


@pytest.mark.parametrize(
    "address", ["", "localhost", "8001", "localhost:", "a:8001/", "a:grpc", "a:0", "a:65536"]
)
def test_an_address_says_which_port(address: str) -> None:
    with pytest.raises(ValueError, match=r"host:port, such as 127\.0\.0\.1:8001.*got '"):
        target(address, ChannelOptions())


def test_an_address_is_text() -> None:
    with pytest.raises(TypeError, match="address: expected host:port as text, got 8001"):
        target(8001, ChannelOptions())  # type: ignore[arg-type]


@pytest.mark.parametrize("address", ["[::1]:8001", "unix:/run/headrace", "dns:///models:8001"])
def test_other_addresses_are_left_to_grpc(address: str) -> None:
    assert target(address, ChannelOptions()) == address
    assert target("models.example", ChannelOptions(tls=TLS())) == "models.example"


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


def test_a_token_goes_out_encrypted_or_where_that_is_said_to_be_well() -> None:
    for options in (ChannelOptions(tls=TLS()), ChannelOptions(token_in_plain_text=True)):
        found = with_token({"who": "me", "Authorization": "Basic x"}, "a-b.c_d~e+f/g==", options)
        assert dict(metadata(found)) == {"who": "me", "authorization": "Bearer a-b.c_d~e+f/g=="}
    assert with_token(None, None, ChannelOptions()) is None
    with pytest.raises(ValueError, match=r"expected channel=ChannelOptions\(tls=") as caught:
        with_token(None, "secret", ChannelOptions())
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("token", ["", "two words", "secret\n", "sécret"])
def test_what_is_no_token_is_refused_and_not_shown(token: str) -> None:
    with pytest.raises(ValueError, match="expected letters, digits") as caught:
        with_token(None, token, ChannelOptions(tls=TLS()))
    assert "cret" not in str(caught.value)


async def test_both_clients_refuse_to_send_a_token_in_plain_text() -> None:
    for kind in (Client, AsyncClient):
        with pytest.raises(ValueError, match="token_in_plain_text"):
            kind("127.0.0.1:1", token="secret")
        with pytest.raises(ValueError, match="headers: authorization: expected") as caught:
            kind("127.0.0.1:1", headers={"Authorization": "Basic secret"})
        assert "secret" not in str(caught.value)
