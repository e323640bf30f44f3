"""Everything that is asked about the server and its models; loading; health; reflection."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import grpc
import numpy as np

from conformance.cases import PATIENCE, Cases, Env, equal, failure, wait_for

case = Cases()

SERVICE = "inference.GRPCInferenceService"
HEALTH_SERVICE = "grpc.health.v1.Health"


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


def _state(env: Env, name: str) -> str:
    models = env.client.get_model_repository_index().models
    (state,) = {model.state for model in models if model.name == name}
    return str(state)


@case
def load_and_unload(env: Env) -> None:
    x = np.array([[2]], np.float32)
    env.client.unload_model("loadable")
    assert _state(env, "loadable") == "UNAVAILABLE"
    assert not env.client.is_model_ready("loadable")
    request = env.message("loadable", ("x", "FP32", [1, 1], x.tobytes()))
    assert failure(lambda: env.stub.ModelInfer(request)).code == grpc.StatusCode.UNAVAILABLE
    env.client.load_model("loadable")
    assert _state(env, "loadable") == "READY"
    equal(env.client.infer("loadable", env.inputs(x=x)).as_numpy("y"), x * 2)


@case
def load_with_a_configuration(env: Env) -> None:
    before = env.client.get_model_config("loadable").config.max_batch_size
    env.client.load_model("loadable", config='{"max_batch_size": 3}')
    assert env.client.get_model_config("loadable").config.max_batch_size == 3
    env.client.load_model("loadable")
    assert env.client.get_model_config("loadable").config.max_batch_size == before


@case
def load_with_a_wrong_configuration_leaves_the_model_be(env: Env) -> None:
    for config in ("{", '{"backend": "python"}', '{"max_batch_size": -1}'):
        load = env.pb.RepositoryModelLoadRequest(model_name="loadable")
        load.parameters["config"].string_param = config
        assert failure(env.stub.RepositoryModelLoad, load).message
        assert env.client.is_model_ready("loadable")
        assert _state(env, "loadable") == "READY"


@case
def load_with_files_is_not_offered(env: Env) -> None:
    load = env.pb.RepositoryModelLoadRequest(model_name="loadable")
    load.parameters["config"].string_param = "{}"
    load.parameters["file:1/model.onnx"].bytes_param = b"..."
    found = failure(lambda: env.stub.RepositoryModelLoad(load))
    assert found.code == grpc.StatusCode.UNIMPLEMENTED
    assert "file:1/model.onnx" in found.message


@case
def load_and_unload_of_what_is_not_there(env: Env) -> None:
    for name, code in (
        ("nothing", grpc.StatusCode.NOT_FOUND),
        ("", grpc.StatusCode.INVALID_ARGUMENT),
        ("../models/loadable", grpc.StatusCode.NOT_FOUND),
    ):
        load = env.pb.RepositoryModelLoadRequest(model_name=name)
        unload = env.pb.RepositoryModelUnloadRequest(model_name=name)
        assert failure(env.stub.RepositoryModelLoad, load).code == code
        assert failure(env.stub.RepositoryModelUnload, unload).code == code


@case
def load_and_unload_as_kserve_writes_it(env: Env) -> None:
    """KServe's request: model_name = 1. Its response: model_name = 1, isLoaded/isUnloaded = 2."""
    body = b"\x0a\x06kserve"
    for method, ready in (("RepositoryModelUnload", False), ("RepositoryModelLoad", True)):
        call: Any = env.channel.unary_unary(f"/{SERVICE}/{method}")
        assert call(body) == body + b"\x10\x01"
        assert env.client.is_model_ready("kserve") is ready


# Health and reflection are spoken by their own stubs, as a stranger's tool would.


def _check(env: Env, service: str) -> str:
    from grpc_health.v1 import health_pb2, health_pb2_grpc

    stub = health_pb2_grpc.HealthStub(env.channel)
    answer = stub.Check(health_pb2.HealthCheckRequest(service=service))
    return str(health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status))


@case
def health_check(env: Env) -> None:
    for service in ("", SERVICE, "identity_FP32"):
        assert _check(env, service) == "SERVING", service
    assert failure(lambda: _check(env, "nothing")).code == grpc.StatusCode.NOT_FOUND


