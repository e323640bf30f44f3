"""How requests look over HTTP, where servers don't agree."""

from __future__ import annotations

import base64
import importlib
import json
import urllib.error
import urllib.request
from typing import Any, Protocol
from urllib.parse import quote

import numpy as np

from headrace.bench.errors import BenchError
from headrace.bench.inputs import Sample
from headrace.bench.spec import RequestSpec
from headrace.bench.transports import Prepared
from headrace.inference.v2.grpc_service_pb2 import ModelMetadataResponse

_PATIENCE = 10.0


class Adaptor(Protocol):
    """What one kind of server wants. Both may raise BenchError."""

    def metadata(self, address: str, request: RequestSpec) -> ModelMetadataResponse:
        """The model's inputs with names, datatypes and shapes."""

    def prepare(
        self, request: RequestSpec, metadata: ModelMetadataResponse, sample: Sample
    ) -> Prepared:
        """One request, with these tensors; its path is relative to the target's address."""


class OpenInferenceRest:
    """The Open Inference Protocol's REST form: JSON with tensors as flat lists (KServe's
    specification of "V2", inference_rest). BYTES that are no text travel in base64."""

    def metadata(self, address: str, request: RequestSpec) -> ModelMetadataResponse:
        url = address.rstrip("/") + _path(request)
        try:
            with urllib.request.urlopen(url, timeout=_PATIENCE) as response:
                told = json.load(response)
        except urllib.error.HTTPError as error:
            said = error.read(500).decode(errors="replace")
            raise BenchError(
                f"model {request.model!r} at {address}: HTTP {error.code}: {said}"
            ) from error
        except OSError as error:
            raise BenchError(f"nobody answers at {address}: {error}") from error
        metadata = ModelMetadataResponse(name=request.model)
        for tensor in told.get("inputs", []):
            metadata.inputs.add(
                name=tensor["name"], datatype=tensor["datatype"], shape=tensor["shape"]
            )
        return metadata

    def prepare(
        self, request: RequestSpec, metadata: ModelMetadataResponse, sample: Sample
    ) -> Prepared:
        datatypes = {tensor.name: tensor.datatype for tensor in metadata.inputs}
        inputs = [
            {
                "name": name,
                "datatype": datatypes[name],
                "shape": list(array.shape),
                "data": [_plain(value) for value in array.ravel().tolist()],
            }
            for name, array in sample.items()
        ]
        body: dict[str, Any] = {"inputs": inputs}
        if request.parameters:
            body["parameters"] = request.parameters
        headers = (("Content-Type", "application/json"),)
        return Prepared(_path(request) + "/infer", json.dumps(body).encode(), headers)


def adaptor(name: str) -> Adaptor:
    """The adaptor of this name: "" for the Open Inference Protocol's REST form, else a class as
    "package.module:Class". Raises BenchError where there is none."""
    if not name:
        return OpenInferenceRest()
    module, _, attribute = name.partition(":")
    try:
        made: Adaptor = getattr(importlib.import_module(module), attribute)()
    except (ImportError, AttributeError, ValueError) as error:
        raise BenchError(
            f"adaptor: expected package.module:Class, got {name!r}: {error}"
        ) from error
    return made


def _path(request: RequestSpec) -> str:
    version = f"/versions/{quote(request.version, safe='')}" if request.version else ""
    return f"/v2/models/{quote(request.model, safe='')}{version}"


def _plain(value: Any) -> Any:
    if isinstance(value, bytes):
        try:
            return value.decode()
        except UnicodeDecodeError:
            return base64.b64encode(value).decode()
    return float(value) if isinstance(value, np.floating) else value
