"""Which transport a target takes."""

from __future__ import annotations

import importlib

from headrace.bench.spec import Target
from headrace.bench.transports import Transport
from headrace.bench.transports.grpc_stream import GrpcStreamTransport
from headrace.bench.transports.grpcio import GrpcioTransport
from headrace.bench.transports.http import HttpTransport
from headrace.bench.transports.sensor import SensorTransport


def transport(target: Target) -> Transport:
    """The transport for `target`, not yet open. "auto" is the lean one, for the methods it has."""
    if target.protocol == "http":
        return HttpTransport(target.address)
    if target.protocol == "sensor":
        return SensorTransport(target.address)
    if target.protocol == "grpc-stream":
        return GrpcStreamTransport(target.address)
    if target.transport == "grpcio":
        return GrpcioTransport(target.address)
    # Not needed by whoever asks for another one.
    lean = importlib.import_module("headrace.bench.transports.lean")
    made: Transport = lean.Lean(target.address)
    return made
