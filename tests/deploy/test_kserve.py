"""KServe's objects, against what its own client says of them; and the runtime's command, as its
container would run it, which finds the model that it was given.

That client is fetched as a wheel, which is read and not installed.
"""

from __future__ import annotations

import functools
import json
import pathlib
from typing import Any

import pytest
import yaml

from headrace.client import Client
from support import kinds, models, server

KSERVE = pathlib.Path(__file__).parents[2] / "deploy" / "kserve"
WHEELS = pathlib.Path(__file__).parent / "schemas" / "wheels"
RELEASES = ("1.32", "1.37")

has_schemas = pytest.mark.skipif(
    not WHEELS.is_dir(), reason="KServe's client is not fetched: make check does it"
)


@functools.cache
def types() -> kinds.Types:
    (wheel,) = WHEELS.glob("kserve-*.whl")
    return kinds.of_generated_client(wheel, "kserve/models")


def objects() -> list[dict[str, Any]]:
    found = [each for f in KSERVE.glob("*.yaml") for each in yaml.safe_load_all(f.read_text())]
    return [each for each in found if each["apiVersion"].startswith("serving.kserve.io/")]


def problems(item: dict[str, Any], release: str) -> list[str]:
    """The client's classes are called by the version and the kind."""
    version = item["apiVersion"].rpartition("/")[2].capitalize()
    return kinds.problems(item, version + item["kind"], types(), release)


@has_schemas
@pytest.mark.parametrize("release", RELEASES)
def test_schemas(release: str) -> None:
    checked = objects()
    assert {each["kind"] for each in checked} == {"ClusterServingRuntime", "InferenceService"}
    for item in checked:
        assert problems(item, release) == []


@has_schemas
@pytest.mark.parametrize(
    ("kind", "old", "new", "expected"),
    [
        ("InferenceService", "canaryTrafficPercent", "canaryTraficPercent", "spec.predictor: Add"),
        ("InferenceService", '"minReplicas": 0', '"minReplicas": "0"', "minReplicas: '0' is not"),
        ("InferenceService", '"storageUri"', '"storageURI"', "spec.predictor.model: Additional"),
        ("ClusterServingRuntime", "protocolVersions", "protocolVersion", "$.spec: Additional"),
        ("ClusterServingRuntime", "readinessProbe", "readinesProbe", "containers[0]: Additional"),
        ("ClusterServingRuntime", '"containers"', '"container"', "'containers' is a required"),
    ],
)
def test_the_schemas_find_what_is_wrong(kind: str, old: str, new: str, expected: str) -> None:
    (item,) = (each for each in objects() if each["kind"] == kind)
    text = json.dumps(item)
    assert old in text
    found = problems(json.loads(text.replace(old, new)), RELEASES[-1])
    assert any(expected in each for each in found), found


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
