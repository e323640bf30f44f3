"""Flags over environment over file; everything wrong is told at once, by key and origin."""

from __future__ import annotations

import os
import pathlib
from typing import Any

import pytest

from headrace.server.config import Settings, load_settings, mistyped
from headrace.server.errors import ConfigurationError

MODELS = {"models": [pathlib.Path("m.onnx")]}


@pytest.fixture
def file(tmp_path: pathlib.Path) -> pathlib.Path:
    return tmp_path / "headrace.toml"


def wrong(
    flags: dict[str, Any], file: pathlib.Path | None = None, environment: Any = None
) -> list[str]:
    with pytest.raises(ConfigurationError) as caught:
        load_settings(flags, file, environment or {})
    return sorted(str(caught.value).splitlines())


def test_defaults() -> None:
    settings = load_settings(MODELS, None, {})
    assert settings == Settings.model_validate(MODELS)
    assert (settings.host, settings.grpc_port, settings.http_port) == ("127.0.0.1", 8001, 8002)


def test_flags_over_environment_over_file(file: pathlib.Path) -> None:
    file.write_text("grpc_port = 1\nhttp_port = 2\ngrace_seconds = 3\nmodels = ['a']")
    environment = {"HEADRACE_HTTP_PORT": "20", "HEADRACE_GRACE_SECONDS": "30"}
    settings = load_settings({"grace_seconds": "300"}, file, environment)
    assert (settings.grpc_port, settings.http_port, settings.grace_seconds) == (1, 20, 300.0)
    assert settings.models == [pathlib.Path("a")]


def test_several_models_in_the_environment() -> None:
    settings = load_settings({}, None, {"HEADRACE_MODELS": os.pathsep.join(["a", "b"])})
    assert settings.models == [pathlib.Path("a"), pathlib.Path("b")]


def test_the_environment_of_others_is_left_alone() -> None:
    load_settings(MODELS, None, {"PATH": "/bin", "HEADRACE": "x", "host": "y"})


def test_a_variable_that_is_nearly_a_settings_is_told() -> None:
    environment = {
        "HEADRACE_GRPC_PROT": "1",
        "HEADRACE_GRPC_PORT": "2",
        "HEADRACE_PORT": "tcp://10.0.0.1:8001",  # of Kubernetes, for a service called headrace
        "HEADRACE_SERVICE_PORT_GRPC": "8001",
        "HEADRACE_PORT_8001_TCP_PROTO": "tcp",
    }
    (line,) = mistyped(environment)
    assert line.startswith("HEADRACE_GRPC_PROT: ")
    assert line.endswith("(is HEADRACE_GRPC_PORT meant?)")


def test_all_errors_at_once_each_with_its_key_and_origin(file: pathlib.Path) -> None:
    file.write_text("grpc_port = 70000\nhots = 'x'\n[table]\nkey = 1")
    environment = {"HEADRACE_HTTP_PORT": "many", "HEADRACE_LOG_FORMAT": "xml"}
    lines = wrong({"grace_seconds": "-1", **MODELS}, file, environment)
    expected = {
        "--grace-seconds: ": "got '-1'",
        "HEADRACE_HTTP_PORT: ": "got 'many'",
        "HEADRACE_LOG_FORMAT: ": "'auto', 'human' or 'json', got 'xml'",
        f"{file}: grpc_port: ": "less than or equal to 65535, got 70000",
        f"{file}: hots: ": "no such setting (is host meant?)",
        f"{file}: table: ": "no such setting",
    }
    assert len(lines) == len(expected)
    for line, (start, end) in zip(lines, sorted(expected.items()), strict=True):
        assert line.startswith(start)
        assert line.endswith(end)


def test_a_key_is_only_wrong_where_it_counts(file: pathlib.Path) -> None:
    file.write_text("grpc_port = 'wrong'")
    assert load_settings({**MODELS, "grpc_port": "5"}, file, {}).grpc_port == 5


def test_nothing_to_serve() -> None:
    assert wrong({}) == ["models: nothing to serve, name at least one model"]


def test_no_models_in_the_file(file: pathlib.Path) -> None:
    file.write_text("models = []")
    (line,) = wrong({}, file)
    assert line.startswith(f"{file}: models: ")


def test_an_empty_variable_names_no_model() -> None:
    (line,) = wrong({}, None, {"HEADRACE_MODELS": ""})
    assert line.startswith("HEADRACE_MODELS: list should have at least 1 item")


def test_a_wrong_item_is_named_by_its_place(file: pathlib.Path) -> None:
    file.write_text("models = ['a', 7]")
    (line,) = wrong({}, file)
    assert line.startswith(f"{file}: models.1: ")


def test_a_file_that_is_not_there(file: pathlib.Path) -> None:
    assert wrong({}, file) == [f"--config: cannot read {file}: No such file or directory"]


def test_a_variable_may_name_the_file(file: pathlib.Path) -> None:
    file.write_text('models = ["m.onnx"]\ngrpc_port = 1')
    environment = {"HEADRACE_CONFIG": str(file), "HEADRACE_HTTP_PORT": "2"}
    found = load_settings({}, None, environment)
    assert (found.grpc_port, found.http_port) == (1, 2)
    file.unlink()
    lines = wrong({}, None, environment)
    assert lines == [f"HEADRACE_CONFIG: cannot read {file}: No such file or directory"]


def test_a_flag_that_names_the_file_goes_before_the_variable(file: pathlib.Path) -> None:
    file.write_text('models = ["m.onnx"]')
    environment = {"HEADRACE_CONFIG": str(file.with_name("other.toml"))}
    assert load_settings({}, file, environment).models == MODELS["models"]


@pytest.mark.parametrize("content", [b"a = ", b"\xff = 1"])
def test_a_file_that_is_not_toml(file: pathlib.Path, content: bytes) -> None:
    file.write_bytes(content)
    (line,) = wrong({}, file)
    assert line.startswith(f"--config: {file} is not TOML: ")


def test_settings_of_tls_belong_together(tmp_path: pathlib.Path) -> None:
    (line,) = wrong({**MODELS, "tls_certificate": "a"})
    assert line.startswith("tls_key: expected")
    (line,) = wrong({**MODELS, "tls_key": "a"})
    assert line.startswith("tls_certificate: expected")
    first, second = wrong({**MODELS, "tls_client_ca": "a", "http_tls": "true"})
    assert first.startswith("http_tls: expected tls_certificate")
    assert second.startswith("tls_client_ca: expected tls_certificate")


def test_the_native_engine_has_no_tls() -> None:
    both = {"tls_certificate": "a", "tls_key": "b", "rpc_engine": "native"}
    (line,) = wrong({**MODELS, **both})
    assert "rpc_engine" in line
    assert "tls_certificate" in line
