"""Certificates made for a test: an authority, and what it has signed, as PEM files."""

from __future__ import annotations

import pathlib

import trustme

from headrace.client import TLS


class Authority:
    """Signs certificates for 127.0.0.1 and for clients."""

    def __init__(self) -> None:
        self._ca = trustme.CA()
        self.pem: bytes = self._ca.cert_pem.bytes()

    def write_server(self, folder: pathlib.Path) -> tuple[pathlib.Path, pathlib.Path]:
        """A new certificate for 127.0.0.1 and its key, in `folder`."""
        leaf = self._ca.issue_cert("127.0.0.1")
        certificate, key = folder / "server.crt", folder / "server.key"
        # The key first: until both are there, they do not fit each other.
        leaf.private_key_pem.write_to_path(key)
        certificate.write_bytes(b"".join(pem.bytes() for pem in leaf.cert_chain_pems))
        return certificate, key

    def client(self, common_name: str, *names: str) -> TLS:
        """A client that has a certificate and trusts this authority's servers."""
        leaf = self._ca.issue_cert(*names, common_name=common_name)
        chain = b"".join(pem.bytes() for pem in leaf.cert_chain_pems)
        return TLS(self.pem, leaf.private_key_pem.bytes(), chain)
