"""Who may do what: the file of identities, and what it says of one call.

    [[identity]]
    name = "sensors"
    token_sha256 = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0bbe4bd3e0a9f1f9d4f3a2"
    models = ["vad-*"]
    calls = ["infer", "stream"]

    [[identity]]
    name = "operators"
    certificate = "ops.example"
    calls = ["read", "control"]

A token is known by its digest alone: whoever reads the file cannot use what is in it.
"""

from __future__ import annotations

import hashlib
import hmac
import pathlib
import tomllib
from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from headrace.server.errors import ConfigurationError

Kind = Literal["infer", "stream", "read", "control"]
# Said of a call that concerns every model.
ALL_MODELS = "*"
_LONGEST_NAME = 128


class Shown(NamedTuple):
    """What a call shows of who makes it.

    token: the SHA-256 digest of its bearer token; None when it has none. names: of the client's
    certificate, which has been verified: its subject, common name and alternative names.
    """

    token: bytes | None = None
    names: Sequence[str] = ()


class Identity(BaseModel):
    """One who may call, known by a token or by a name in the client's certificate."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(min_length=1, max_length=_LONGEST_NAME)
    token_sha256: str | None = Field(default=None, pattern="^[0-9a-fA-F]{64}$")
    certificate: str | None = Field(default=None, min_length=1)
    models: list[str] = Field(default=[ALL_MODELS], min_length=1)
    calls: list[Kind] = Field(min_length=1)

    @model_validator(mode="after")
    def _known_by_something(self) -> Identity:
        if self.token_sha256 is None and self.certificate is None:
            raise ValueError("expected token_sha256, certificate or both, got neither")
        return self

    def may(self, kind: Kind, model: str | None) -> bool:
        """`model`: None for a call that concerns none, ALL_MODELS for one that concerns all."""
        if kind not in self.calls:
            return False
        if model is None:
            return True
        if model == ALL_MODELS:  # a pattern must not be taken for the name of one model
            return ALL_MODELS in self.models
        return any(fnmatchcase(model, pattern) for pattern in self.models)


class _File(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    identity: list[Identity] = Field(min_length=1)


class Identities:
    """Those of one state of the file."""

    def __init__(self, identities: Sequence[Identity]) -> None:
        self._by_token = [
            (bytes.fromhex(one.token_sha256), one) for one in identities if one.token_sha256
        ]
        self._by_certificate = {one.certificate: one for one in identities if one.certificate}

    def find(self, shown: Shown) -> Identity | None:
        """Who shows this. A token counts alone: no certificate makes up for an unknown one."""
        if shown.token is not None:
            found = None
            for digest, identity in self._by_token:  # all of them, so that time tells nothing
                if hmac.compare_digest(digest, shown.token):
                    found = identity
            return found
        return next(
            (self._by_certificate[name] for name in shown.names if name in self._by_certificate),
            None,
        )


def digest_of(authorization: str | None) -> bytes | None:
    """The digest of the token in an `authorization` header; None when there is none in it."""
    scheme, _, token = (authorization or "").strip().partition(" ")
    if scheme.lower() != "bearer" or not token.strip():
        return None
    return hashlib.sha256(token.strip().encode()).digest()


def read_identities(file: pathlib.Path) -> Identities:
    """Raises ConfigurationError with a line for each thing that is wrong, the key first."""
    try:
        values = tomllib.loads(file.read_text())
    except OSError as error:
        raise ConfigurationError(f"access_file: cannot read {file}: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"access_file: {file} is not TOML: {error}") from None
    try:
        identities = _File.model_validate(values).identity
    except ValidationError as error:
        # Not what was there instead: it may be a token, put where its digest belongs.
        lines = [f"{'.'.join(map(str, e['loc']))}: {e['msg'].lower()}" for e in error.errors()]
        raise ConfigurationError("\n".join(f"access_file: {file}: {x}" for x in lines)) from None
    for field in ("name", "token_sha256", "certificate"):
        values_ = [getattr(one, field) for one in identities if getattr(one, field)]
        if len({value.lower() for value in values_}) != len(values_):
            raise ConfigurationError(
                f"access_file: {file}: {field}: expected each identity to have its own, got one "
                "twice"
            )
    return Identities(identities)
