"""Everything asked about the server and its models; logs and traces; what is not offered."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import grpc
import numpy as np

from conformance.cases import Cases, Env, equal, failure

case = Cases()


@case
def live_and_ready(env: Env) -> None:
    assert env.client.is_server_live()
    assert env.client.is_server_ready()
    assert env.client.is_model_ready("identity_FP32")
    assert env.client.is_model_ready("identity_FP32", "1")
    for name, version in (("identity_FP32", "2"), ("nothing", ""), ("broken", "")):
        assert not env.client.is_model_ready(name, version), name


@case
async def live_and_ready_with_asyncio(env: Env) -> None:
    async with env.triton_aio.InferenceServerClient(env.address) as client:
        assert await client.is_server_live()
        assert await client.is_server_ready()
        assert await client.is_model_ready("identity_FP32")


@case
def server_metadata(env: Env) -> None:
    metadata = env.client.get_server_metadata()
    assert metadata.name == "headrace"
    assert metadata.version
    offered = {"classification", "model_repository", "model_configuration", "statistics"}
    assert offered | {"trace", "logging"} <= set(metadata.extensions)
    assert not {"system_shared_memory", "cuda_shared_memory"} & set(metadata.extensions)


@case
def model_metadata(env: Env) -> None:
    metadata = env.client.get_model_metadata("arithmetic")
    assert (metadata.name, metadata.platform) == ("arithmetic", "onnxruntime_onnx")
    assert list(metadata.versions) == ["1"]
    inputs = [(t.name, t.datatype, list(t.shape)) for t in metadata.inputs]
    assert inputs == [("a", "FP32", [-1, -1]), ("b", "FP32", [-1, -1])]
    assert [t.name for t in metadata.outputs] == ["total", "difference", "doubled"]


@case
def model_metadata_of_every_datatype(env: Env) -> None:
    names = [m.name for m in env.client.get_model_repository_index().models]
    for name in (name for name in names if name.startswith("identity_")):
        (tensor,) = env.client.get_model_metadata(name).inputs
        assert tensor.datatype == name.removeprefix("identity_")


@case
def model_metadata_of_fixed_shapes_and_scalars(env: Env) -> None:
    shapes = {"scalar": [], "no_batch_axis": [3], "fixed_batch": [-1, 2], "fixed_mixed": [3, 4]}
    for name, shape in shapes.items():
        assert list(env.client.get_model_metadata(name).inputs[0].shape) == shape


@case
def model_config(env: Env) -> None:
    config = env.client.get_model_config("classes").config
    assert (config.name, config.backend, config.max_batch_size) == ("classes", "onnxruntime", 8)
    assert (config.input[0].name, list(config.input[0].dims)) == ("x", [4])
    assert config.output[0].label_filename == "labels.txt"
    assert config.instance_group[0].count >= 1
    assert config.HasField("dynamic_batching")


@case
def model_config_of_what_is_not_batched(env: Env) -> None:
    config = env.client.get_model_config("fixed_mixed").config
    assert config.max_batch_size == 0
    assert list(config.input[0].dims) == [3, 4]
    assert not config.HasField("dynamic_batching")
    because = config.parameters["headrace_unbatched_because"].string_value
    assert "always 3" in because
    assert "depends on the rows beside it" in because


@case
def model_config_of_a_fixed_batch(env: Env) -> None:
    config = env.client.get_model_config("fixed_batch").config
    assert config.max_batch_size == 4
    assert list(config.input[0].dims) == [2]
    assert "headrace_unbatched_because" not in config.parameters


@case
def model_config_names_optional_inputs(env: Env) -> None:
    config = env.client.get_model_config("optional").config
    assert {tensor.name: tensor.optional for tensor in config.input} == {"x": False, "scale": True}


QUESTIONS: dict[str, Callable[[Env, str, str], Any]] = {
    "metadata": lambda env, name, version: env.stub.ModelMetadata(
        env.pb.ModelMetadataRequest(name=name, version=version)
    ),
    "config": lambda env, name, version: env.stub.ModelConfig(
        env.pb.ModelConfigRequest(name=name, version=version)
    ),
    "statistics": lambda env, name, version: env.stub.ModelStatistics(
        env.pb.ModelStatisticsRequest(name=name, version=version)
    ),
}


@case.each(QUESTIONS)
def questions_about_what_is_not_there(env: Env, ask: Callable[[Env, str, str], Any]) -> None:
    assert failure(lambda: ask(env, "nothing", "")).code == grpc.StatusCode.NOT_FOUND
    assert failure(lambda: ask(env, "identity_FP32", "9")).code == grpc.StatusCode.NOT_FOUND
    assert failure(lambda: ask(env, "broken", "")).code == grpc.StatusCode.UNAVAILABLE


@case
def versions(env: Env) -> None:
    """The highest answers where none is named; version 2 is not among those configured."""
    assert list(env.client.get_model_metadata("versions").versions) == ["1", "3"]
    x = np.array([[10]], np.float32)
    for version, factor in (("", 3), ("1", 1), ("3", 3)):
        result = env.client.infer("versions", env.inputs(x=x), model_version=version)
        equal(result.as_numpy("y"), x * np.float32(factor))
        assert result.get_response().model_version == version or "3"
    unknown = env.message("versions", ("x", "FP32", [1, 1], x.tobytes()), model_version="2")
    assert failure(lambda: env.stub.ModelInfer(unknown)).code == grpc.StatusCode.NOT_FOUND
    statistics = env.client.get_inference_statistics("versions").model_stats
    assert {(s.version, s.inference_count) for s in statistics} == {("1", 1), ("3", 2)}
    only = env.client.get_inference_statistics("versions", "1").model_stats
    assert [s.version for s in only] == ["1"]


@case
def statistics_are_true(env: Env) -> None:
    """Rows and runs by size, with everything counted once; nobody else calls this model."""
    before = env.statistics("lab_counted")
    assert (before.inference_count, before.execution_count) == (0, 0)
    x, steps = np.ones((3, 1), np.float32), np.zeros(3, np.int64)
    for rows in (1, 3, 3, 2):
        inputs = env.inputs(x=x[:rows], steps=steps[:rows], index=steps[:rows])
        env.client.infer("lab_counted", inputs)
    failure(lambda: env.stub.ModelInfer(env.lab("lab_counted", index=99)))
    failure(lambda: env.stub.ModelInfer(env.message("lab_counted")))
    after = env.statistics("lab_counted")
    assert (after.name, after.version) == ("lab_counted", "1")
    assert (after.inference_count, after.execution_count) == (9, 4)
    stats = after.inference_stats
    assert stats.success.count == stats.queue.count == stats.compute_infer.count == 4
    assert stats.compute_input.count == stats.compute_output.count == 4
    # The one that was accepted and failed; what was never accepted is not the model's.
    assert stats.fail.count == 1
    whole = stats.queue.ns + stats.compute_input.ns + stats.compute_infer.ns
    assert 0 < whole + stats.compute_output.ns <= stats.success.ns
    sizes = {batch.batch_size: batch.compute_infer.count for batch in after.batch_stats}
    assert sizes == {1: 1, 2: 1, 3: 2}
    assert all(batch.compute_infer.ns > 0 for batch in after.batch_stats)
    assert after.last_inference > 1_600_000_000_000


@case
def statistics_of_all_models(env: Env) -> None:
    names = {stats.name for stats in env.client.get_inference_statistics().model_stats}
    assert {"identity_FP32", "arithmetic", "versions"} <= names
    assert "broken" not in names


@case
def repository_index(env: Env) -> None:
    models = env.client.get_model_repository_index().models
    states = {(model.name, model.version): model.state for model in models}
    assert states["identity_FP32", "1"] == "READY"
    assert states["versions", "1"] == states["versions", "3"] == "READY"
    assert ("versions", "2") not in states
    (broken,) = (model for model in models if model.name == "broken")
    assert broken.state == "UNAVAILABLE"
    assert "model.onnx" in broken.reason
    ready = env.stub.RepositoryIndex(env.pb.RepositoryIndexRequest(ready=True)).models
    assert {model.state for model in ready} == {"READY"}


@case
def a_model_that_failed_to_load(env: Env) -> None:
    found = failure(lambda: env.stub.ModelInfer(env.message("broken")))
    assert (found.code, found.reason) == (grpc.StatusCode.UNAVAILABLE, "MODEL_UNAVAILABLE")
    assert "'broken'" in found.message
    found = failure(
        lambda: env.stub.RepositoryModelLoad(env.pb.RepositoryModelLoadRequest(model_name="broken"))
    )
    assert (found.code, found.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "LOAD_FAILED")


NOT_OFFERED: dict[str, Callable[[Any], Any]] = {
    "get_system_shared_memory_status": lambda c: c.get_system_shared_memory_status(),
    "register_system_shared_memory": lambda c: c.register_system_shared_memory("a", "b", 8),
    "unregister_system_shared_memory": lambda c: c.unregister_system_shared_memory(),
    "get_cuda_shared_memory_status": lambda c: c.get_cuda_shared_memory_status(),
    "register_cuda_shared_memory": lambda c: c.register_cuda_shared_memory("a", b"bb==", 0, 8),
    "unregister_cuda_shared_memory": lambda c: c.unregister_cuda_shared_memory(),
    "update_trace_settings": lambda c: c.update_trace_settings(settings={"trace_rate": "1"}),
}


@case.each(NOT_OFFERED)
def not_offered(env: Env, call: Callable[[Any], Any]) -> None:
    from tritonclient.utils import InferenceServerException

    try:
        call(env.client)
    except InferenceServerException as error:
        assert error.status() == "StatusCode.UNIMPLEMENTED"
        assert len(error.message().split()) > 4, "a sentence is promised"
    else:
        raise AssertionError("this was answered")


@case
def log_settings(env: Env) -> None:
    before = env.client.get_log_settings(as_json=True)["settings"]
    assert set(before) == {
        "log_file", "log_info", "log_warning", "log_error", "log_verbose_level", "log_format"
    }  # fmt: skip
    assert before["log_error"] == {"bool_param": True}
    changed = {"log_verbose_level": 1, "log_format": "ISO8601"}
    after = env.client.update_log_settings(changed, as_json=True)["settings"]
    assert after["log_verbose_level"] == {"uint32_param": 1}
    assert after["log_format"] == {"string_param": "ISO8601"}
    env.client.update_log_settings({"log_verbose_level": 0, "log_format": "default"})
    assert env.client.get_log_settings(as_json=True)["settings"] == before
    for key, kind, value in (
        ("log_file", "string_param", "/tmp/x"),
        ("log_format", "string_param", "binary"),
        ("log_info", "uint32_param", 1),
        ("log_everything", "bool_param", True),
    ):
        wrong = env.pb.LogSettingsRequest()
        setattr(wrong.settings[key], kind, value)
        wrong.settings["log_error"].bool_param = False
        found = failure(env.stub.LogSettings, wrong)
        assert found.code == grpc.StatusCode.INVALID_ARGUMENT, key
        assert key in found.message, found
    assert env.client.get_log_settings(as_json=True)["settings"] == before


@case
def trace_settings_where_traces_go_nowhere(env: Env) -> None:
    settings = env.client.get_trace_settings(as_json=True)["settings"]
    assert settings["trace_level"] == {"value": ["OFF"]}
    change = env.pb.TraceSettingRequest()
    change.settings["trace_rate"].value.append("5")
    assert failure(env.stub.TraceSetting, change).code == grpc.StatusCode.UNIMPLEMENTED
    unknown = env.pb.TraceSettingRequest(model_name="nothing")
    assert failure(env.stub.TraceSetting, unknown).code == grpc.StatusCode.NOT_FOUND
