"""The server's certificate, and that of who signs its clients': read, checked, read again."""

from __future__ import annotations

import pathlib
import ssl
from typing import NamedTuple

from headrace.server.errors import ConfigurationError
from headrace.server.security.reload import Reloaded


class CertificateFiles(NamedTuple):
    """PEM files. `client_ca`: whoever has signed clients' certificates; None asks for none."""

    certificate: pathlib.Path
    key: pathlib.Path
    client_ca: pathlib.Path | None = None


class Pem(NamedTuple):
    """The same, read: a chain and the key that belongs to it."""

    certificate: bytes
    key: bytes
    client_ca: bytes | None


class Certificates:
    """What to show clients now. Files that change are read again, once they fit each other."""

    def __init__(self, files: CertificateFiles) -> None:
        """Raises ConfigurationError with a line that names the setting."""
        self.asks_clients = files.client_ca is not None
        self._files = files
        self._pem = Reloaded([path for path in files if path is not None], self._read)
        self._context = _server_context(files)
        self._context_of = self._pem.current()

    def pem(self) -> Pem:
        return self._pem.current()

    def for_http(self) -> ssl.SSLContext:
        """For a server of HTTPS, which asks no client for a certificate."""
        context = _server_context(self._files)
        context.sni_callback = self._swap
        return context

    def _swap(self, connection: ssl.SSLObject, _: str | None, __: ssl.SSLContext) -> None:
        """Called in each handshake, before the certificate is shown: gives it the present one."""
        pem = self._pem.current()
        if pem is not self._context_of:
            self._context = _server_context(self._files)
            self._context_of = pem
        connection.context = self._context

    def _read(self) -> Pem:
        files = self._files
        pem = Pem(
            _content("tls_certificate", files.certificate),
            _content("tls_key", files.key),
            None if files.client_ca is None else _content("tls_client_ca", files.client_ca),
        )
        _server_context(files)
        if pem.client_ca is not None:
            _check_ca(files.client_ca, pem.client_ca)
        return pem


def _content(key: str, path: pathlib.Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigurationError(f"{key}: cannot read {path}: {error.strerror}") from None


def _server_context(files: CertificateFiles) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        # An answer to the question for a passphrase: without one, a key that has one would have
        # the terminal asked.
        context.load_cert_chain(files.certificate, files.key, password="")
    except (ssl.SSLError, ValueError, OSError) as error:
        raise ConfigurationError(
            f"tls_certificate, tls_key: expected a PEM certificate chain in {files.certificate} "
            f"and its private key, without a passphrase, in {files.key}: {error}"
        ) from None
    return context


def _check_ca(path: pathlib.Path | None, pem: bytes) -> None:
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_verify_locations(cadata=pem.decode("ascii"))
    except (ssl.SSLError, ValueError) as error:
        raise ConfigurationError(
            f"tls_client_ca: expected PEM certificates in {path}: {error}"
        ) from None
