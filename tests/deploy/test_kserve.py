"""KServe's runtime: its command, as its container would run it, finds the model it was given.

KServe's own schemas come in no package that pip or npm installs: its objects are not validated.
"""

from __future__ import annotations

import pathlib

import yaml

from headrace.client import Client
from support import models, server

KSERVE = pathlib.Path(__file__).parents[2] / "deploy" / "kserve"


def test_a_model_is_called_as_the_service(tmp_path: pathlib.Path) -> None:
    runtime = yaml.safe_load((KSERVE / "runtime.yaml").read_text())
    service = yaml.safe_load((KSERVE / "inferenceservice.yaml").read_text())
    (container,) = runtime["spec"]["containers"]
    command, model = container["args"]
    assert "command" not in container, "the image's own"
    assert command == "serve"
    name = service["metadata"]["name"]

    files = tmp_path / "mnt" / "models"
    files.mkdir(parents=True)
    models.save(models.scaled(2), files / "model.onnx")
    model = model.replace("{{.Name}}", name).replace("=/", f"={tmp_path}/")
    with server.serving(tmp_path / "log", model) as running, Client(running.grpc) as client:
        assert [found.name for found in client.repository_index()] == [name]
        assert client.model_ready(name)


def test_the_service_asks_for_what_the_runtime_offers() -> None:
    runtime = yaml.safe_load((KSERVE / "runtime.yaml").read_text())["spec"]
    service = yaml.safe_load((KSERVE / "inferenceservice.yaml").read_text())
    predictor = service["spec"]["predictor"]
    model = predictor["model"]
    assert model["modelFormat"]["name"] in {f["name"] for f in runtime["supportedModelFormats"]}
    assert model["protocolVersion"] in runtime["protocolVersions"]
    assert 0 < predictor["canaryTrafficPercent"] < 100
