"""The server's configuration: flags over environment (HEADRACE_*) over one TOML file."""

from __future__ import annotations

import os
import pathlib
import sys
import tomllib
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import PydanticCustomError

from headrace.server.errors import ConfigurationError
from headrace.server.mistyped import meant

PREFIX = "HEADRACE_"
_CONFIG = f"{PREFIX}CONFIG"


def _split(value: Any) -> Any:
    """Paths in one text, as flags and the environment have them."""
    return _paths(value) if isinstance(value, str) else value


class Settings(BaseModel):
    """Every setting of `headrace serve`. A field's name is its TOML key; in upper case, after
    HEADRACE_, its environment variable; with dashes, its flag."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    models: list[pathlib.Path] = Field(
        min_length=1,
        description=".onnx files, model folders, or repositories of models; NAME=PATH calls one "
        "model NAME",
    )
    follow_links: bool = Field(
        default=False,
        description="models may be links, or hold links, that lead out of their repository",
    )
    operator_libraries: Annotated[list[pathlib.Path] | None, BeforeValidator(_split)] = Field(
        default=None,
        description="custom operators' libraries that models may name: files, and folders of them",
    )
    host: str = Field(default="127.0.0.1", description="address to listen on; 0.0.0.0 for all")
    grpc_port: int = Field(
        default=8001, ge=0, le=65535, description="port of gRPC; 0 takes a free one"
    )
    http_port: int = Field(
        default=8002,
        ge=0,
        le=65535,
        description="port of health and metrics over HTTP; 0 takes a free one",
    )
    provider: Literal["auto", "cpu", "cuda"] = Field(
        default="auto", description="where models run unless their own configuration says"
    )
    cache_dir: str = Field(
        default="auto",
        min_length=1,
        description="folder for what was measured of models, so that a restart need not measure "
        "again; auto: in the user's cache, off: nowhere",
    )
    grace_seconds: float = Field(
        default=30.0, ge=0, description="how long a stopping server may answer what it has accepted"
    )
    hang_seconds: float = Field(
        default=30.0,
        ge=0,
        description="a run that takes longer, and 20 times what was predicted, is given up with "
        "its executor, which is replaced; 0: never",
    )
    max_message_bytes: int = Field(
        default=256 << 20, ge=1 << 10, description="largest gRPC message accepted"
    )
    max_inflight_bytes: int | None = Field(
        default=None,
        ge=1,
        description="memory of all requests that are not answered yet, and as much again of "
        "answers that wait for their readers; unless said, a quarter of what the process may have, "
        "2 GiB at most",
    )
    max_tensor_elements: int = Field(default=1 << 28, ge=1, description="elements of one tensor")
    max_dimensions: int = Field(default=16, ge=1, le=64, description="dimensions of one tensor")
    max_parameters: int = Field(
        default=128, ge=1, description="parameters of a request, and of each of its tensors"
    )
    max_connection_calls: int = Field(
        default=16_384,
        ge=1,
        description="calls at once on one connection; more wait at their sender",
    )
    max_calls: int = Field(
        default=65_536,
        ge=1,
        description="calls at once on all connections, streams too, of grpcio; times "
        "max_message_bytes, that is what messages on their way in can hold",
    )
    max_caller_calls: int = Field(
        default=16_384, ge=1, description="inference requests at once of one caller"
    )
    max_caller_streams: int = Field(
        default=1_024, ge=1, description="open streams at once of one caller"
    )
    rpc_engine: Literal["auto", "grpcio", "native"] = Field(
        default="auto",
        description="what carries gRPC: native (an extra) costs less for each unary call; auto is "
        "grpcio",
    )
    front_processes: int = Field(
        default=0,
        ge=0,
        le=64,
        description="processes that share the gRPC port and hand requests to the one that runs "
        "models; 0: that one carries calls itself",
    )
    front_memory_bytes: int = Field(
        default=256 << 20,
        ge=1 << 16,
        description="memory that each front process shares with the one that runs models, for "
        "requests and as much again for responses",
    )
    tls_certificate: pathlib.Path | None = Field(
        default=None, description="PEM file of the server's certificate chain: turns on TLS on gRPC"
    )
    tls_key: pathlib.Path | None = Field(
        default=None, description="PEM file of the certificate's private key"
    )
    tls_client_ca: pathlib.Path | None = Field(
        default=None,
        description="PEM file of who signs clients' certificates: gRPC clients then must show one",
    )
    http_tls: bool = Field(
        default=False, description="the same certificate on the HTTP port, which asks for none"
    )
    access_file: pathlib.Path | None = Field(
        default=None, description="TOML file of who may call, and do what (docs/security.md)"
    )
    allow_control: bool = Field(
        default=False,
        description="loading, unloading and settings for all callers, though the server listens on "
        "more than loopback; access_file decides instead where there is one",
    )
    max_sessions: int = Field(default=10_000, ge=1, description="sensor stream sessions at once")
    max_connection_sessions: int = Field(
        default=2_000, ge=1, description="sensor stream sessions at once on one connection"
    )
    max_buffered_samples: int = Field(
        default=1 << 18,
        ge=2,
        description="samples of one session that may wait, each channel counted",
    )
    max_session_ttl: float = Field(
        default=600.0,
        ge=0,
        description="longest that a session may outlive its connection, seconds",
    )
    max_stream_bytes: int | None = Field(
        default=None,
        ge=1,
        description="memory of all sensor stream sessions for samples and results that wait; "
        "unless said, a quarter of what the process may have, 2 GiB at most",
    )
    max_state_bytes: int = Field(
        default=1 << 30,
        ge=1,
        description="recurrent state of all sessions and sequences, and sessions' constants, "
        "together",
    )
    sequence_idle_seconds: float = Field(
        default=60.0, gt=0, description="how long a sequence is kept that nobody continues"
    )
    log_format: Literal["auto", "human", "json"] = Field(
        default="auto", description="human on a terminal and JSON otherwise, unless said"
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        default="info", description="least severe message that is logged"
    )
    access_log: bool = Field(default=False, description="log a line for each call")
    telemetry: Literal["on", "off"] = Field(
        default="on", description="off: requests, batches and calls are not counted"
    )
    triton_metrics: bool = Field(
        default=False, description="metrics by Triton's names, nv_inference_*, beside our own"
    )

    @model_validator(mode="after")
    def _fit_together(self) -> Settings:
        lines = list(_misfits(self))
        if lines:
            raise PydanticCustomError("misfit", "{lines}", {"lines": "\n".join(lines)})
        return self


def _misfits(settings: Settings) -> Iterator[str]:
    """A line for each setting that does not go with another, or with what is there."""
    for path in settings.operator_libraries or ():
        if not path.exists():
            yield f"operator_libraries: no such file or folder: {path}"
    certificate, key = settings.tls_certificate, settings.tls_key
    if certificate is not None and key is None:
        yield "tls_key: expected the certificate's key, since tls_certificate is set, got nothing"
    if key is not None and certificate is None:
        yield "tls_certificate: expected the key's certificate, since tls_key is set, got nothing"
    encrypted = certificate is not None or key is not None
    if settings.tls_client_ca is not None and not encrypted:
        yield "tls_client_ca: expected tls_certificate and tls_key with it, got neither"
    if settings.http_tls and not encrypted:
        yield "http_tls: expected tls_certificate and tls_key with it, got neither"
    if encrypted and settings.rpc_engine == "native":
        yield (
            "rpc_engine, tls_certificate: the engine native has no TLS, expected rpc_engine to be "
            "grpcio or auto with tls_certificate, got native"
        )
    if settings.front_processes and sys.platform != "linux":
        yield f"front_processes: expected 0, since they need Linux, got {settings.front_processes}"


def load_settings(
    flags: Mapping[str, Any],
    file: pathlib.Path | None,
    environment: Mapping[str, str] = os.environ,
) -> Settings:
    """Merges the three sources. Raises ConfigurationError with a line for each wrong key.

    Where no `file` is given, HEADRACE_CONFIG may name it.
    """
    values: dict[str, Any] = {}
    origins: dict[str, str] = {}
    named, told = environment.get(_CONFIG), "--config"
    if file is None and named:
        file, told = pathlib.Path(named), _CONFIG
    if file is not None:
        found = _read(file, told)
        values.update(found)
        origins.update({name: f"{file}: {name}" for name in found})
    for name in Settings.model_fields:
        variable = PREFIX + name.upper()
        if variable in environment:
            text = environment[variable]
            values[name] = _paths(text) if name == "models" else text
            origins[name] = variable
    for name, value in flags.items():
        values[name] = value
        origins[name] = "MODEL" if name == "models" else f"--{name.replace('_', '-')}"
    try:
        return Settings.model_validate(values)
    except ValidationError as error:
        raise ConfigurationError("\n".join(_line(e, origins) for e in error.errors())) from None


def mistyped(environment: Mapping[str, str] = os.environ) -> Iterator[str]:
    """A line for each variable that is nearly a setting's. Others may begin alike: Kubernetes sets
    HEADRACE_PORT and more, where a service is called headrace."""
    known = [_CONFIG, *(PREFIX + name.upper() for name in Settings.model_fields)]
    for name in environment:
        if name.startswith(PREFIX) and name not in known:
            question = meant(name, known, cutoff=0.9)
            if question:
                yield f"{name}: no such setting, so it is not heeded{question}"


def _paths(text: str) -> list[str]:
    """An empty path would be the working directory, which nobody named."""
    return [path for path in text.split(os.pathsep) if path]


def _read(file: pathlib.Path, told: str) -> dict[str, Any]:
    try:
        return tomllib.loads(file.read_text())
    except OSError as error:
        raise ConfigurationError(f"{told}: cannot read {file}: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{told}: {file} is not TOML: {error}") from None


def _line(error: Any, origins: Mapping[str, str]) -> str:
    if not error["loc"]:  # of several settings together: each line names its own
        return str(error["msg"])
    key = str(error["loc"][0])
    if error["type"] == "missing":
        return f"{key}: nothing to serve, name at least one model"
    message = f"{error['msg'].lower()}, got {error['input']!r}"
    if error["type"] == "extra_forbidden":
        message = f"no such setting{meant(key, Settings.model_fields)}"
    where = ".".join([origins.get(key, key), *map(str, error["loc"][1:])])
    return f"{where}: {message}"