@case
def health_watch_follows_a_model(env: Env) -> None:
    from grpc_health.v1 import health_pb2, health_pb2_grpc

    stub = health_pb2_grpc.HealthStub(env.channel)
    call = stub.Watch(health_pb2.HealthCheckRequest(service="watched"), timeout=PATIENCE)
    name = health_pb2.HealthCheckResponse.ServingStatus.Name
    assert name(next(call).status) == "SERVING"
    env.client.unload_model("watched")
    assert name(next(call).status) == "NOT_SERVING"
    assert _check(env, "watched") == "NOT_SERVING"
    assert _check(env, "") == "SERVING"
    env.client.load_model("watched")
    assert name(next(call).status) == "SERVING"
    call.cancel()


@case
def health_watch_of_the_unknown(env: Env) -> None:
    from grpc_health.v1 import health_pb2, health_pb2_grpc

    stub = health_pb2_grpc.HealthStub(env.channel)
    call = stub.Watch(health_pb2.HealthCheckRequest(service="nothing"), timeout=PATIENCE)
    name = health_pb2.HealthCheckResponse.ServingStatus.Name
    assert name(next(call).status) == "SERVICE_UNKNOWN"
    call.cancel()


@case
def health_of_a_model_that_failed_to_load(env: Env) -> None:
    assert _check(env, "broken") == "NOT_SERVING"


@case.each({"v1alpha": "grpc.reflection.v1alpha", "v1": "grpc.reflection.v1"})
def reflection(env: Env, package: str) -> None:
    """Services can be listed, and each one's file and those it imports be had and understood."""
    from google.protobuf import descriptor_pb2, descriptor_pool
    from grpc_reflection.v1alpha import reflection_pb2

    method = f"/{package}.ServerReflection/ServerReflectionInfo"
    call: Any = env.channel.stream_stream(
        method,
        request_serializer=reflection_pb2.ServerReflectionRequest.SerializeToString,
        response_deserializer=reflection_pb2.ServerReflectionResponse.FromString,
    )

    def ask(**question: str) -> Any:
        (answer,) = call(iter([reflection_pb2.ServerReflectionRequest(**question)]), timeout=20)
        return answer

    listed = ask(list_services="").list_services_response.service
    names = {service.name for service in listed}
    assert {SERVICE, HEALTH_SERVICE, f"{package}.ServerReflection"} <= names
    for name in names:
        answer = ask(file_containing_symbol=name)
        assert not answer.HasField("error_response"), (name, answer.error_response)
    pool = descriptor_pool.DescriptorPool()
    known: set[str] = set()

    def add(data: bytes) -> None:
        file = descriptor_pb2.FileDescriptorProto.FromString(data)
        for needed in file.dependency:
            if needed not in known:
                files = ask(file_by_filename=needed).file_descriptor_response
                for found in files.file_descriptor_proto:
                    add(found)
        if file.name not in known:
            known.add(file.name)
            pool.Add(file)

    for data in ask(file_containing_symbol=SERVICE).file_descriptor_response.file_descriptor_proto:
        add(data)
    assert pool.FindServiceByName(SERVICE).methods_by_name["ModelInfer"]
    missing = ask(file_containing_symbol="no.such.Service")
    assert missing.error_response.error_code == grpc.StatusCode.NOT_FOUND.value[0]


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
def loading_and_unloading_are_unavailable(env: Env) -> None:
    """Between the states of the index, calls are told what goes on."""
    request = env.lab("lab_slow_to_load")
    env.client.unload_model("lab_slow_to_load")
    loader = threading.Thread(target=env.client.load_model, args=("lab_slow_to_load",))
    loader.start()
    wait_for(lambda: _state(env, "lab_slow_to_load") == "LOADING", "LOADING")
    found = failure(lambda: env.stub.ModelInfer(request))
    assert (found.code, found.reason) == (grpc.StatusCode.UNAVAILABLE, "MODEL_UNAVAILABLE")
    assert "LOADING" in found.message
    loader.join(PATIENCE)
    assert _state(env, "lab_slow_to_load") == "READY"
    assert env.client.is_model_ready("lab_slow_to_load")
    assert env.stub.ModelInfer(request).model_name == "lab_slow_to_load"


@case
def a_load_goes_on_when_its_caller_leaves(env: Env) -> None:
    name = "lab_slow_to_load"
    env.client.unload_model(name)
    load = env.pb.RepositoryModelLoadRequest(model_name=name)
    call = env.stub.RepositoryModelLoad.future(load)
    wait_for(lambda: _state(env, name) == "LOADING", "LOADING")
    assert call.cancel()
    wait_for(lambda: _state(env, name) == "READY", "READY")
    assert env.stub.ModelInfer(env.lab(name)).model_name == name


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
