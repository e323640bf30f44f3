"""Dashboards and alerts as they are given, against a real Prometheus that scrapes a real server."""

from __future__ import annotations

import contextlib
import json
import pathlib
import re
import shutil
import socket
import subprocess
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import yaml

from headrace.client import Client
from headrace.client.errors import HeadraceError
from support import models, server
from support.server import PATIENCE

DEPLOY = pathlib.Path(__file__).parents[2] / "deploy"
DASHBOARD = json.loads((DEPLOY / "grafana" / "headrace.json").read_text())
COMPONENTS = DEPLOY / "kubernetes" / "components"
POD = {"namespace": "headrace", "pod": "headrace-0"}
SCRAPE_SECONDS = 1
WATCHED = """
instances = 1
[quality]
task = "classification"
output = "picked"
window = 10
reference = 10
"""
REGRESSION = '[quality]\ntask = "regression"\ndrift = false\n'
MISSING = [name for name in ("prometheus", "promtool") if shutil.which(name) is None]

pytestmark = [
    pytest.mark.prometheus,
    pytest.mark.skipif(bool(MISSING), reason=f"not installed: {', '.join(MISSING)}"),
]


def queries() -> list[tuple[str, str]]:
    """Title and expression of every query of the dashboard, its variables filled in."""
    found = []
    for panel in DASHBOARD["panels"]:
        for target in panel.get("targets", ()):
            expression = target["expr"].replace("$__rate_interval", "10s")
            expression = expression.replace("$model", ".*").replace("$job", "headrace")
            assert "$" not in expression, expression
            found.append((panel["title"], expression))
    return found


def adapted() -> list[str]:
    """What prometheus-adapter asks by its rules: for the pods that there are, and of a pod."""
    values = yaml.safe_load((COMPONENTS / "queue-age" / "adapter-values.yaml").read_text())
    matchers = ",".join(f'{label}="{value}"' for label, value in POD.items())
    found = []
    for rule in values["rules"]["custom"]:
        expression = rule["metricsQuery"].replace("<<.Series>>", rule["seriesQuery"].split("{")[0])
        expression = expression.replace("<<.LabelMatchers>>", matchers)
        expression = expression.replace("<<.GroupBy>>", "pod")
        assert "<<" not in expression, expression
        found += [rule["seriesQuery"], expression]
    return found


def triggers() -> dict[str, str]:
    """KEDA's queries."""
    scaled = yaml.safe_load((COMPONENTS / "scale-to-zero" / "scaledobject.yaml").read_text())
    return {each["name"]: each["metadata"]["query"] for each in scaled["spec"]["triggers"]}


class Prometheus:
    def __init__(self, port: int) -> None:
        self._base = f"http://127.0.0.1:{port}"

    def query(self, expression: str) -> list[Any]:
        """The samples of an instant query. Raises AssertionError for one that is not understood."""
        asked = urllib.parse.urlencode({"query": expression})
        try:
            with urllib.request.urlopen(f"{self._base}/api/v1/query?{asked}") as response:
                answer = json.load(response)
        except urllib.error.HTTPError as error:
            raise AssertionError(f"{expression}: {error.read().decode()}") from error
        assert answer["status"] == "success", answer
        result: list[Any] = answer["data"]["result"]
        return result

    def until(self, expression: str) -> None:
        """Waits for a sample that is a number."""
        ends = time.monotonic() + PATIENCE
        while not any(sample["value"][1] != "NaN" for sample in self.query(expression)):
            assert time.monotonic() < ends, f"no data: {expression}"
            time.sleep(0.2)


@contextlib.contextmanager
def prometheus(folder: pathlib.Path, target: str) -> Iterator[Prometheus]:
    """A Prometheus that scrapes `target` by the configuration that we give, but more often."""
    given = (DEPLOY / "prometheus" / "prometheus.yml").read_text()
    given = given.replace("127.0.0.1:8002", target).replace("10s", f"{SCRAPE_SECONDS}s")
    # Labelled as the Prometheus operator labels a pod: autoscalers ask by that.
    configuration = yaml.safe_load(given)
    configuration["scrape_configs"][0]["static_configs"][0]["labels"] = POD
    (folder / "prometheus.yml").write_text(yaml.safe_dump(configuration))
    shutil.copy(DEPLOY / "prometheus" / "alerts.yml", folder)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with (folder / "prometheus.log").open("w") as log:
        process = subprocess.Popen(
            [
                "prometheus",
                f"--config.file={folder / 'prometheus.yml'}",
                f"--storage.tsdb.path={folder / 'data'}",
                f"--web.listen-address=127.0.0.1:{port}",
            ],
            stdout=log,
            stderr=log,
        )
    try:
        _until_ready(port, process)
        yield Prometheus(port)
    finally:
        process.terminate()
        process.wait(PATIENCE)


