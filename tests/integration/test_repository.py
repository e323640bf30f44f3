"""Where models lie, what their configuration says, and what happens when it cannot be."""

from __future__ import annotations

import pathlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest

from headrace.client import Client, InvalidInput, RetryPolicy, Unavailable
from support import models, server

ONCE = RetryPolicy(max_attempts=1)
ONE = {"x": np.ones((1, 1), np.float32)}


FULL = """
name: "full"
backend: "onnxruntime"
max_batch_size: 4
version_policy { specific { versions: [1, 3] } }
input [{ name: "x" data_type: TYPE_FP32 dims: [4] reshape { shape: [2, 2] } }]
output [{ name: "y" data_type: TYPE_FP32 dims: [4] reshape { shape: [2, 2] } }]
instance_group [{ count: 3 kind: KIND_CPU }]
dynamic_batching {
  preserve_ordering: true
  default_queue_policy { max_queue_size: 64 }
}
parameters { key: "intra_op_thread_count" value { string_value: "2" } }
parameters { key: "made_up" value { string_value: "1" } }
optimization { graph { level: 1 } }
model_warmup [{ name: "warm" batch_size: 1 }]
"""
WITHOUT_EFFECT = {
    "dynamic_batching.preserve_ordering",
    "model_warmup",
    "optimization",
    "parameters.made_up",
}
ZERO = 'max_batch_size: 0 input [{ name: "x" data_type: TYPE_FP32 dims: [-1, 1] }]'
TOML = """
max_batch_size = 3
instances = 2
intra_op_threads = 2
provider = "cpu"
filename = "net.onnx"
versions = "all"
max_queued_requests = 5
"""
# What each policy makes of versions 1, 2 and 3.
POLICIES = {
    "default": ("", ("3",)),
    "all": ("version_policy { all {} }", ("1", "2", "3")),
    "latest": ("version_policy { latest { num_versions: 2 } }", ("2", "3")),
    "specific": ("version_policy { specific { versions: [2] } }", ("2",)),
}


def _answer(client: Client, model: str, version: str = "") -> float:
    return float(client.infer(model, ONE, version=version)["y"].item())


@dataclass(frozen=True)
class Served:
    """A server of models that are laid out and configured in every way, and a client of it."""

    running: server.RunningServer
    client: Client


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("varied")
    paths = [*write_layouts(folder), write_configured(folder / "configured")]
    with server.serving(folder / "log", *paths) as running, Client(running.grpc) as client:
        yield Served(running, client)


def write_layouts(folder: pathlib.Path) -> list[pathlib.Path]:
    """The paths to name on the command line."""
    models.save(models.scaled(3), folder / "triple.onnx")
    many = models.write(folder, "many", models.scaled(2), version=1)
    models.write(folder, "many", models.scaled(11), version=11)
    models.write(folder, "many", models.scaled(9), version=9)
    flat = folder / "flat"
    flat.mkdir()
    models.save(models.scaled(4), flat / "model.onnx")
    one, two = folder / "one", folder / "two"
    models.write(one, "a", models.scaled(1))
    (one / ".git").mkdir()
    (one / "README.md").write_text("not a model\n")
    b = models.write(two, "b", models.scaled(2))
    (b / "notes").mkdir()
    models.write(two, "external", models.projection(), external_data=True)
    external = folder / "external_file.onnx"
    models.save(models.projection(), external, external_data=True)
    assert (folder / "weights.bin").stat().st_size
    return [folder / "triple.onnx", many, flat, one, two, external]


def write_configured(repository: pathlib.Path) -> pathlib.Path:
    for version in (1, 2, 3):
        reshaped = models.scaled(version, ("batch", 2, 2))
        models.write(repository, "full", reshaped, version=version, config=FULL)
        for policy, (config, _) in POLICIES.items():
            name = f"policy_{policy}"
            models.write(repository, name, models.scaled(version), version=version, config=config)
        toml = models.write(repository, "toml", models.scaled(version), version=version, toml=TOML)
        (toml / str(version) / "model.onnx").rename(toml / str(version) / "net.onnx")
    models.write(repository, "zero", models.scaled(), config=ZERO)
    models.write(repository, "mixes_rows", models.mixes_rows())
    return repository


# Layouts.


def test_a_single_file(served: Served) -> None:
    assert _answer(served.client, "triple") == _answer(served.client, "triple", "1") == 3


def test_a_model_folder_with_and_without_versions(served: Served) -> None:
    # Versions are numbers: 11 is higher than 9.
    assert _answer(served.client, "many") == 11
    assert served.client.model_metadata("many").versions == ("11",)
    assert _answer(served.client, "flat") == 4


def test_several_repositories_and_things_that_are_no_models(served: Served) -> None:
    names = {model.name for model in served.client.repository_index()}
    assert {"a", "b"} <= names
    assert not {"README.md", ".git", "notes", "one", "two"} & names
    assert (_answer(served.client, "a"), _answer(served.client, "b")) == (1, 2)
    assert {model.state for model in served.client.repository_index()} == {"READY"}


