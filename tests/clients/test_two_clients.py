"""The asyncio client has what the other one has, under the same names."""

import inspect
from collections.abc import Callable
from typing import Any

import numpy as np
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


@pytest.mark.parametrize("address", ["http://127.0.0.1:8001", "https://127.0.0.1:8001/"])
async def test_an_address_is_not_that_of_a_web_page(address: str) -> None:
    for kind in (Client, AsyncClient):
        with pytest.raises(ValueError, match=r"leave out https?://.*'127.0.0.1:8001'"):
            kind(address)


def test_a_stream_that_was_not_opened_says_so() -> None:
    samples = np.ones(8, np.float32)
    with Client("127.0.0.1:1") as client:
        stream = client.stream("model", window=4, sample_rate=100)
        with pytest.raises(RuntimeError, match="not open"):
            stream.send(samples)
        with pytest.raises(RuntimeError, match="not open"):
            list(stream.run([samples]))
        with pytest.raises(RuntimeError, match="not open"):
            stream.close()


async def test_an_asyncio_stream_that_was_not_opened_says_so() -> None:
    samples = np.ones(8, np.float32)
    async with AsyncClient("127.0.0.1:1") as client:
        stream = client.stream("model", window=4, sample_rate=100)
        with pytest.raises(RuntimeError, match="not open"):
            await stream.send(samples)
        with pytest.raises(RuntimeError, match="not open"):
            async for _ in stream.run([samples]):
                pass
        with pytest.raises(RuntimeError, match="not open"):
            await stream.close()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"channel": "tls"}, "channel: expected ChannelOptions, got 'tls'"),
        ({"retry": 3}, "retry: expected RetryPolicy, got 3"),
        ({"headers": ["a"]}, r"headers: expected values by name, got \['a'\]"),
    ],
)
async def test_a_client_is_made_of_what_it_says(arguments: dict[str, Any], said: str) -> None:
    for kind in (Client, AsyncClient):
        with pytest.raises(TypeError, match=said):
            kind("127.0.0.1:1", **arguments)


async def test_a_client_that_is_closed_says_so() -> None:
    client, other = Client("127.0.0.1:1"), AsyncClient("127.0.0.1:1")
    client.close()
    await other.close()
    with pytest.raises(RuntimeError, match="this Client is closed"):
        client.server_live()
    with pytest.raises(RuntimeError, match="this Client is closed"):
        next(client.infer_stream([]))
    with pytest.raises(RuntimeError, match="this Client is closed"):
        client.stream("m", window=4, sample_rate=100)
    with pytest.raises(RuntimeError, match="this AsyncClient is closed"):
        await other.server_live()
    with pytest.raises(RuntimeError, match="this AsyncClient is closed"):
        await anext(other.infer_stream([]))
    with pytest.raises(RuntimeError, match="this AsyncClient is closed"):
        other.stream("m", window=4, sample_rate=100)
