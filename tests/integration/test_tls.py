"""TLS on both ports: who is let in, and certificates that change while the server runs."""

from __future__ import annotations

import pathlib
import socket
import ssl
import urllib.request
from collections.abc import Iterator

import numpy as np
import pytest

from headrace.client import TLS, ChannelOptions, Client, RetryPolicy, Unavailable
from support import models, server
from support.certificates import Authority
from support.waiting import until

pytestmark = pytest.mark.skipif(server.ENGINE == "native", reason="the native engine has no TLS")


@pytest.fixture
def repository(tmp_path: pathlib.Path) -> pathlib.Path:
    models.write(tmp_path / "models", "double", models.scaled(2))
    return tmp_path / "models"


@pytest.fixture
def authority() -> Authority:
    return Authority()


@pytest.fixture
def running(
    tmp_path: pathlib.Path, repository: pathlib.Path, authority: Authority
) -> Iterator[server.RunningServer]:
    certificate, key = authority.write_server(tmp_path)
    options = (f"--tls-certificate={certificate}", f"--tls-key={key}", "--http-tls=true")
    with server.serving(tmp_path / "log", repository, *options) as up:
        yield up


def client(address: str, tls: TLS | None) -> Client:
    return Client(address, channel=ChannelOptions(tls=tls), retry=RetryPolicy(max_attempts=1))


def doubles(address: str, tls: TLS | None) -> bool:
    with client(address, tls) as it:
        answer = it.infer("double", {"x": np.ones((1, 1), np.float32)}, deadline=10)
        return bool(answer["y"] == [[2]])


def shown(address: str, authority: Authority) -> bytes:
    """The certificate that is shown to a new connection."""
    host, port = address.split(":")
    context = ssl.create_default_context(cadata=authority.pem.decode())
    context.set_alpn_protocols(["h2"])
    with (
        socket.create_connection((host, int(port)), server.PATIENCE) as plain,
        context.wrap_socket(plain, server_hostname=host) as encrypted,
    ):
        found = encrypted.getpeercert(binary_form=True)
    assert found
    return found


def test_a_client_that_trusts_the_authority(
    running: server.RunningServer, authority: Authority
) -> None:
    assert doubles(running.grpc, TLS(authority.pem))
    with pytest.raises(Unavailable):
        doubles(running.grpc, TLS(Authority().pem))
    with pytest.raises(Unavailable):
        doubles(running.grpc, None)


def test_http_shows_the_same_certificate(
    running: server.RunningServer, authority: Authority
) -> None:
    context = ssl.create_default_context(cadata=authority.pem.decode())
    url = f"https://{running.http}/v2/health/ready"
    with urllib.request.urlopen(url, context=context, timeout=server.PATIENCE) as response:
        assert response.read() == b"ready\n"
    assert shown(running.http, authority) == shown(running.grpc, authority)


async def test_a_new_certificate_is_shown_without_a_restart(
    tmp_path: pathlib.Path, running: server.RunningServer, authority: Authority
) -> None:
    old = shown(running.grpc, authority)
    with client(running.grpc, TLS(authority.pem)) as before:
        assert before.server_live()
        authority.write_server(tmp_path)

        async def renewed() -> bool:
            on_both = {shown(running.grpc, authority), shown(running.http, authority)}
            return old not in on_both and len(on_both) == 1

        await until(renewed)
        assert before.server_live()  # what is connected stays
    assert doubles(running.grpc, TLS(authority.pem))


async def test_a_certificate_that_does_not_fit_its_key_is_not_taken_up(
    tmp_path: pathlib.Path, running: server.RunningServer, authority: Authority
) -> None:
    old = shown(running.grpc, authority)
    other = tmp_path / "other"
    other.mkdir()
    certificate, _ = authority.write_server(other)
    (tmp_path / "server.crt").write_bytes(certificate.read_bytes())

    async def told() -> bool:
        assert shown(running.grpc, authority) == old
        return any("not taken up" in record["message"] for record in running.log())

    await until(told)
    assert shown(running.grpc, authority) == shown(running.http, authority) == old


