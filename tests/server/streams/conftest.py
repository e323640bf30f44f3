from __future__ import annotations

from typing import Any, cast

from headrace.server.models.registry import Registry
from headrace.server.models.served import ServedModel
from headrace.server.models.states import StateDeclaration

STATES = (StateDeclaration("state", "stateN", 1),)


class OneModel:
    """A registry of one model, whatever name is asked for; or of an error."""

    def __init__(self, model: ServedModel) -> None:
        self.model = model
        self.error: Exception | None = None

    def get(self, name: str, version: str = "") -> ServedModel:
        if self.error is not None:
            raise self.error
        return self.model


def registry(model: Any) -> Registry:
    return cast(Registry, OneModel(model))