@pytest.mark.parametrize("name", ["external", "external_file"])
def test_external_data(served: Served, name: str) -> None:
    data = models.projection().SerializeToString()
    session = ort.InferenceSession(data, providers=["CPUExecutionProvider"])
    x = np.arange(8, dtype=np.float32).reshape(1, 8)
    (expected,) = session.run(None, {"x": x})
    np.testing.assert_array_equal(served.client.infer(name, {"x": x})["y"], expected)


# Configuration.


def test_config_pbtxt(served: Served) -> None:
    metadata = served.client.model_metadata("full")
    assert metadata.versions == ("1", "3")
    assert metadata.inputs[0].shape == (-1, 4)
    config = served.client.model_config("full")
    assert config.max_batch_size == 4
    assert config.instance_group[0].count == 3
    assert config.parameters["intra_op_thread_count"].string_value == "2"
    assert list(config.input[0].dims) == [4]
    assert list(config.input[0].reshape.shape) == [2, 2]
    x = np.arange(8, dtype=np.float32).reshape(2, 4)
    np.testing.assert_array_equal(served.client.infer("full", {"x": x})["y"], 3 * x)
    for shape in ((1, 2, 2), (5, 4), (1, 5)):
        with pytest.raises(InvalidInput):
            served.client.infer("full", {"x": np.zeros(shape, np.float32)})


def test_what_has_no_effect_is_said_once(served: Served) -> None:
    warnings = [r["message"] for r in served.running.log() if r["level"] == "warning"]
    (warning,) = (warning for warning in warnings if "model full:" in warning)
    assert set(warning.rpartition(": ")[2].split(", ")) == WITHOUT_EFFECT


def test_max_batch_size_zero_turns_batching_off(served: Served) -> None:
    assert served.client.model_config("zero").max_batch_size == 0
    assert served.client.model_metadata("zero").inputs[0].shape == (-1, 1)
    assert _answer(served.client, "zero") == 2


@pytest.mark.parametrize("policy", POLICIES)
def test_version_policy(served: Served, policy: str) -> None:
    name, versions = f"policy_{policy}", POLICIES[policy][1]
    assert served.client.model_metadata(name).versions == versions
    answers = [_answer(served.client, name, version) for version in versions]
    assert answers == [float(version) for version in versions]


def test_model_toml(served: Served) -> None:
    assert served.client.model_metadata("toml").versions == ("1", "2", "3")
    config = served.client.model_config("toml")
    assert config.max_batch_size == 3
    assert config.instance_group[0].count == 2
    assert config.parameters["intra_op_thread_count"].string_value == "2"
    assert config.default_model_filename == "net.onnx"
    assert config.parameters["headrace_batch_deviation"].string_value == "0"
    assert [_answer(served.client, "toml", version) for version in ("1", "2", "")] == [1, 2, 3]
    with pytest.raises(InvalidInput, match="at most 3 rows"):
        served.client.infer("toml", {"x": np.zeros((4, 1), np.float32)})


def test_a_model_that_mixes_rows_says_why_it_is_not_batched(served: Served) -> None:
    config = served.client.model_config("mixes_rows")
    assert config.max_batch_size == 0
    why = config.parameters["headrace_unbatched_because"].string_value
    assert "depends on the rows beside it" in why
    assert float(config.parameters["headrace_batch_deviation"].string_value) > 1e-3
    said = [record["message"] for record in served.running.log()]
    assert any("model mixes_rows" in text and "unbatched" in text for text in said)


# Failures: each model's own affair.

