"""`headrace serve` as a command: exit codes, sentences, and everything that is wrong at once."""

from __future__ import annotations

import json
import pathlib
import re
import socket
from collections.abc import Iterator

import numpy as np
import pytest

from headrace.client import Client, Overloaded
from support import models, server

FREE = ("--grpc-port=0", "--http-port=0")


@pytest.fixture
def model(tmp_path: pathlib.Path) -> pathlib.Path:
    path = tmp_path / "double.onnx"
    models.save(models.scaled(2), path)
    return path


@pytest.fixture
def taken() -> Iterator[int]:
    """A port that somebody else listens on."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield int(listener.getsockname()[1])


@pytest.mark.parametrize("which", ["grpc", "http"])
def test_a_port_that_is_taken(model: pathlib.Path, taken: int, which: str) -> None:
    ports = {"grpc": 0, "http": 0} | {which: taken}
    flags = [f"--{name}-port={port}" for name, port in ports.items()]
    done = server.run("serve", model, *flags)
    assert done.returncode == 1
    assert done.stdout == ""
    assert f"headrace serve: {which}: cannot listen on 127.0.0.1:{taken}" in done.stderr
    assert "Traceback" not in done.stderr


def test_all_that_is_wrong_at_once(tmp_path: pathlib.Path, model: pathlib.Path) -> None:
    """From flags, environment and file, each line with where it came from."""
    file = tmp_path / "headrace.toml"
    file.write_text('log_level = "loud"\nspeed = 11\n')
    done = server.run(
        "serve",
        model,
        "--config",
        file,
        "--grpc-port=99999",
        "--provider=tpu",
        environment={"HEADRACE_GRACE_SECONDS": "soon", "HEADRACE_MAX_MESSAGE_BYTES": "1"},
    )
    assert done.returncode == 2
    assert done.stdout == ""
    lines = done.stderr.removeprefix("headrace serve: ").splitlines()
    starts = {
        f"{file}: log_level: ",
        f"{file}: speed: no such setting",
        "--grpc-port: ",
        "--provider: ",
        "HEADRACE_GRACE_SECONDS: ",
        "HEADRACE_MAX_MESSAGE_BYTES: ",
    }
    assert len(lines) == len(starts)
    for start in starts:
        assert any(line.startswith(start) for line in lines), (start, lines)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), "models: nothing to serve"),
        (("no/such/path",), "got no/such/path: no such file or folder"),
        (("--made-up=1",), "--made-up"),
        (("--grpc-prot=1", "x"), "--grpc-prot=1 (is --grpc-port meant?)"),
        (("--config=no/such/file", "x"), "--config: cannot read no/such/file"),
    ],
    ids=["nothing", "no path", "no flag", "nearly a flag", "no file"],
)
def test_bad_usage(arguments: tuple[str, ...], words: str) -> None:
    done = server.run("serve", *arguments, *FREE)
    assert done.returncode == 2
    assert done.stdout == ""
    assert words in done.stderr
    assert "Traceback" not in done.stderr


def test_a_file_that_is_no_toml(tmp_path: pathlib.Path, model: pathlib.Path) -> None:
    file = tmp_path / "headrace.toml"
    file.write_text("grpc_port = = 1\n")
    done = server.run("serve", model, "--config", file)
    assert done.returncode == 2
    assert f"{file} is not TOML" in done.stderr


def test_paths_that_hold_no_models(tmp_path: pathlib.Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.txt").write_text("hello\n")
    for path in (tmp_path / "empty", tmp_path / "text.txt"):
        done = server.run("serve", path, *FREE)
        assert done.returncode == 2
        assert str(path) in done.stderr
        assert "Traceback" not in done.stderr


def test_two_models_of_one_name(tmp_path: pathlib.Path) -> None:
    for repository in ("a", "b"):
        models.write(tmp_path / repository, "same", models.scaled())
    done = server.run("serve", tmp_path / "a", tmp_path / "b", *FREE)
    assert done.returncode == 2
    assert "more than one model is called same" in done.stderr


def test_flags_over_environment_over_file(tmp_path: pathlib.Path, model: pathlib.Path) -> None:
    """All three set the log's level; the file alone sets the models."""
    file = tmp_path / "headrace.toml"
    file.write_text(f'models = ["{model}"]\nlog_level = "error"\n')

    def levels(*flags: str, environment: dict[str, str] | None = None) -> set[str]:
        log = tmp_path / "log"
        arguments: tuple[str | pathlib.Path, ...] = ("--config", file, *flags)
        with (
            server.serving(log, *arguments, environment=environment) as running,
            Client(running.grpc) as client,
        ):
            assert client.infer("double", {"x": np.ones((1, 1), np.float32)})["y"].item() == 2
        return {record["level"] for record in running.log()}

    info = {"HEADRACE_LOG_LEVEL": "info"}
    assert levels() == set()
    assert levels(environment=info) == {"info"}
    assert levels("--log-level=error", environment=info) == set()


def test_models_from_the_environment(tmp_path: pathlib.Path, model: pathlib.Path) -> None:
    other = tmp_path / "other.onnx"
    models.save(models.scaled(3), other)
    given = {"HEADRACE_MODELS": f"{model}:{other}"}
    with (
        server.serving(tmp_path / "log", environment=given) as running,
        Client(running.grpc) as client,
    ):
        assert {found.name for found in client.repository_index()} == {"double", "other"}


def test_the_log_is_json_where_nobody_watches(tmp_path: pathlib.Path, model: pathlib.Path) -> None:
    with server.serving(tmp_path / "log", model) as running:
        pass
    lines = [json.loads(line) for line in running.log_file.read_text().splitlines()]
    assert any("model double version 1 serves" in line["message"] for line in lines)
    assert lines[-1]["message"] == "stopped"
    assert {"time", "level", "logger", "message"} <= set(lines[0])


def test_the_log_for_people(tmp_path: pathlib.Path, model: pathlib.Path) -> None:
    log, human = tmp_path / "log", "--log-format=human"
    with server.serving(log, model, human, json_log=False):
        pass
    lines = log.read_text().splitlines()
    assert all(re.match(r"\d\d:\d\d:\d\d INFO    \S", line) for line in lines)
    assert lines[-1].endswith(" stopped")


def test_version_and_help() -> None:
    for arguments, words in ((["--version"], "headrace 0"), (["serve", "--help"], "--grpc-port")):
        done = server.run(*arguments)
        assert (done.returncode, done.stderr) == (0, "")
        assert words in done.stdout


def test_a_message_over_the_limit(tmp_path: pathlib.Path, model: pathlib.Path) -> None:
    """It is gRPC that refuses it, unread; what comes after it on the connection is answered."""
    limit = 1 << 16
    with (
        server.serving(tmp_path / "log", model, f"--max-message-bytes={limit}") as running,
        Client(running.grpc) as client,
    ):
        with pytest.raises(Overloaded, match=f"larger than max .*{limit}"):
            client.infer("double", {"x": np.ones((1, limit), np.float32)})
        small = client.infer("double", {"x": np.ones((1, 4), np.float32)})
        assert small["y"].tolist() == [[2, 2, 2, 2]]
