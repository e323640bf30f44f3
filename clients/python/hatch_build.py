"""Brings the protocol's Python files, which lie in protos/python, into what is built here."""

from __future__ import annotations

import pathlib
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

PROTOCOL = pathlib.Path("../../protos/python/headrace")


class ProtocolFiles(BuildHookInterface):  # type: ignore[type-arg]
    """In a source distribution they lie in place already, and there is nothing to do."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        found = pathlib.Path(self.root) / PROTOCOL
        if found.is_dir():
            build_data["force_include"][str(found.resolve())] = "headrace"
