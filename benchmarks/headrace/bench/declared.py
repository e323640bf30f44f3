"""What a server declares of a model's inputs, asked before the load."""

from __future__ import annotations

import http.client
import json
import urllib.error
import urllib.request
from collections.abc import Iterable, Mapping
from typing import Any
from urllib.parse import quote

import grpc

from headrace.bench.errors import BenchError
from headrace.bench.spec import RequestSpec, Target
from headrace.bench.transports.channel import OPTIONS
from headrace.client import ChannelOptions
from headrace.client import channel as client
from headrace.inference.v2 import grpc_service_pb2 as pb
from headrace.inference.v2.grpc_service_pb2_grpc import GRPCInferenceServiceStub

_PATIENCE = 10.0
_OVER_GRPC = "for gRPC leave out http://, and take the port of that"


def metadata(target: Target, request: RequestSpec) -> pb.ModelMetadataResponse:
    """The inputs of `request`'s model: by ModelMetadata; over HTTP by the Open Inference Protocol's
    REST form, unless `target.about` has them as "inputs", a list of {name, datatype, shape}, for
    servers that have no such thing.

    Raises BenchError, naming address, model and status, where nobody answers or there is no such
    model.
    """
    if target.protocol != "http":
        return _by_grpc(target, request)
    inputs = target.about.get("inputs")
    return _message(request.model, _by_http(target, request) if inputs is None else inputs)


def _by_grpc(target: Target, request: RequestSpec) -> pb.ModelMetadataResponse:
    asked = pb.ModelMetadataRequest(name=request.model, version=request.version)
    try:
        address = client.target(target.address, ChannelOptions())
    except ValueError as error:
        raise BenchError(str(error)) from error
    with grpc.insecure_channel(address, options=list(OPTIONS.items())) as channel:
        try:
            return GRPCInferenceServiceStub(channel).ModelMetadata(asked, timeout=_PATIENCE)
        except grpc.RpcError as error:
            raise refused(target, request, error) from error


def refused(target: Target, request: RequestSpec, error: grpc.RpcError) -> BenchError:
    """Says which call was refused, and in the server's words why."""
    return BenchError(
        f"model {request.model!r} at {target.address}: {error.code().name}: {error.details()}"
    )


def _by_http(target: Target, request: RequestSpec) -> Iterable[Mapping[str, Any]]:
    version = f"/versions/{quote(request.version, safe='')}" if request.version else ""
    path = f"/v2/models/{quote(request.model, safe='')}{version}"
    try:
        with urllib.request.urlopen(target.address.rstrip("/") + path, timeout=_PATIENCE) as reply:
            inputs: list[dict[str, Any]] = json.load(reply)["inputs"]
            return inputs
    except urllib.error.HTTPError as error:
        said = error.read(500).decode(errors="replace")
        raise BenchError(
            f"model {request.model!r} at {target.address}: HTTP {error.code} for {path}: {said} "
            f"({_OVER_GRPC})"
        ) from error
    except http.client.HTTPException as error:
        raise BenchError(
            f"{target.address}: what answers there does not speak HTTP/1.1; {_OVER_GRPC}"
        ) from error
    except (OSError, ValueError, KeyError) as error:
        raise BenchError(f"{target.address}{path}: no metadata of a model: {error}") from error


def _message(model: str, inputs: Iterable[Mapping[str, Any]]) -> pb.ModelMetadataResponse:
    made = pb.ModelMetadataResponse(name=model)
    for tensor in inputs:
        made.inputs.add(name=tensor["name"], datatype=tensor["datatype"], shape=tensor["shape"])
    return made
