"""What config.pbtxt, model.toml and a load request may say, and what is told when they err."""

from __future__ import annotations

import json
import pathlib

import pytest

from headrace.server.errors import LoadFailed
from headrace.server.executors.session import Provider
from headrace.server.models.options import ModelOptions, TensorDeclaration, VersionPolicy
from headrace.server.models.repository import read_options
from headrace.server.models.triton_config import from_json


@pytest.fixture
def folder(tmp_path: pathlib.Path) -> pathlib.Path:
    (tmp_path / "m").mkdir()
    return tmp_path / "m"


def pbtxt(folder: pathlib.Path, text: str) -> ModelOptions:
    (folder / "config.pbtxt").write_text(text)
    return read_options(folder)


def toml(folder: pathlib.Path, text: str) -> ModelOptions:
    (folder / "model.toml").write_text(text)
    return read_options(folder)


FULL = """
name: "m"
platform: "onnxruntime_onnx"
max_batch_size: 16
input { name: "a" data_type: TYPE_FP32 dims: [ 3, -1 ] }
input { name: "b" data_type: TYPE_STRING dims: 1 reshape { shape: [] } }
output { name: "y" data_type: TYPE_BF16 dims: 5 label_filename: "labels.txt" }
instance_group [ { count: 2 kind: KIND_CPU }, { kind: KIND_CPU } ]
version_policy { specific { versions: [ 1, 3 ] } }
default_model_filename: "net.onnx"
dynamic_batching {
  preferred_batch_size: [ 8, 4 ]
  max_queue_delay_microseconds: 250
  priority_levels: 3
  default_priority_level: 2
  default_queue_policy {
    default_timeout_microseconds: 1500000
    allow_timeout_override: true
    max_queue_size: 7
  }
}
parameters { key: "intra_op_thread_count" value { string_value: "3" } }
parameters { key: "inter_op_thread_count" value { string_value: "2" } }
"""


def test_what_is_honoured(folder: pathlib.Path) -> None:
    options = pbtxt(folder, FULL)
    assert (options.max_batch_size, options.instances) == (16, 3)
    assert (options.intra_op_threads, options.inter_op_threads) == (3, 2)
    assert (options.provider, options.filename) == (Provider.CPU, "net.onnx")
    assert options.versions == VersionPolicy(specific=(1, 3))
    assert options.inputs == (
        TensorDeclaration("a", "FP32", (3, -1)),
        TensorDeclaration("b", "BYTES", (1,), ()),
    )
    assert options.outputs == (TensorDeclaration("y", "BF16", (5,), labels="labels.txt"),)
    assert (options.timeout, options.override_timeout) == (1.5, True)
    assert (options.max_queued_requests, options.default_priority) == (7, 2)
    assert (options.preferred_batch_sizes, options.max_delay) == ((4, 8), 0.00025)
    assert options.not_honoured == ()
    assert options.source.max_batch_size == 16


def test_what_is_not_honoured_is_listed_by_key_once_each(folder: pathlib.Path) -> None:
    options = pbtxt(
        folder,
        """
        optimization { graph { level: 1 } }
        sequence_batching {}
        input { name: "a" optional: true }
        input { name: "b" optional: true allow_ragged_batch: true }
        output { name: "y" is_shape_tensor: true }
        instance_group { count: 1 profile: "p" host_policy: "h" }
        parameters { key: "enable_mem_arena" value { string_value: "1" } }
        response_cache { enable: true }
        """,
    )
    assert options.not_honoured == (
        "input.allow_ragged_batch",
        "input.optional",
        "instance_group.host_policy",
        "instance_group.profile",
        "optimization",
        "output.is_shape_tensor",
        "parameters.enable_mem_arena",
        "response_cache",
    )


def test_what_is_not_honoured_of_batching(folder: pathlib.Path) -> None:
    options = pbtxt(
        folder,
        """
        dynamic_batching {
          preserve_ordering: true
          priority_queue_policy { key: 1 value { max_queue_size: 3 } }
          default_queue_policy { timeout_action: DELAY default_timeout_microseconds: 5 }
        }
        """,
    )
    assert options.timeout is None
    assert options.not_honoured == (
        "dynamic_batching.default_queue_policy.timeout_action",
        "dynamic_batching.preserve_ordering",
        "dynamic_batching.priority_queue_policy",
    )


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", None),
        ("max_batch_size: 4", 4),
        # Triton takes an absent size for 0 once tensors are declared.
        ('input { name: "x" }', 0),
        ('output { name: "y" }', 0),
        ('max_batch_size: 4 input { name: "x" }', 4),
    ],
)
def test_the_batch_size(folder: pathlib.Path, text: str, expected: int | None) -> None:
    assert pbtxt(folder, text).max_batch_size == expected


