"""Other inference servers, and ourselves, serving a model on this machine for the same load."""

from __future__ import annotations

import http.client
import json
import os
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
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
STARTS = 2
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
    versions, configuration, what differs from the others, and for HTTP the model's `inputs`, as
    ModelMetadata would have them. At the end nothing of the server is left.
    Raises ValueError for an unknown peer or configuration, and PeerUnavailable where it cannot be
    installed or does not become ready."""
    found = environments.read(peer)
    chosen = _configuration(peer, found, configuration, settings or {})
    environment = environments.environment(peer, found)
    inputs = _inputs(peer, environment, model.resolve()) if found.protocol == "http" else None
    plan = _Plan(
        peer, found, configuration, chosen, environment, model.resolve(), model_name, inputs
    )
    with ExitStack() as stack:
        running = _start(stack, plan)
        yield Target(
            name=name or (peer if configuration == "default" else f"{peer} {configuration}"),
            address=f"{'http://' if found.protocol == 'http' else ''}{HOST}:{running.port}",
            protocol=found.protocol,
            adaptor=chosen.adaptor or found.adaptor,
            pid=running.pid,
            about=_about(plan, running),
        )


@dataclass(frozen=True)
class _Plan:
    """What is to be served, by whom, and how."""

    name: str
    peer: Peer
    configuration: str
    chosen: Configuration
    environment: Environment
    model: Path
    model_name: str
    inputs: list[dict[str, Any]] | None  # where the server itself cannot tell them


@dataclass(frozen=True)
class _Running:
    """A server that is ready, `seconds` after its start, which was the `starts`-th."""

    pid: int
    port: int
    seconds: float
    starts: int


def _start(stack: ExitStack, plan: _Plan) -> _Running:
    """Starts the server, again where it does not come up: its ports may have been taken since they
    were found free, and some peers give up on themselves after a second on a busy machine."""
    for starts in range(1, STARTS):
        with suppress(PeerUnavailable):
            return stack.enter_context(_running(plan, starts))
    return stack.enter_context(_running(plan, STARTS))


@contextmanager
def _running(plan: _Plan, starts: int) -> Iterator[_Running]:
    ports = free_ports(plan.peer.ports)
    log = (environments.CACHE / plan.name / f"{plan.configuration}.log").resolve()
    log.parent.mkdir(parents=True, exist_ok=True)
    program = environments.folder() / plan.name / "serve.py"
    with tempfile.TemporaryDirectory(prefix="peer-", ignore_cleanup_errors=True) as folder:
        command = [str(plan.environment.python), str(program), "--model", str(plan.model)]
        command += ["--name", plan.model_name, "--host", HOST, "--folder", folder]
        command += [word for port in ports for word in ("--port", str(port))]
        command += ["--settings", json.dumps(plan.chosen.settings)]
        environ = _environ(program.parent, plan.peer)
        started = time.monotonic()
        with process_group(
            command, environ=environ, folder=Path(folder), log=log, grace=STOP_SECONDS
        ) as process:
            _wait(plan, process, ports[0], log)
            seconds = round(time.monotonic() - started, 2)
            yield _Running(process.pid, ports[0], seconds, starts)


def _wait(plan: _Plan, process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    """Until the server is ready; raises PeerUnavailable where it ends or takes too long."""
    limit = time.monotonic() + plan.peer.start_seconds
    while not _is_ready(plan.peer, port, plan.model_name):
        if process.poll() is not None:
            why = f"exited with {process.returncode} before it was ready"
            raise PeerUnavailable(plan.name, f"{why}\n{tail(log)}")
        if time.monotonic() > limit:
            why = f"was not ready within {plan.peer.start_seconds:g} s"
            raise PeerUnavailable(plan.name, f"{why}\n{tail(log)}")
        time.sleep(_POLL_SECONDS)


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


def _inputs(peer: str, environment: Environment, model: Path) -> list[dict[str, Any]]:
    """Name, datatype and shape of each of the model's inputs."""
    program = environments.folder() / "shared" / "describe.py"
    command = [str(environment.python), str(program), str(model)]
    done = subprocess.run(command, capture_output=True, text=True, env=clean_environ())
    if done.returncode != 0:
        raise PeerUnavailable(peer, f"cannot read {model}\n{done.stderr.strip()[-1000:]}")
    found: list[dict[str, Any]] = json.loads(done.stdout)
    return found


def _environ(program: Path, found: Peer) -> dict[str, str]:
    """The peer's variables: its program's folder and the shared one on the path, and for a peer in
    our own environment what is there already."""
    environ = clean_environ()
    path = [str(program), str(program.parent / "shared")]
    if not found.requirements:
        path += filter(None, [os.environ.get("PYTHONPATH")])
    return environ | {"PYTHONPATH": os.pathsep.join(path)}


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


def _about(plan: _Plan, running: _Running) -> dict[str, Any]:
    packages = plan.environment.packages
    about = {
        "peer": plan.name,
        "about": plan.peer.about,
        "version": packages.get(plan.peer.package.lower(), "unknown"),
        "python": plan.environment.version,
        **{package: packages[package] for package in _TOLD if package in packages},
        "configuration": plan.configuration,
        "words": plan.chosen.words,
        "settings": dict(plan.chosen.settings),
        "differs": list(plan.peer.differs),
        "ready": plan.peer.ready,
        "ready_seconds": running.seconds,
    }
    if not plan.peer.computes:
        about["computes"] = False
    if plan.inputs is not None:
        about["inputs"] = plan.inputs
    if running.starts > 1:
        about["starts"] = running.starts
    return about
