"""What KubeRay, Ray Serve and Ray's autoscaler are told: against what each of them knows."""

from __future__ import annotations

import copy
import json
import pathlib
from typing import Any

import pytest
import yaml

from support import kinds

RAY = pathlib.Path(__file__).parents[2] / "deploy" / "ray"
TYPES = kinds.of_notation(pathlib.Path(__file__).parent / "schemas" / "kuberay.yaml")
RELEASES = ("1.32", "1.37")
SERVICE, ADDRESS = yaml.safe_load_all((RAY / "rayservice.yaml").read_text())
SERVE = yaml.safe_load((RAY / "serve.yaml").read_text())


def problems(item: dict[str, Any], release: str) -> list[str]:
    return kinds.problems(item, item["kind"], TYPES, release)


def as_cluster() -> dict[str, Any]:
    """The RayCluster that KubeRay makes of the RayService."""
    metadata = {"name": "headrace", "namespace": "headrace"}
    spec = copy.deepcopy(SERVICE["spec"]["rayClusterConfig"])
    return {"apiVersion": "ray.io/v1", "kind": "RayCluster", "metadata": metadata, "spec": spec}


@pytest.mark.parametrize("release", RELEASES)
def test_schemas(release: str) -> None:
    assert (SERVICE["apiVersion"], SERVICE["kind"]) == ("ray.io/v1", "RayService")
    assert problems(SERVICE, release) == []
    assert problems(as_cluster(), release) == []
    kubernetes_validate = pytest.importorskip("kubernetes_validate")
    kubernetes_validate.validate(ADDRESS, release, strict=True)


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("serveConfigV2", "serveConfig", "$.spec: Additional"),
        ("enableInTreeAutoscaling", "enableInTreeAutoscalling", "rayClusterConfig: Additional"),
        ('"maxReplicas"', '"maxReplica"', "'maxReplicas' is a required"),
        ('"minReplicas": 1', '"minReplicas": "1"', "minReplicas: '1' is not"),
        ('"num-cpus": "0"', '"num-cpus": 0', "num-cpus'].*: 0 is not"),
        ('"claimName"', '"claim"', "persistentVolumeClaim: Additional"),
    ],
)
def test_the_schemas_find_what_is_wrong(old: str, new: str, expected: str) -> None:
    text = json.dumps(SERVICE)
    assert old in text
    found = problems(json.loads(text.replace(old, new)), RELEASES[-1])
    start, _, end = expected.partition(".*")
    assert any(start in each and end in each for each in found), found


def test_ray_serve_knows_every_word() -> None:
    """Ray itself takes words that it does not know, so that they have no effect."""
    schema = pytest.importorskip("ray.serve.schema", reason="not installed: headrace[ray]")
    config = pytest.importorskip("ray.serve.config")
    schema.ServeDeploySchema.model_validate(SERVE)
    (application,) = SERVE["applications"]
    (deployment,) = application["deployments"]
    for given, model in (
        (SERVE, schema.ServeDeploySchema),
        (SERVE["grpc_options"], schema.gRPCOptionsSchema),
        (application, schema.ServeApplicationSchema),
        (deployment, schema.DeploymentSchema),
        (deployment["ray_actor_options"], schema.RayActorOptionsSchema),
        (deployment["autoscaling_config"], config.AutoscalingConfig),
    ):
        assert given.keys() <= model.model_fields.keys()
    config.AutoscalingConfig(**deployment["autoscaling_config"])


def test_nodes_come_as_replicas_ask_for_them() -> None:
    """By what Ray's autoscaler, which runs beside KubeRay's head, makes of the RayCluster."""
    reader = pytest.importorskip(
        "ray.autoscaler._private.kuberay.autoscaling_config", reason="not installed: headrace[ray]"
    )
    found = reader._derive_autoscaling_config_from_ray_cr(as_cluster())
    head = found["available_node_types"][found["head_node_type"]]
    workers = found["available_node_types"]["workers"]
    (deployment,) = SERVE["applications"][0]["deployments"]
    scaling, each = deployment["autoscaling_config"], deployment["ray_actor_options"]["num_cpus"]
    assert head["resources"]["CPU"] == 0
    assert workers["resources"]["CPU"] == each, "a node for each replica"
    assert (workers["min_workers"], workers["max_workers"]) == (
        scaling["min_replicas"],
        scaling["max_replicas"],
    )


def test_what_kubernetes_is_told_is_the_same() -> None:
    told = yaml.safe_load(SERVICE["spec"]["serveConfigV2"])
    assert told == SERVE
    (port,) = ADDRESS["spec"]["ports"]
    assert port["port"] == port["targetPort"] == told["grpc_options"]["port"]
    cluster = SERVICE["spec"]["rayClusterConfig"]
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        labels = group["template"]["metadata"]["labels"] | {"ray.io/serve": "true"}
        assert ADDRESS["spec"]["selector"] == labels
