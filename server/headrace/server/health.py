"""`headrace health`: asks a server by grpc.health.v1 if it serves, for probes that run a command.

It imports neither ONNX Runtime nor the server: in an image it runs every few seconds.
"""

from __future__ import annotations

import argparse
import os
import pathlib
import sys
from collections.abc import Mapping

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

_OPTIONS = (("grpc.enable_http_proxy", 0),)  # a probe asks this machine or this network
# Flags of TLS, and the variables that stand in for them: the command of an image's health check is
# fixed, its environment is not.
_FILES = {
    "ca": "HEADRACE_HEALTH_CA",
    "certificate": "HEADRACE_HEALTH_CERTIFICATE",
    "key": "HEADRACE_HEALTH_KEY",
}
_SERVER_NAME = "HEADRACE_HEALTH_SERVER_NAME"


def main(namespace: argparse.Namespace, environment: Mapping[str, str] = os.environ) -> int:
    """Prints what the server at `address` (host:port) says of `service`, "" for itself.

    Returns 0 if that is SERVING; 1 for any other status, and where no answer comes within `timeout`
    seconds; 2 for files of TLS that cannot be read or do not go together.
    """
    address: str = namespace.address
    try:
        channel = _channel(namespace, environment)
    except (OSError, ValueError) as error:
        print(f"headrace health: {error}", file=sys.stderr)
        return 2
    request = health_pb2.HealthCheckRequest(service=namespace.service)
    with channel:
        try:
            answer = health_pb2_grpc.HealthStub(channel).Check(request, timeout=namespace.timeout)
        except grpc.RpcError as error:
            print(f"headrace health: {address}: {_words(error, request.service)}", file=sys.stderr)
            return 1
    status = health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status)
    print(status)
    return 0 if answer.status == health_pb2.HealthCheckResponse.SERVING else 1


def _words(error: grpc.RpcError, service: str) -> str:
    code, details = error.code(), error.details() or ""
    if code is grpc.StatusCode.NOT_FOUND and not details:
        details = f"the server has no service {service!r}, nor a model of that name"
    elif code is grpc.StatusCode.UNAVAILABLE:
        details += "; the address is HOST:PORT of the server's gRPC port"
    return f"{code.name}: {details}"


def _channel(namespace: argparse.Namespace, environment: Mapping[str, str]) -> grpc.Channel:
    """In plain text unless anything of TLS is said. Raises OSError, ValueError."""
    pem = {
        flag: _read(flag, getattr(namespace, flag) or environment.get(variable))
        for flag, variable in _FILES.items()
    }
    if (pem["certificate"] is None) != (pem["key"] is None):
        raise ValueError("--certificate, --key: expected both or neither, got one")
    name = namespace.server_name or environment.get(_SERVER_NAME)
    if not namespace.tls and name is None and not any(pem.values()):
        return grpc.insecure_channel(namespace.address, options=_OPTIONS)
    credentials = grpc.ssl_channel_credentials(pem["ca"], pem["key"], pem["certificate"])
    options = (*_OPTIONS, *((("grpc.ssl_target_name_override", name),) if name else ()))
    return grpc.secure_channel(namespace.address, credentials, options=options)


def _read(flag: str, path: str | None) -> bytes | None:
    if not path:
        return None
    try:
        return pathlib.Path(path).read_bytes()
    except OSError as error:
        raise OSError(f"--{flag}: cannot read {path}: {error.strerror}") from None
