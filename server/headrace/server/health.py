"""`headrace health`: asks a server by grpc.health.v1 if it serves, for probes that run a command.

It imports neither ONNX Runtime nor the server: in an image it runs every few seconds.
"""

from __future__ import annotations

import sys

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

_OPTIONS = (("grpc.enable_http_proxy", 0),)  # a probe asks this machine or this network


def main(address: str, service: str, timeout: float) -> int:
    """Prints what the server at `address` (host:port) says of `service`, "" for itself.

    Returns 0 if that is SERVING; 1 for any other status, and where no answer comes within `timeout`
    seconds.
    """
    request = health_pb2.HealthCheckRequest(service=service)
    with grpc.insecure_channel(address, options=_OPTIONS) as channel:
        try:
            answer = health_pb2_grpc.HealthStub(channel).Check(request, timeout=timeout)
        except grpc.RpcError as error:
            code, details = error.code().name, error.details()
            print(f"headrace health: {address}: {code}: {details}", file=sys.stderr)
            return 1
    status = health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status)
    print(status)
    return 0 if answer.status == health_pb2.HealthCheckResponse.SERVING else 1
