"""Models loaded and unloaded by request."""

from __future__ import annotations

import threading
from typing import Any

import grpc
import numpy as np

from conformance.cases import PATIENCE, SERVICE, Cases, Env, equal, failure, wait_for

case = Cases()


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