BROKEN: dict[str, tuple[dict[str, Any], str]] = {
    "garbage": ({"model": b"\0\1\2 not a model"}, "model.onnx"),
    "empty_file": ({"model": b""}, "model.onnx"),
    "bad_pbtxt": ({"config": "max_batch_size: lots"}, "config.pbtxt"),
    "unknown_pbtxt_key": ({"config": "max_batches: 3"}, "max_batches"),
    "other_name": ({"config": 'name: "somebody"'}, "somebody"),
    "other_backend": ({"config": 'backend: "python"'}, "python"),
    "negative_batch": ({"config": "max_batch_size: -4"}, "max_batch_size"),
    "bad_threads": (
        {"config": 'parameters { key: "intra_op_thread_count" value { string_value: "all" } }'},
        "intra_op_thread_count",
    ),
    "undeclared": (
        {"config": 'max_batch_size: 4 input [{ name: "z" data_type: TYPE_FP32 dims: [1] }]'},
        "'z'",
    ),
    "other_datatype": (
        {"config": 'max_batch_size: 4 input [{ name: "x" data_type: TYPE_INT8 dims: [-1] }]'},
        "INT8",
    ),
    "other_dims": (
        {"config": 'max_batch_size: 4 input [{ name: "x" data_type: TYPE_FP32 dims: [1, 2] }]'},
        "dims",
    ),
    "batch_that_cannot_be": (
        {"model": models.identity("FP32", (4, 2)), "config": "max_batch_size: 8"},
        "always 4",
    ),
    "reshape_of_another_size": (
        {
            "model": models.identity("FP32", ("batch", 2, 2)),
            "config": 'max_batch_size: 4 input [{ name: "x" data_type: TYPE_FP32 dims: [5] '
            "reshape { shape: [2, 2] } }]",
        },
        "reshape",
    ),
    "no_label_file": (
        {
            "config": 'max_batch_size: 4 output [{ name: "y" data_type: TYPE_FP32 dims: [-1] '
            'label_filename: "labels.txt" }]'
        },
        "labels.txt",
    ),
    "bad_toml": ({"toml": "max_batch_size ="}, "model.toml"),
    "unknown_toml_key": ({"toml": "max_batches = 3"}, "max_batches"),
    "bad_toml_value": ({"toml": "instances = 0"}, "instances"),
    "both_configurations": ({"toml": "instances = 1", "config": "max_batch_size: 2"}, "both"),
    "missing_version": ({"toml": "versions = [7]"}, "version"),
    "version_zero": ({"version": 0}, "version"),
    "other_file_name": ({"toml": 'filename = "other.onnx"'}, "other.onnx"),
    "model_file_outside": (
        {"config": 'default_model_filename: "../../fine/1/model.onnx"'},
        "default_model_filename",
    ),
    "model_file_outside_by_toml": ({"toml": 'filename = "/dev/null"'}, "filename"),
    "label_file_outside": (
        {
            "config": 'max_batch_size: 4 output [{ name: "y" data_type: TYPE_FP32 dims: [-1] '
            'label_filename: "../../secret.txt" }]'
        },
        "secret.txt",
    ),
}


@pytest.fixture(scope="module")
def broken(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A server of models that cannot be loaded, and one that can."""
    folder = tmp_path_factory.mktemp("broken")
    repository = folder / "models"
    for name, (traits, _) in BROKEN.items():
        models.write(repository, name, **{"model": models.scaled(), **traits})
    models.write(repository, "not_utf8", models.scaled())
    (repository / "not_utf8" / "model.toml").write_bytes(b'filename = "\xff.onnx"')
    (repository / "empty_folder").mkdir()
    (folder / "secret.txt").write_text("password\n")
    models.write(repository, "fine", models.scaled(2))
    with server.serving(folder / "log", repository) as running, Client(running.grpc) as client:
        yield client, {model.name: model for model in client.repository_index()}


@pytest.mark.parametrize("name", [*BROKEN, "not_utf8", "empty_folder"])
def test_a_broken_model_is_listed_with_its_reason(broken: Any, name: str) -> None:
    client, index = broken
    words = (
        BROKEN[name][1] if name in BROKEN else {"not_utf8": "model.toml"}.get(name, "model.onnx")
    )
    assert index[name].state == "UNAVAILABLE"
    assert words in index[name].reason
    with pytest.raises(Unavailable, match="UNAVAILABLE"):
        Client.infer(client, name, ONE, deadline=20)


def test_the_others_serve(broken: Any) -> None:
    client, index = broken
    assert index["fine"].state == "READY"
    assert _answer(client, "fine") == 2
    assert client.server_ready()


def test_nothing_that_can_be_loaded(tmp_path: pathlib.Path) -> None:
    models.write(tmp_path / "models", "m", b"not a model")
    done = server.run("serve", tmp_path / "models", "--grpc-port=0", "--http-port=0")
    assert done.returncode == 1
    assert done.stdout == ""
    assert "no model could be loaded" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.skipif(
    "CUDAExecutionProvider" in ort.get_available_providers(), reason="this ONNX Runtime has CUDA"
)
def test_cuda_that_is_not_there(tmp_path: pathlib.Path) -> None:
    """Asked for by one model, it is that model's failure; never a silent fall-back to the CPU."""
    repository = tmp_path / "models"
    models.write(repository, "toml", models.scaled(), toml='provider = "cuda"\n')
    gpu = "instance_group [{ kind: KIND_GPU }]"
    models.write(repository, "pbtxt", models.scaled(), config=gpu)
    models.write(repository, "fine", models.scaled())
    with server.serving(tmp_path / "log", repository) as running, Client(running.grpc) as client:
        index = {model.name: model for model in client.repository_index()}
        for name in ("toml", "pbtxt"):
            assert index[name].state == "UNAVAILABLE"
            assert "CUDA execution provider was asked for" in index[name].reason
            assert "headrace[gpu]" in index[name].reason
        assert _answer(client, "fine") == 2
    ports = ("--grpc-port=0", "--http-port=0")
    done = server.run("serve", repository / "fine", "--provider=cuda", *ports)
    assert done.returncode == 1
    assert "headrace[gpu]" in done.stderr
