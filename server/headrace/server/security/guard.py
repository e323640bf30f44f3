"""The one check that every way into the server asks before it does anything for a caller."""

from __future__ import annotations

import ipaddress
from collections.abc import Callable

from headrace.server.errors import PermissionDenied, Unauthenticated
from headrace.server.security.access import ALL_MODELS, Identities, Kind, Shown
from headrace.server.security.reload import Reloaded

NOTHING = Shown()


def nothing_shown() -> Shown:
    return NOTHING


class Guard:
    """identities: None lets everybody do everything, but for control, which is then for all or none
    as `control` says."""

    def __init__(self, identities: Reloaded[Identities] | None = None, *, control: bool = True):
        self._identities = identities
        self._control = control

    def check(self, kind: Kind, model: str | None, shown: Callable[[], Shown]) -> str:
        """Who calls, by name; "" where identities are not asked for.

        `model`: in the caller's words, None for a call that concerns none, ALL_MODELS for one that
        concerns all. `shown` gives what the call shows, and is asked only where it matters. Raises
        Unauthenticated, PermissionDenied; neither depends on which models there are.
        """
        if self._identities is None:
            if kind == "control" and not self._control:
                raise PermissionDenied(
                    "control (loading, unloading, settings): not allowed, since the server listens "
                    "on more than loopback; allow_control allows it to all, access_file to some"
                )
            return ""
        seen = shown()
        identity = self._identities.current().find(seen)
        if identity is None:
            raise Unauthenticated(
                "metadata 'authorization': expected 'Bearer <token>' with a token that is known, "
                f"or a client certificate that is, got {_got(seen)}"
            )
        if not identity.may(kind, model):
            raise PermissionDenied(f"{kind}{_of(model)}: not allowed for '{identity.name}'")
        return identity.name


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches what listens on `host`."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:  # a name that may be anything
        return False


def _got(shown: Shown) -> str:
    if shown.token is not None:
        return "an unknown token"
    return "an unknown certificate" if shown.names else "neither"


def _of(model: str | None) -> str:
    if model is None:
        return ""
    return " of all models" if model == ALL_MODELS else f" of model '{model}'"
