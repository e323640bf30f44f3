"""Certificates that cannot be used are named, and never asked about on a terminal."""

from __future__ import annotations

import pathlib

import pytest
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
    load_pem_private_key,
)

from headrace.server.errors import ConfigurationError
from headrace.server.security.tls import CertificateFiles, Certificates
from support.certificates import Authority


def refused(files: CertificateFiles) -> str:
    with pytest.raises(ConfigurationError) as caught:
        Certificates(files)
    return str(caught.value)


def test_a_key_with_a_passphrase(tmp_path: pathlib.Path) -> None:
    certificate, key = Authority().write_server(tmp_path)
    private = load_pem_private_key(key.read_bytes(), None)
    hidden = BestAvailableEncryption(b"secret")
    key.write_bytes(private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, hidden))
    assert "without a passphrase" in refused(CertificateFiles(certificate, key))


def test_a_key_of_another_certificate(tmp_path: pathlib.Path) -> None:
    certificate, key = Authority().write_server(tmp_path)
    (tmp_path / "other").mkdir()
    _, other = Authority().write_server(tmp_path / "other")
    assert refused(CertificateFiles(certificate, other)).startswith("tls_certificate, tls_key: ")
    assert not Certificates(CertificateFiles(certificate, key)).asks_clients


@pytest.mark.parametrize("content", [b"", b"no PEM", b"\xff\xfe"])
def test_an_authority_that_is_none(tmp_path: pathlib.Path, content: bytes) -> None:
    certificate, key = Authority().write_server(tmp_path)
    (tmp_path / "ca").write_bytes(content)
    said = refused(CertificateFiles(certificate, key, tmp_path / "ca"))
    assert said.startswith("tls_client_ca: expected PEM certificates")
