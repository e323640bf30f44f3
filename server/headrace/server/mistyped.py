"""What somebody meant who wrote a name that nobody knows."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def meant(name: str, known: Iterable[str], cutoff: float = 0.6) -> str:
    """A question to put behind an error, empty where nothing known is like `name`."""
    near = difflib.get_close_matches(name, list(known), n=1, cutoff=cutoff)
    return f" (is {near[0]} meant?)" if near else ""
