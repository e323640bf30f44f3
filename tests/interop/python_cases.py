"""What the Python client's interop cases have in common."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from headrace.client import AsyncClient, HeadraceError, RetryPolicy

NEVER_AGAIN = RetryPolicy(max_attempts=1)


@dataclass(frozen=True)
class Env:
    """The server. `cut_address` breaks connections."""

    address: str
    cut_address: str

    def client(self, **options: Any) -> AsyncClient:
        return AsyncClient(self.address, **options)


Case = Callable[[Env, AsyncClient], Awaitable[None]]


@dataclass
class Cases:
    """A decorator that collects cases by their functions' names."""

    named: dict[str, Case] = field(default_factory=dict)

    def __call__(self, function: Case) -> Case:
        self.named[function.__name__] = function
        return function


def equal(got: Any, expected: Any) -> None:
    """Bit for bit, datatype and shape included."""
    assert got.dtype == expected.dtype, (got.dtype, expected.dtype)
    assert got.shape == expected.shape, (got.shape, expected.shape)
    same = got.tolist() == expected.tolist() if got.dtype == object else None
    assert same or got.tobytes() == expected.tobytes(), (got, expected)


async def refused(
    call: Awaitable[Any], kind: type[HeadraceError], reason: str, *words: str
) -> HeadraceError:
    """The error of a call that must fail so, with these words in its message."""
    try:
        answer = await call
    except kind as error:
        assert error.reason == reason, error
        missing = [word for word in words if word not in error.details]
        assert not missing, (missing, error.details)
        return error
    raise AssertionError(f"this was answered: {answer}")


def lab(steps: int = 0, index: int = 0, value: float = 1.0) -> dict[str, Any]:
    """Inputs of one row for a `lab` model, whose answer is y = [[2 value + 1]]."""
    return {
        "x": np.array([[value]], np.float32),
        "steps": np.array([steps], np.int64),
        "index": np.array([index], np.int64),
    }