def test_mutual_tls_lets_in_whom_the_authority_has_signed(
    tmp_path: pathlib.Path, repository: pathlib.Path, authority: Authority
) -> None:
    certificate, key = authority.write_server(tmp_path)
    signs = tmp_path / "clients.crt"
    signs.write_bytes(authority.pem)
    options = (
        f"--tls-certificate={certificate}",
        f"--tls-key={key}",
        f"--tls-client-ca={signs}",
    )
    with server.serving(tmp_path / "log", repository, *options) as up:
        assert doubles(up.grpc, authority.client("sensor", "sensor.example"))
        with pytest.raises(Unavailable):
            doubles(up.grpc, TLS(authority.pem))
        stranger = Authority().client("sensor", "sensor.example")
        with pytest.raises(Unavailable):
            doubles(up.grpc, TLS(authority.pem, stranger.client_key, stranger.client_certificate))


def test_the_health_command_over_tls(
    tmp_path: pathlib.Path, repository: pathlib.Path, authority: Authority
) -> None:
    """By flags, and by variables: the command of an image's health check is fixed."""
    certificate, key = authority.write_server(tmp_path)
    ca, own, own_key = (tmp_path / name for name in ("ca.crt", "probe.crt", "probe.key"))
    ca.write_bytes(authority.pem)
    stranger = tmp_path / "stranger.crt"
    stranger.write_bytes(Authority().pem)
    leaf = authority.client("probe")
    for file, pem in ((own, leaf.client_certificate), (own_key, leaf.client_key)):
        assert isinstance(pem, bytes)
        file.write_bytes(pem)
    options = (f"--tls-certificate={certificate}", f"--tls-key={key}", f"--tls-client-ca={ca}")
    files = {"ca": ca, "certificate": own, "key": own_key}
    with server.serving(tmp_path / "log", repository, *options) as up:
        flags = [f"--{name}={file}" for name, file in files.items()]
        done = server.run("health", up.grpc, *flags)
        assert (done.returncode, done.stdout, done.stderr) == (0, "SERVING\n", "")
        variables = {f"HEADRACE_HEALTH_{name.upper()}": str(file) for name, file in files.items()}
        done = server.run("health", up.grpc, environment=variables)
        assert (done.returncode, done.stdout, done.stderr) == (0, "SERVING\n", "")
        port = up.grpc.rpartition(":")[2]
        name = ("--server-name=127.0.0.1", "--service=double")
        assert server.run("health", f"localhost:{port}", *flags, *name).stdout == "SERVING\n"
        for wrong in ((), (f"--ca={ca}",), ("--tls",), (*flags, f"--ca={stranger}")):
            done = server.run("health", up.grpc, "--timeout=3", *wrong)
            assert (done.returncode, done.stdout) == (1, ""), wrong


def test_the_health_command_names_files_that_it_cannot_read(tmp_path: pathlib.Path) -> None:
    done = server.run("health", "127.0.0.1:1", f"--ca={tmp_path / 'none'}")
    assert done.returncode == 2
    assert f"--ca: cannot read {tmp_path / 'none'}" in done.stderr
    (tmp_path / "own").write_text("")
    done = server.run("health", "127.0.0.1:1", f"--key={tmp_path / 'own'}")
    assert done.returncode == 2
    assert "--certificate, --key: expected both" in done.stderr


@pytest.mark.parametrize(
    ("missing", "named"),
    [("server.crt", "tls_certificate"), ("server.key", "tls_key"), ("ca.crt", "tls_client_ca")],
)
def test_files_that_cannot_be_read_are_named_by_their_setting(
    tmp_path: pathlib.Path, repository: pathlib.Path, authority: Authority, missing: str, named: str
) -> None:
    certificate, key = authority.write_server(tmp_path)
    signs = tmp_path / "ca.crt"
    signs.write_bytes(authority.pem)
    (tmp_path / missing).unlink()
    ended = server.run(
        "serve",
        repository,
        f"--tls-certificate={certificate}",
        f"--tls-key={key}",
        f"--tls-client-ca={signs}",
    )
    assert ended.returncode == 2
    assert f"{named}: cannot read {tmp_path / missing}" in ended.stderr
