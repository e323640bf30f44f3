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

# By these metadata a front process says whose certificate it has seen; callers cannot, since it
# passes on none of theirs that begin so.
FRONT_PREFIX = "headrace-front-"
FRONT_NAMES = "headrace-front-names-bin"
_fronts_vouch = False

_NAMES = ("x509_subject", "x509_common_name", "x509_subject_alternative_name")


def shown_in(metadata: Metadata | None, names: tuple[str, ...] = ()) -> Shown:
    """By the call's metadata and the `names` in its client's certificate."""
    for key, value in metadata or ():
        if key == "authorization":
            text = value if isinstance(value, str) else value.decode(errors="replace")
            return Shown(digest_of(text), names)
    return Shown(None, names)


def trust_fronts() -> None:
    """From now on believe what FRONT_NAMES say: only front processes reach this process."""
    global _fronts_vouch
    _fronts_vouch = True


def names_of(context: Context) -> tuple[str, ...]:
    """The names in the client's certificate, which has been verified; none without one."""
    if _fronts_vouch:
        for key, value in context.invocation_metadata() or ():
            if key == FRONT_NAMES and isinstance(value, bytes):
                return tuple(value.decode().split("\0"))
    properties: Any = context.auth_context()
    return tuple(
        value.decode(errors="replace") for key in _NAMES for value in properties.get(key, ())
    )


def shown_by(context: Context) -> Shown:
    metadata: Any = context.invocation_metadata()
    return shown_in(metadata, names_of(context))


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
