"""Libraries of custom operators: which of them a model may have loaded.

A library's code runs in the server's process, so it is the operator of the server who says which
there are, and never a model.
"""

from __future__ import annotations

import pathlib
from collections.abc import Sequence
from dataclasses import dataclass

from headrace.server.errors import LoadFailed


@dataclass(frozen=True, slots=True)
class OperatorLibraries:
    """allowed: files, and folders in which every file is."""

    allowed: Sequence[pathlib.Path] = ()

    def find(self, names: Sequence[str]) -> tuple[pathlib.Path, ...]:
        """The libraries that a configuration names, by path or by file name alone.

        Raises LoadFailed for one that is not allowed, or not there.
        """
        return tuple(self._find(name) for name in names)

    def _find(self, name: str) -> pathlib.Path:
        for allowed in self.allowed:
            root = allowed.resolve()
            if not root.is_dir():
                if name == allowed.name or _same(name, root):
                    return root
                continue
            found = (root / name).resolve()
            if found.is_relative_to(root) and found.is_file():
                return found
        raise LoadFailed(
            "operator_libraries (model_operations.op_library_filename): the code of a library of "
            "custom operators would run in this process; expected one that the server's setting "
            f"operator_libraries allows, got '{name}'"
        )


def _same(name: str, file: pathlib.Path) -> bool:
    path = pathlib.Path(name)
    return path.is_absolute() and path.resolve() == file
