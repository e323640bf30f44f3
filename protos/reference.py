"""The protocol's reference as one HTML page, from protoc's descriptors and the comments in them."""

from __future__ import annotations

import html
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence

from google.protobuf.descriptor_pb2 import (
    DescriptorProto,
    EnumDescriptorProto,
    FieldDescriptorProto,
    FileDescriptorProto,
    FileDescriptorSet,
    ServiceDescriptorProto,
)

# Where things lie in a descriptor: the field numbers of descriptor.proto that make up a path.
_SYNTAX, _MESSAGE, _ENUM, _SERVICE = 12, 4, 5, 6
_FIELD, _NESTED, _NESTED_ENUM = 2, 3, 4
_VALUE = _METHOD = 2

Path = tuple[int, ...]

_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; }
h1, h2 { line-height: 1.2; } h2 { border-bottom: 1px solid #8884; padding-top: 1rem; }
h3 { margin: 2rem 0 .3rem; font-family: ui-monospace, monospace; font-size: 1rem; }
p { margin: .3rem 0; max-width: 46rem; } pre, code { font: .9em/1.45 ui-monospace, monospace; }
pre { overflow-x: auto; background: #8881; padding: .7rem; }
table { border-collapse: collapse; width: 100%; margin: .5rem 0; }
td, th { text-align: left; vertical-align: top; padding: .3rem .8rem .3rem 0;
  border-top: 1px solid #8883; } td:nth-child(1) { width: 2.5rem; }
td:nth-child(2), td:nth-child(3) { width: 14rem; overflow-wrap: anywhere; }
nav li { display: inline-block; margin-right: 1rem; } nav ul { padding: 0; }
:root { color-scheme: light dark; }
"""


def render(descriptors: FileDescriptorSet) -> str:
    """The page. Files without a comment of their own and without a service come last."""
    files = sorted(descriptors.file, key=lambda file: (not file.service, file.name))
    pages = [_File(file) for file in files]
    body = "\n".join(part for page in pages for part in page.parts())
    links = "".join(f'<li><a href="#{_id(page.name)}">{page.name}</a></li>' for page in pages)
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width">\n'
        f"<title>Protocol reference</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n"
        "<h1>Protocol reference</h1>\n"
        "<p>Made from the files under <code>protos/</code> by <code>make protos</code>.</p>\n"
        f"<nav><ul>{links}</ul></nav>\n{body}\n</body>\n</html>\n"
    )


class _File:
    """One .proto file, with its comments by the path of what they are about."""

    def __init__(self, file: FileDescriptorProto) -> None:
        self.name = file.name
        self._file = file
        self._comments: Mapping[Path, str] = {
            tuple(place.path): place.leading_comments or place.trailing_comments
            for place in file.source_code_info.location
        }
        # What stands above `syntax`, whether or not a blank line follows it.
        syntax = [p for p in file.source_code_info.location if tuple(p.path) == (_SYNTAX,)]
        self._about = "\n\n".join(
            text for p in syntax for text in (*p.leading_detached_comments, p.leading_comments)
        )

    def parts(self) -> Iterator[str]:
        file = self._file
        yield f'<h2 id="{_id(file.name)}">{file.name}</h2>'
        yield f"<p>package <code>{file.package}</code></p>{_prose(self._about)}"
        for index, service in enumerate(file.service):
            yield from self._service(service, (_SERVICE, index))
        for index, enum in enumerate(file.enum_type):
            yield from self._enum(enum, file.package, (_ENUM, index))
        for index, message in enumerate(file.message_type):
            yield from self._message(message, file.package, (_MESSAGE, index))

    def _service(self, service: ServiceDescriptorProto, path: Path) -> Iterator[str]:
        yield self._heading("service", f"{self._file.package}.{service.name}", path)
        rows = []
        for index, method in enumerate(service.method):
            sent, got = (
                ("stream " if streams else "") + _link(kind)
                for kind, streams in (
                    (method.input_type, method.client_streaming),
                    (method.output_type, method.server_streaming),
                )
            )
            comment = _prose(self._comments.get((*path, _METHOD, index), ""))
            rows.append(("", f"<code>{method.name}</code>", f"{sent}<br>→ {got}", comment))
        yield _table(rows)

    def _enum(self, enum: EnumDescriptorProto, scope: str, path: Path) -> Iterator[str]:
        yield self._heading("enum", f"{scope}.{enum.name}", path)
        yield _table(
            (
                str(value.number),
                f"<code>{value.name}</code>",
                "",
                _prose(self._comments.get((*path, _VALUE, index), "")),
            )
            for index, value in enumerate(enum.value)
        )

    def _message(self, message: DescriptorProto, scope: str, path: Path) -> Iterator[str]:
        name = f"{scope}.{message.name}"
        yield self._heading("message", name, path)
        entries = {n.name: n for n in message.nested_type if n.options.map_entry}
        yield _table(
            (
                str(field.number),
                f"<code>{field.name}</code>",
                _type(field, entries),
                _choice(field, message) + _prose(self._comments.get((*path, _FIELD, index), "")),
            )
            for index, field in enumerate(message.field)
        )
        for index, enum in enumerate(message.enum_type):
            yield from self._enum(enum, name, (*path, _NESTED_ENUM, index))
        for index, nested in enumerate(message.nested_type):
            if nested.name not in entries:
                yield from self._message(nested, name, (*path, _NESTED, index))

    def _heading(self, kind: str, name: str, path: Path) -> str:
        comment = _prose(self._comments.get(path, ""))
        return f'<h3 id="{_id(name)}">{kind} {name}</h3>{comment}'


def _type(field: FieldDescriptorProto, entries: Mapping[str, DescriptorProto]) -> str:
    entry = entries.get(field.type_name.rsplit(".", 1)[-1])
    if entry is not None:
        key, value = entry.field
        return f"map&lt;{_type(key, {})}, {_type(value, {})}&gt;"
    if field.type_name:
        name = _link(field.type_name)
    else:
        name = FieldDescriptorProto.Type.Name(field.type).removeprefix("TYPE_").lower()
    if field.label == FieldDescriptorProto.LABEL_REPEATED:
        return f"repeated {name}"
    return f"optional {name}" if field.proto3_optional else name


def _choice(field: FieldDescriptorProto, message: DescriptorProto) -> str:
    if not field.HasField("oneof_index") or field.proto3_optional:
        return ""
    return f"<p><i>one of</i> <code>{message.oneof_decl[field.oneof_index].name}</code></p>"


def _link(name: str) -> str:
    full = name.removeprefix(".")
    return f'<a href="#{_id(full)}">{full.rsplit(".", 1)[-1]}</a>'


def _id(name: str) -> str:
    return name.replace("/", "-")


def _prose(comment: str) -> str:
    """Paragraphs; what is indented stays as it is."""
    blocks = re.split(r"\n\s*\n", comment.strip("\n"))
    return "".join(_block(block) for block in blocks if block.strip())


def _block(block: str) -> str:
    lines = [line.removeprefix(" ") for line in block.split("\n")]
    if lines[0].startswith("  "):
        return f"<pre>{html.escape(chr(10).join(lines))}</pre>"
    text = html.escape(" ".join(line.strip() for line in lines), quote=False)
    return "<p>" + re.sub(r"`([^`]+)`", r"<code>\1</code>", text) + "</p>"


def _table(rows: Iterable[Sequence[str]]) -> str:
    cells = ["".join(f"<td>{cell}</td>" for cell in row) for row in rows]
    if not cells:
        return "<p><i>no fields</i></p>"
    return "<table>\n" + "\n".join(f"<tr>{row}</tr>" for row in cells) + "\n</table>"
