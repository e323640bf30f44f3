"""What a model's files may point at: nothing outside the repository.

A model comes from elsewhere. Its folder may hold links, and an ONNX file may name others that hold
its tensors (onnx.proto, TensorProto.external_data): both are followed by whoever reads the model.
"""

from __future__ import annotations

import mmap
import pathlib
from collections.abc import Iterator
from typing import Any

from headrace.server.errors import LoadFailed

# Messages of onnx.proto that lie on the way to a tensor: by their fields' numbers, what is in them.
_NESTED: dict[str, dict[int, str]] = {
    "model": {7: "graph", 20: "training", 25: "function"},
    "training": {1: "graph", 2: "graph"},
    "function": {7: "node", 11: "attribute"},
    "graph": {1: "node", 5: "tensor", 15: "sparse tensor"},
    "node": {5: "attribute"},
    "attribute": {
        5: "tensor", 6: "graph", 10: "tensor", 11: "graph",
        22: "sparse tensor", 23: "sparse tensor",
    },
    "sparse tensor": {1: "tensor", 2: "tensor"},
    "tensor": {13: "entry"},
}  # fmt: skip
_KEY, _VALUE = 1, 2
_LONGEST_VARINT = 10


def check_links(folder: pathlib.Path, root: pathlib.Path) -> None:
    """Raises LoadFailed for a link in `folder`, or anywhere it leads, that leads out of `root`."""
    root = root.resolve()
    seen: set[pathlib.Path] = set()
    pending = [folder]
    while pending:
        path = pending.pop()
        target = path.resolve()
        if not target.is_relative_to(root):
            raise LoadFailed(
                f"{path.relative_to(folder.parent)}: expected files within the repository, got a "
                "link that leads out of it (follow_links allows that)"
            )
        if target not in seen:
            seen.add(target)
            if target.is_dir():
                pending += path.iterdir()


def check_external_data(file: pathlib.Path, root: pathlib.Path | None) -> None:
    """Raises LoadFailed when the ONNX model in `file` has tensors outside its folder, or, where
    links lead, of `root`; and for what is no ONNX model."""
    try:
        locations = set(external_data(file))
    except (IndexError, ValueError) as error:
        raise LoadFailed(f"{file.name}: is not an ONNX model, or cut off: {error}") from error
    for location in sorted(locations):
        path = pathlib.PurePosixPath(location.replace("\\", "/"))
        inside = not path.is_absolute() and ".." not in path.parts and "\0" not in location
        if inside and root is not None:
            inside = (file.parent / path).resolve().is_relative_to(root.resolve())
        if not inside:
            raise LoadFailed(
                f"{file.name}: external_data: expected a file in the model's folder, got "
                f"'{location}'"
            )


def external_data(file: pathlib.Path) -> Iterator[str]:
    """The locations that tensors of the ONNX model in `file` name, in no order.

    Only what leads to them is read, not the tensors. Raises IndexError, ValueError for what is not
    well formed.
    """
    with file.open("rb") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as data:
        pending = [("model", 0, len(data))]
        while pending:
            kind, start, end = pending.pop()
            if kind == "entry":
                entry = {number: data[a:b] for number, a, b in _fields(data, start, end)}
                if entry.get(_KEY) == b"location":
                    yield entry.get(_VALUE, b"").decode()
                continue
            nested = _NESTED[kind]
            pending += [
                (nested[number], a, b)
                for number, a, b in _fields(data, start, end)
                if number in nested
            ]


def _fields(data: Any, at: int, end: int) -> Iterator[tuple[int, int, int]]:
    """Number, start and end of each length-delimited field of a message."""
    while at < end:
        tag, at = _varint(data, at)
        if tag >> 32:  # some readers would take the rest for a tag, and find other fields than here
            raise ValueError("a tag of more than 32 bits")
        kind = tag & 7
        if kind == 2:
            length, at = _varint(data, at)
            if at + length <= end:
                yield tag >> 3, at, at + length
            at += length
        elif kind == 0:
            _, at = _varint(data, at)
        elif kind in (1, 5):
            at += 8 if kind == 1 else 4
        else:
            raise ValueError(f"wire type {kind}")
    if at != end:
        raise ValueError("a field is longer than what holds it")


def _varint(data: Any, at: int) -> tuple[int, int]:
    value = 0
    for place in range(_LONGEST_VARINT):
        byte = data[at + place]
        value |= (byte & 0x7F) << 7 * place
        if byte < 0x80:
            return value, at + place + 1
    raise ValueError("a number is longer than ten bytes")
