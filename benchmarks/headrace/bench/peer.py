"""Other inference servers, and ourselves, serving a model on this machine for the same load."""

from __future__ import annotations

import http.client
import json
import os
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc

from headrace.bench import peer_environment as environments
from headrace.bench.peer_environment import (
    Configuration,
    Environment,
    Peer,
    PeerUnavailable,
    clean_environ,
    tail,
)
from headrace.bench.peer_process import HOST, free_ports, process_group
from headrace.bench.spec import Target
from headrace.inference.v2 import grpc_service_pb2 as pb

__all__ = ["PeerUnavailable", "available", "serve"]

STOP_SECONDS = 10.0
_POLL_SECONDS = 0.05
_MODEL_READY = "/inference.GRPCInferenceService/ModelReady"
_TOLD = ("onnxruntime", "numpy", "grpcio", "protobuf")  # packages whose versions a report shows


def available() -> list[str]:
    """The names of all peers. Whether one can be installed here is known when it is served."""
    return environments.names()


@contextmanager
def serve(
    peer: str,
    model: Path,
    configuration: str = "default",
    *,
    name: str | None = None,
    model_name: str,
    settings: Mapping[str, Any] | None = None,
) -> Iterator[Target]:
    """`model` (an .onnx file) served by `peer` as `model_name` while the context lasts.

    `settings` override those of the configuration, one by one. The target's `about` says what runs:
    versions, configuration, what differs from the others. At the end nothing of the server is left.
    Raises ValueError for an unknown peer or configuration, and PeerUnavailable where it cannot be
    installed or does not become ready."""
    found = environments.read(peer)
    chosen = _configuration(peer, found, configuration, settings or {})
    environment = environments.environment(peer, found)
    ports = free_ports(found.ports)
    log = (environments.CACHE / peer / f"{configuration}.log").resolve()
    log.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f"{peer}-", ignore_cleanup_errors=True) as folder:
        program = environments.folder() / peer / "serve.py"
        command = [str(environment.python), str(program), "--model", str(model.resolve())]
        command += ["--name", model_name, "--host", HOST, "--folder", folder]
        command += [word for port in ports for word in ("--port", str(port))]
        command += ["--settings", json.dumps(chosen.settings)]
        environ = _environ(program.parent, found)
        started = time.monotonic()
        with process_group(
            command, environ=environ, folder=Path(folder), log=log, grace=STOP_SECONDS
        ) as process:
            while not _is_ready(found, ports[0], model_name):
                if process.poll() is not None:
                    why = f"exited with {process.returncode} before it was ready"
                    raise PeerUnavailable(peer, f"{why}\n{tail(log)}")
                if time.monotonic() - started > found.start_seconds:
                    why = f"was not ready within {found.start_seconds:g} s"
                    raise PeerUnavailable(peer, f"{why}\n{tail(log)}")
                time.sleep(_POLL_SECONDS)
            about = _about(peer, found, environment, configuration, chosen)
            about["ready_seconds"] = round(time.monotonic() - started, 2)
            yield Target(
                name=name or (peer if configuration == "default" else f"{peer} {configuration}"),
                address=_address(found, ports[0]),
                protocol=found.protocol,
                adaptor=chosen.adaptor or found.adaptor,
                pid=process.pid,
                about=about,
            )


def _configuration(
    peer: str, found: Peer, name: str, overrides: Mapping[str, Any]
) -> Configuration:
    try:
        chosen = found.configurations[name]
    except KeyError:
        known = ", ".join(found.configurations)
        raise ValueError(f"peer {peer!r}: configuration {name!r} is none of {known}") from None
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    settings = {
        key: cpus or 1 if value == "cpus" else value
        for key, value in {**chosen.settings, **overrides}.items()
    }
    return chosen.model_copy(update={"settings": settings})


def _environ(program: Path, found: Peer) -> dict[str, str]:
    """The peer's variables: its program's folder and the shared one on the path, and for a peer in
    our own environment what is there already."""
    environ = clean_environ()
    path = [str(program), str(program.parent / "shared")]
    if not found.requirements:
        path += filter(None, [os.environ.get("PYTHONPATH")])
    return environ | {"PYTHONPATH": os.pathsep.join(path)}


def _address(found: Peer, port: int) -> str:
    return f"http://{HOST}:{port}" if found.protocol == "http" else f"{HOST}:{port}"


def _is_ready(found: Peer, port: int, model_name: str) -> bool:
    if found.ready == "model":
        return _model_is_ready(f"{HOST}:{port}", model_name)
    connection = http.client.HTTPConnection(HOST, port, timeout=2.0)
    try:
        connection.request("GET", found.ready)
        return connection.getresponse().status == http.client.OK
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def _model_is_ready(address: str, model_name: str) -> bool:
    """One question on a channel of its own: a kept one would back off between attempts."""
    options = [("grpc.enable_http_proxy", 0), ("grpc.use_local_subchannel_pool", 1)]
    with grpc.insecure_channel(address, options=options) as channel:
        call = channel.unary_unary(
            _MODEL_READY,
            request_serializer=pb.ModelReadyRequest.SerializeToString,
            response_deserializer=pb.ModelReadyResponse.FromString,
        )
        try:
            return bool(call(pb.ModelReadyRequest(name=model_name), timeout=2.0).ready)
        except grpc.RpcError:
            return False


def _about(
    peer: str, found: Peer, environment: Environment, name: str, chosen: Configuration
) -> dict[str, Any]:
    packages = environment.packages
    return {
        "peer": peer,
        "about": found.about,
        "version": packages.get(found.package.lower(), "unknown"),
        "python": environment.version,
        **{package: packages[package] for package in _TOLD if package in packages},
        "configuration": name,
        "words": chosen.words,
        "settings": dict(chosen.settings),
        "differs": list(found.differs),
    }
