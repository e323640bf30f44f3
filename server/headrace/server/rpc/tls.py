"""Certificates as gRPC takes them."""

from __future__ import annotations

from typing import Any

import grpc

from headrace.server.security.tls import Certificates, Pem


def server_credentials(certificates: Certificates) -> grpc.ServerCredentials:
    """Credentials that follow the files: gRPC asks for the certificate in each handshake, from a
    thread of its own, and connections that are open stay as they are."""
    first = shown = certificates.pem()

    def latest() -> Any:  # gRPC's type stubs do not know that None may be said
        nonlocal shown
        pem = certificates.pem()
        if pem is shown:
            return None  # as it was
        shown = pem
        return _configuration(pem)

    return grpc.dynamic_ssl_server_credentials(
        _configuration(first), latest, certificates.asks_clients
    )


def _configuration(pem: Pem) -> grpc.ServerCertificateConfiguration:
    return grpc.ssl_server_certificate_configuration(
        [(pem.key, pem.certificate)], root_certificates=pem.client_ca
    )