@pytest.mark.parametrize(
    ("text", "provider", "device", "instances"),
    [
        ("", None, 0, None),
        ("instance_group {}", None, 0, 1),
        ("instance_group { kind: KIND_GPU gpus: [ 2 ] }", Provider.CUDA, 2, 1),
        ("instance_group { kind: KIND_CPU count: 4 }", Provider.CPU, 0, 4),
        ("instance_group { kind: KIND_AUTO count: 4 }", None, 0, 4),
    ],
)
def test_instances(
    folder: pathlib.Path, text: str, provider: Provider | None, device: int, instances: int | None
) -> None:
    options = pbtxt(folder, text)
    assert (options.provider, options.device_id, options.instances) == (provider, device, instances)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("max_batch_size: 4\nmax_bach: 3", 'config.pbtxt: 2:1 : Message type "inference.ModelC'),
        ("\n\nmax_batch_size: x", "config.pbtxt: 3:17 : "),
        ("input {\n  data_type: TYPE_FP99 }", "config.pbtxt: 2:14 : "),
        ("input {", "config.pbtxt: 1:"),
        ('name: "other"', "name: expected 'm', as the folder is called, got 'other'"),
        ('backend: "tensorrt"', "backend/platform: expected onnxruntime, got 'tensorrt'"),
        ('platform: "tensorrt_plan"', "backend/platform: expected onnxruntime, got 'tensorrt_plan"),
        ("max_batch_size: -1", "max_batch_size: expected 0 or more, got -1"),
        ("instance_group { count: -2 }", "instance_group.count: expected 0 or more, got -2"),
        (
            "dynamic_batching { preferred_batch_size: [ 4, 0 ] }",
            "dynamic_batching.preferred_batch_size: expected 1 or more, got 0",
        ),
        (
            "version_policy { specific {} }",
            "version_policy.specific: expected at least one version, got none",
        ),
        (
            'parameters { key: "intra_op_thread_count" value { string_value: "-1" } }',
            "parameters.intra_op_thread_count: expected a number of threads, got '-1'",
        ),
    ],
)
def test_a_wrong_pbtxt_names_line_or_key(folder: pathlib.Path, text: str, said: str) -> None:
    with pytest.raises(LoadFailed) as caught:
        pbtxt(folder, text)
    assert str(caught.value).startswith(said)


@pytest.mark.parametrize("name", ["/etc/passwd", "../m2/1/model.onnx", "a/../../b"])
@pytest.mark.parametrize("key", ["default_model_filename", "output.label_filename"])
def test_files_lie_in_the_models_folder(folder: pathlib.Path, key: str, name: str) -> None:
    outer, _, inner = key.rpartition(".")
    text = f'{outer} {{ {inner}: "{name}" }}' if outer else f'{inner}: "{name}"'
    with pytest.raises(LoadFailed) as caught:
        pbtxt(folder, text)
    assert str(caught.value) == f"{key}: expected a file in the model's folder, got '{name}'"


def test_threads_of_zero_leave_the_choice_to_the_server(folder: pathlib.Path) -> None:
    text = 'parameters { key: "intra_op_thread_count" value { string_value: "0" } }'
    assert pbtxt(folder, text).intra_op_threads is None


@pytest.mark.parametrize("name", ["config.pbtxt", "model.toml"])
def test_a_file_that_is_not_text(folder: pathlib.Path, name: str) -> None:
    (folder / name).write_bytes(b"\xff\xfe")
    with pytest.raises(LoadFailed, match=rf"^{name}: "):
        read_options(folder)


def test_no_file(folder: pathlib.Path) -> None:
    assert read_options(folder) == ModelOptions()


def test_two_files(folder: pathlib.Path) -> None:
    (folder / "config.pbtxt").touch()
    with pytest.raises(LoadFailed, match=r"m has both config\.pbtxt and model\.toml"):
        toml(folder, "")


def test_toml(folder: pathlib.Path) -> None:
    options = toml(
        folder,
        """
        max_batch_size = 4
        instances = 2
        intra_op_threads = 3
        inter_op_threads = 5
        provider = "cuda"
        device_id = 1
        filename = "net.onnx"
        versions = [2, 4]
        timeout = 0.5
        max_queued_requests = 9
        preferred_batch_sizes = [4, 8]
        max_delay = 0.25
        """,
    )
    assert options == ModelOptions(
        max_batch_size=4,
        instances=2,
        intra_op_threads=3,
        inter_op_threads=5,
        provider=Provider.CUDA,
        device_id=1,
        filename="net.onnx",
        versions=VersionPolicy(specific=(2, 4)),
        timeout=0.5,
        max_queued_requests=9,
        preferred_batch_sizes=(4, 8),
        max_delay=0.25,
    )


@pytest.mark.parametrize(("text", "expected"), [("", True), ('"auto"', True), ('"off"', False)])
def test_toml_may_turn_padding_off(folder: pathlib.Path, text: str, expected: bool) -> None:
    (folder / "model.toml").write_text(f"padding = {text}" if text else "")
    assert read_options(folder).padding is expected


def test_toml_knows_no_other_padding(folder: pathlib.Path) -> None:
    (folder / "model.toml").write_text('padding = "edge"')
    with pytest.raises(LoadFailed, match=r"padding: .*'auto' or 'off'"):
        read_options(folder)


