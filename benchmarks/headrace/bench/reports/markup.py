"""HTML and SVG as text that is escaped by construction: what is not Markup is data."""

from __future__ import annotations

import html
import re

# Neither HTML nor XML has a way to write these, not even escaped.
_UNWRITABLE = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_VOID = frozenset({"meta", "br", "wbr"})

Value = str | int | float | bool | None


class Markup(str):
    """Text that is markup already."""

    __slots__ = ()


Child = str | None


def escape(text: str) -> Markup:
    return Markup(html.escape(_UNWRITABLE.sub("\ufffd", text), quote=True))


def join(*children: Child) -> Markup:
    """Concatenates: Markup as it is, text escaped, None left out."""
    parts = (c if isinstance(c, Markup) else escape(c) for c in children if c is not None)
    return Markup("".join(parts))


def element(name: str, /, *children: Child, **attributes: Value) -> Markup:
    """`<name attributes>children</name>`. An attribute of None or False is left out; in its name
    `_` stands for `-`, and a trailing one (`class_`) falls away. Numbers are rounded to 0.1."""
    written = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{_attribute(value)}"'
        for key, value in attributes.items()
        if value is not None and value is not False
    )
    if name in _VOID:
        return Markup(f"<{name}{written}>")
    return Markup(f"<{name}{written}>{join(*children)}</{name}>")


def _attribute(value: Value) -> str:
    if value is True:
        return ""
    if isinstance(value, float):
        return f"{round(value, 1):g}" if abs(value) < 1e5 else f"{value:.0f}"
    return escape(str(value))