def _until_ready(port: int, process: subprocess.Popen[bytes]) -> None:
    ends = time.monotonic() + PATIENCE
    while time.monotonic() < ends:
        assert process.poll() is None, "Prometheus has ended"
        with (
            contextlib.suppress(OSError),
            urllib.request.urlopen(f"http://127.0.0.1:{port}/-/ready"),
        ):
            return
        time.sleep(0.05)
    raise AssertionError("Prometheus did not become ready")


@contextlib.contextmanager
def load(address: str) -> Iterator[None]:
    """Requests of different lengths, some of which fail, until the block ends."""
    stop = threading.Event()

    def call(number: int) -> None:
        with Client(address) as client:
            while not stop.is_set():
                for width in (1, 3):
                    zero = np.zeros(1, np.int64)
                    index = zero + (99 if number == 0 else 0)
                    inputs: dict[str, Any] = {
                        "x": np.ones((1, width), np.float32),
                        "steps": zero,
                        "index": index,
                    }
                    with contextlib.suppress(HeadraceError):
                        client.infer("lab", inputs, request_id=f"{number}")
                        client.report("lab", {f"{number}": 100})
                    client.infer("double", {"x": inputs["x"]}, request_id=f"{number}")
                    client.report("double", {f"{number}": [2.5] * width})
                    stop.wait(0.01)

    with ThreadPoolExecutor(4) as pool:
        calls = [pool.submit(call, number) for number in range(4)]
        try:
            yield
        finally:
            stop.set()
    for each in calls:
        each.result()


def test_every_query_finds_data(tmp_path: pathlib.Path) -> None:
    pytest.importorskip("scipy")
    models.write(tmp_path / "models", "lab", models.lab(), toml=WATCHED)
    models.write(tmp_path / "models", "double", models.scaled(2), toml=REGRESSION)
    with (
        server.serving(tmp_path / "log", tmp_path / "models") as running,
        prometheus(tmp_path, running.http) as asked,
        load(running.grpc),
    ):
        for title, expression in queries():
            if title.startswith("GPU"):
                asked.query(expression)  # understood; whether there is one is the machine's affair
            else:
                asked.until(expression)
        for variable in DASHBOARD["templating"]["list"]:
            if variable["type"] == "query":
                found = re.fullmatch(r"label_values\((\w+), (\w+)\)", variable["query"]["query"])
                assert found
                samples = asked.query(found[1])
                assert all(sample["metric"].get(found[2]) for sample in samples)
                assert samples
        assert asked.query('up{job="headrace"} == 1')
        for expression in adapted():
            asked.until(expression)
            assert {sample["metric"]["pod"] for sample in asked.query(expression)} == {POD["pod"]}
        for name, expression in triggers().items():
            if name == "refused-in-front":
                asked.query(expression)  # understood; test_rolling.py asks an Envoy for its count
            else:
                asked.until(expression)
                assert len(asked.query(expression)) == 1, "KEDA takes one number"


def test_panels_do_not_overlap() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        place = panel["gridPos"]
        cells = {
            (place["x"] + dx, place["y"] + dy)
            for dx in range(place["w"])
            for dy in range(place["h"])
        }
        assert not cells & taken, panel["title"]
        assert place["x"] + place["w"] <= 24
        taken |= cells


def test_the_rules_alert_when_they_should() -> None:
    ran = subprocess.run(
        ["promtool", "test", "rules", "alerts_test.yml"],
        cwd=DEPLOY / "prometheus",
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert "SUCCESS" in ran.stdout


def test_every_alert_is_tested() -> None:
    rules = (DEPLOY / "prometheus" / "alerts.yml").read_text()
    tests = (DEPLOY / "prometheus" / "alerts_test.yml").read_text()
    names = set(re.findall(r"alert: (\w+)", rules))
    assert names
    assert names == set(re.findall(r"alertname: (\w+)", tests))
