"""Health and metrics over HTTP."""

from __future__ import annotations

import pathlib
import re
import urllib.request

import numpy as np
import pytest

from headrace.client import Client, HeadraceError, RetryPolicy
from support import models, server


def test_health_follows_the_models(tmp_path: pathlib.Path) -> None:
    models.write(tmp_path / "models", "m", models.scaled())
    models.write(tmp_path / "models", "broken", b"not a model")
    with server.serving(tmp_path / "log", tmp_path / "models") as running:
        assert "\n/v2/health/ready\n" in running.get("/")[1]
        assert running.get("/v2/health/live") == (200, "live\n")
        assert running.get("/v2/health/ready") == (200, "ready\n")
        assert running.get("/v2/models/m/ready")[0] == 200
        assert running.get("/v2/models/m/versions/1/ready")[0] == 200
        assert running.get("/v2/models/m/versions/2/ready")[0] == 404
        assert running.get("/v2/models/nothing/ready")[0] == 404
        status, text = running.get("/v2/models/broken/ready")
        assert status == 503
        assert "model.onnx" in text
        with Client(running.grpc) as client:
            client.unload_model("m")
            assert running.get("/v2/models/m/ready")[0] == 503
            assert running.get("/v2/health/live")[0] == 200
            client.load_model("m")
        assert running.get("/v2/models/m/ready")[0] == 200
        assert running.get("/no/such/path")[0] == 404


def test_what_is_no_http_is_told_in_a_line(tmp_path: pathlib.Path) -> None:
    models.write(tmp_path / "models", "m", models.scaled())
    with server.serving(tmp_path / "log", tmp_path / "models") as running:
        once = RetryPolicy(max_attempts=1)
        with Client(running.http, retry=once) as client, pytest.raises(HeadraceError):
            client.server_live(deadline=2)
        assert running.get("/v2/health/live") == (200, "live\n")
    told = [record for record in running.log() if "no HTTP/1" in record["message"]]
    assert told
    assert all(record["level"] == "warning" for record in told)
    for record in told:
        assert "exception" not in record
        assert not any(part in record["message"] for part in ("Traceback", "\\x", "PRI *"))


def test_answers_name_the_server_and_not_what_it_is_made_of(tmp_path: pathlib.Path) -> None:
    models.write(tmp_path / "models", "m", models.scaled())
    with server.serving(tmp_path / "log", tmp_path / "models") as running:
        for path in ("/v2/health/live", "/metrics"):
            with urllib.request.urlopen(f"http://{running.http}{path}") as answer:
                assert answer.headers["Server"] == "headrace"


def test_metrics_count_what_happened(tmp_path: pathlib.Path) -> None:
    config = "instance_group [{ count: 1 }]"
    models.write(tmp_path / "models", "lab", models.lab(), config=config)
    zero, one = np.zeros(2, np.int64), np.ones((2, 1), np.float32)
    with server.serving(tmp_path / "log", tmp_path / "models") as running:
        with Client(running.grpc) as client:
            for _ in range(3):
                client.infer("lab", {"x": one, "steps": zero, "index": zero})
            failed = 0
            for _ in range(2):
                try:
                    client.infer("lab", {"x": one, "steps": zero, "index": zero + 99})
                except Exception:  # noqa: BLE001 (how it fails is another test's business)
                    failed += 1
            assert failed == 2
        status, text = running.get("/metrics")
    assert status == 200

    def value(name: str, **labels: str) -> float:
        for line in text.splitlines():
            found = re.fullmatch(rf"{name}\{{(.*)\}} (\S+)", line)
            if found and all(f'{key}="{label}"' in found[1] for key, label in labels.items()):
                return float(found[2])
        raise AssertionError(f"no {name} {labels} in {text}")

    lab = {"model": "lab", "version": "1"}
    assert value("headrace_requests_total", **lab, outcome="answered") == 3
    assert value("headrace_requests_total", **lab, outcome="model failed") == 2
    assert value("headrace_rows_total", **lab) == 6
    assert value("headrace_queue_requests", **lab) == 0
    assert value("headrace_executors_busy", **lab) == 0
    assert value("headrace_request_time_seconds_total", **lab, phase="compute_infer") > 0
