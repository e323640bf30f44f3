"""What is told of keys of a configuration that are wrong."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from typing import Any, Final

from pydantic import ValidationError

from headrace.server.mistyped import meant

# In TOML's words, where pydantic has Python's.
_EXPECTED: Final = {
    "list_type": "an array",
    "tuple_type": "an array",
    "model_type": "a table",
    "int_type": "a whole number",
    "float_type": "a number",
    "string_type": "text",
    "bool_type": "true or false",
}


def wrong_keys(error: ValidationError, known: Callable[[str], Iterable[str]]) -> str:
    """Every key that is wrong, what was expected of it and what came. known: the keys of a table,
    by its name; of the outermost by an empty one."""
    return "; ".join(dict.fromkeys(_line(details, known) for details in error.errors()))


def _line(error: Any, known: Callable[[str], Iterable[str]]) -> str:
    key, *rest = error["loc"]
    if error["type"] == "extra_forbidden":
        where = ".".join(map(str, error["loc"]))
        return f"{where}: no such key{meant(str(error['loc'][-1]), known(key if rest else ''))}"
    # Of what may be one thing or another there is an error for each, with its type in the place.
    parts = (part for part in rest if isinstance(part, int) or "[" not in part)
    where = ".".join(map(str, (key, *parts)))
    if error["type"] == "missing":
        return f"{where}: required, and not there"
    said = error["msg"].replace("Input should be", "", 1).strip()
    got = json.dumps(error["input"], default=str, ensure_ascii=False)
    return f"{where}: expected {_EXPECTED.get(error['type'], said)}, got {got}"
