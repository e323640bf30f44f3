"""What calls show of who makes them, and which kind of call each unary method is."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import grpc

from headrace.server.security.access import ALL_MODELS, Kind, Shown, digest_of
from headrace.server.telemetry.sampling import Metadata

if TYPE_CHECKING:
    Context = grpc.aio.ServicerContext[Any, Any]
else:
    Context = grpc.aio.ServicerContext

# The kind of a call, and the model that it concerns: None for none, ALL_MODELS for all.
Asked = tuple[Kind, str | None]

_NAMES = ("x509_subject", "x509_common_name", "x509_subject_alternative_name")


def shown_in(metadata: Metadata | None, names: tuple[str, ...] = ()) -> Shown:
    """By the call's metadata and the `names` in its client's certificate."""
    for key, value in metadata or ():
        if key == "authorization":
            text = value if isinstance(value, str) else value.decode(errors="replace")
            return Shown(digest_of(text), names)
    return Shown(None, names)


def shown_by(context: Context) -> Shown:
    properties: Any = context.auth_context()
    names = tuple(
        value.decode(errors="replace") for key in _NAMES for value in properties.get(key, ())
    )
    metadata: Any = context.invocation_metadata()
    return shown_in(metadata, names)


def asked_by(method: str, request: Any) -> Asked | None:
    """What a unary call asks for; None for what is open to all: health."""
    by_name = _BY_NAME.get(method)
    return ("read", None) if by_name is None else by_name(request)


def _read_one(request: Any) -> Asked:
    return "read", request.name


def _control(request: Any) -> Asked:
    # KServe's form has the name in the other field: `control._model_of`.
    return "control", request.model_name or request.repository_name


def _settings(request: Any) -> Asked:
    """Settings are read by a request that names none."""
    model = getattr(request, "model_name", "") or ALL_MODELS
    return ("control", model) if request.settings else ("read", model)


_BY_NAME: dict[str, Callable[[Any], Asked | None]] = {
    "ServerLive": lambda _: None,
    "ServerReady": lambda _: None,
    "ModelReady": _read_one,
    "ModelMetadata": _read_one,
    "ModelConfig": _read_one,
    "ModelStatistics": lambda request: ("read", request.name or ALL_MODELS),
    "RepositoryIndex": lambda _: ("read", ALL_MODELS),
    "RepositoryModelLoad": _control,
    "RepositoryModelUnload": _control,
    "LogSettings": _settings,
    "TraceSetting": _settings,
}
