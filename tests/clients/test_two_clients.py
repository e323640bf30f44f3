"""The asyncio client has what the other one has, under the same names."""

import inspect
from collections.abc import Callable
from typing import Any

import pytest

from headrace.client import AsyncClient, Client


def methods(kind: type) -> dict[str, Callable[..., Any]]:
    return {name: f for name, f in vars(kind).items() if not name.startswith("_")}


def test_both_have_the_same_methods() -> None:
    assert list(methods(Client)) == list(methods(AsyncClient))


@pytest.mark.parametrize("name", ["__init__", *methods(Client)])
def test_methods_take_the_same_arguments(name: str) -> None:
    ours, theirs = (inspect.signature(vars(kind)[name]) for kind in (Client, AsyncClient))
    for mine, other in zip(ours.parameters.values(), theirs.parameters.values(), strict=True):
        assert (mine.name, mine.kind, mine.default) == (other.name, other.kind, other.default)
        # The one difference: asyncio's requests may be an async iterable as well.
        assert mine.annotation == other.annotation or (name, mine.name) == (
            "infer_stream",
            "requests",
        )
