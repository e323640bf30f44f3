"""Which engine carries calls."""

from __future__ import annotations

import importlib.util

import pytest

from headrace.server.errors import ConfigurationError
from headrace.server.rpc.engine import choose


def test_nobody_gets_the_native_engine_unasked() -> None:
    assert choose("auto") == choose("grpcio") == "grpcio"


def test_the_native_engine_must_be_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: object())
    assert choose("native") == "native"
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(ConfigurationError, match=r"rpc_engine: .*headrace\[fast\]"):
        choose("native")