def test_toml_may_ask_for_all_versions(folder: pathlib.Path) -> None:
    assert toml(folder, 'versions = "all"').versions == VersionPolicy(latest=None)
    assert toml(folder, "").versions == VersionPolicy(latest=1)


def test_all_errors_of_a_toml_at_once(folder: pathlib.Path) -> None:
    with pytest.raises(LoadFailed) as caught:
        toml(folder, 'max_batch_size = -1\nbach = 2\nprovider = "tpu"\nversions = []')
    said = str(caught.value)
    assert said.startswith("model.toml: ")
    for key in ("max_batch_size: ", "bach: ", "provider: ", "versions"):
        assert key in said


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("max_batch_size = true", "max_batch_size: expected a whole number, got true"),
        ('max_batch_size = "zwö"', 'max_batch_size: expected a whole number, got "zwö"'),
        ("max_batch_size = 2.0", "max_batch_size: expected a whole number, got 2.0"),
        ("timeout = '1'", 'timeout: expected a number, got "1"'),
        ("instances = 0", "instances: expected greater than or equal to 1, got 0"),
        ("provider = 'tpu'", "provider: expected 'auto', 'cpu' or 'cuda', got \"tpu\""),
        ("preferred_batch_sizes = 8", "preferred_batch_sizes: expected an array, got 8"),
        (
            "preferred_batch_sizes = [4, '8']",
            'preferred_batch_sizes.1: expected a whole number, got "8"',
        ),
        (
            "versions = ['1']",
            'versions: expected \'all\', got ["1"]; versions.0: expected a whole number, got "1"',
        ),
        (
            "versions = [0]",
            "versions: expected 'all', got [0]; "
            "versions.0: expected greater than or equal to 1, got 0",
        ),
        ("state = 1", "state: expected an array, got 1"),
        ("[[state]]\ninput = 1\noutput = 'b'", "state.0.input: expected text, got 1"),
        ("[[state]]\ninput = 'a'", "state.0.output: required, and not there"),
        (
            "[[state]]\ninput = 'a'\noutput = 'b'\ninital = 'zeros'",
            "state.0.inital: no such key (is initial meant?)",
        ),
        ("quality = 3", "quality: expected a table, got 3"),
        ("max-batch-size = 4", "max-batch-size: no such key (is max_batch_size meant?)"),
        ("'a[b]' = 1", "a[b]: no such key"),
        ("'{a}' = 1", "{a}: no such key"),
        ("[quality]\n'a[b]' = 1", "quality.a[b]: no such key"),
        ("[quality]\nwindow = '100'", 'quality.window: expected a whole number, got "100"'),
        ("[quality]\ndrift = 'yes'", 'quality.drift: expected true or false, got "yes"'),
        ("[quality]\nwindo = 100", "quality.windo: no such key (is window meant?)"),
    ],
)
def test_a_toml_says_what_was_expected_and_what_came(
    folder: pathlib.Path, text: str, said: str
) -> None:
    with pytest.raises(LoadFailed) as caught:
        toml(folder, text)
    assert str(caught.value) == f"model.toml: {said}"


def test_seconds_may_be_whole(folder: pathlib.Path) -> None:
    assert toml(folder, "timeout = 2").timeout == 2.0


def test_a_toml_that_cannot_be_parsed_names_the_line(folder: pathlib.Path) -> None:
    with pytest.raises(LoadFailed, match=r"^model\.toml: .*line 2"):
        toml(folder, "instances = 1\ninstances = = 2")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", [9]),
        ("version_policy { latest { num_versions: 2 } }", [3, 9]),
        ("version_policy { latest { num_versions: 7 } }", [1, 3, 9]),
        ("version_policy { latest {} }", [9]),
        ("version_policy { all {} }", [1, 3, 9]),
        ("version_policy { specific { versions: [ 9, 1, 4 ] } }", [1, 9]),
        ("version_policy { specific { versions: [ 4 ] } }", []),
    ],
)
def test_versions_are_chosen(folder: pathlib.Path, text: str, expected: list[int]) -> None:
    assert pbtxt(folder, text).versions.choose([9, 1, 3]) == expected


def test_json() -> None:
    config = {"name": "m", "max_batch_size": 4, "dynamic_batching": {"preserve_ordering": True}}
    options = from_json(json.dumps(config), "m")
    assert options.max_batch_size == 4
    assert options.not_honoured == ("dynamic_batching.preserve_ordering",)
    assert from_json('{"maxBatchSize": 4}', "m").max_batch_size == 4


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "parameter 'config': "),
        ("7", "parameter 'config': "),
        ("null", "parameter 'config': "),
        ("[" * 10_000, "parameter 'config': "),
        ('{"max_batch": 4}', "parameter 'config': "),
        ('{"max_batch_size": "many"}', "parameter 'config': "),
        ('{"name": "other"}', "name: expected 'm'"),
    ],
)
def test_wrong_json(text: str, said: str) -> None:
    with pytest.raises(LoadFailed) as caught:
        from_json(text, "m")
    assert str(caught.value).startswith(said)
