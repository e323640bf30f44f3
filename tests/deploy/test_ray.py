"""Ray, on a cluster of two nodes that are both this machine: Ray Serve by the configuration that is
given, and `headrace batch --engine ray`, killed and resumed."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import pathlib
import random
import select
import signal
import socket
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import yaml

from headrace.client import (
    Client,
    DeadlineExceeded,
    HeadraceError,
    InvalidInput,
    ModelNotFound,
    RetryPolicy,
    Unimplemented,
)
from support import models, server

pytestmark = [
    pytest.mark.skipif(
        importlib.util.find_spec("ray") is None,
        reason="not installed: pip install 'headrace[ray]'",
    ),
    pytest.mark.timeout(240),
]

HERE = pathlib.Path(__file__).parent
RAY = HERE.parents[1] / "deploy" / "ray"
NODES, CPUS = 2, 2
PATIENCE = 120.0
ONCE = RetryPolicy(max_attempts=1)
CALLS = 41


def environment() -> dict[str, str]:
    """Nothing is asked of anybody, and nothing said to anybody."""
    more = {
        "PATH": f"{sysconfig.get_path('scripts')}{os.pathsep}{os.environ['PATH']}",
        "RAY_USAGE_STATS_ENABLED": "0",
        # Else a token is made in the user's home.
        "RAY_AUTH_MODE": "disabled",
        # A machine that others fill is no reason to kill a worker.
        "RAY_memory_monitor_refresh_ms": "0",
    }
    return server.clean_environment(more)


@pytest.fixture(scope="module")
def cluster() -> Iterator[str]:
    """The address of the first node. Its sockets need a short name: not in pytest's folder."""
    with tempfile.TemporaryDirectory(prefix="ray-", dir="/tmp") as folder:
        with pathlib.Path(folder, "log").open("w") as log:
            process = subprocess.Popen(
                [sys.executable, HERE / "ray_cluster.py", str(NODES), str(CPUS)],
                env=environment() | {"RAY_TMPDIR": folder},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )
        assert process.stdin is not None
        assert process.stdout is not None
        with process.stdin, process.stdout:
            readable, _, _ = select.select([process.stdout], [], [], PATIENCE)
            address = process.stdout.readline().strip() if readable else ""
            try:
                assert address, pathlib.Path(folder, "log").read_text()
                yield address
            finally:
                process.stdin.close()
                process.wait(PATIENCE)


def eventually(
    holds: Callable[[], bool], process: subprocess.Popen[Any], log: pathlib.Path
) -> None:
    end = time.monotonic() + PATIENCE
    while not holds():
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < end, log.read_text()
        time.sleep(0.1)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def configured(repository: pathlib.Path, port: int) -> dict[str, Any]:
    """What is given, with this machine's ports and paths, and a replica on each node."""
    found: dict[str, Any] = yaml.safe_load((RAY / "serve.yaml").read_text())
    found["grpc_options"]["port"] = port
    # Both nodes are one machine: their proxies would want the same port.
    found |= {"proxy_location": "HeadOnly", "http_options": {"port": free_port()}}
    (application,) = found["applications"]
    application["args"] = {"models": [str(repository)]}
    (deployment,) = application["deployments"]
    deployment["ray_actor_options"] = {"num_cpus": 1}
    deployment["max_ongoing_requests"] = 4
    deployment["autoscaling_config"] |= {"min_replicas": NODES, "max_replicas": NODES}
    return found


@contextlib.contextmanager
def serving(folder: pathlib.Path, cluster: str) -> Iterator[str]:
    """`serve run` inside the block; gives the address of gRPC."""
    repository = folder / "models"
    models.write(repository, "double", models.scaled(2))
    models.write(repository, "lab", models.lab())
    port = free_port()
    file, log = folder / "serve.yaml", folder / "log"
    file.write_text(yaml.safe_dump(configured(repository, port)))
    with log.open("w") as output:
        process = subprocess.Popen(
            ["serve", "run", f"--address={cluster}", file],
            env=environment(),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            # Whoever is started in the background of a shell ignores it, and so do its children.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
    try:
        address = f"127.0.0.1:{port}"
        with Client(address, retry=ONCE) as client:

            def ready() -> bool:
                with contextlib.suppress(HeadraceError):
                    return client.server_ready(deadline=5)
                return False

            eventually(ready, process, log)
        yield address
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(PATIENCE)


def test_serve(tmp_path: pathlib.Path, cluster: str) -> None:
    with serving(tmp_path, cluster) as address, Client(address, retry=ONCE) as client:

        def one(number: int) -> float:
            inputs = {"x": np.array([[number]], np.float32)}
            return float(client.infer("double", inputs, deadline=PATIENCE)["y"].item())

        def count(_: int) -> int:
            return client.model_statistics("double")[0].inference_count

        total, counts = 0, set[int]()
        end = time.monotonic() + PATIENCE
        with ThreadPoolExecutor(CALLS) as pool:
            while len(counts) < NODES:  # a proxy turns to other nodes when its own is busy
                assert time.monotonic() < end, f"of {total} calls, by replica: {counts}"
                assert list(pool.map(one, range(CALLS))) == [2.0 * n for n in range(CALLS)]
                total += CALLS
                counts = set(pool.map(count, range(CALLS)))
        assert sum(counts) == total

        assert client.server_metadata().name == "headrace"
        assert [t.name for t in client.model_metadata("double").inputs] == ["x"]
        with pytest.raises(ModelNotFound) as missing:
            client.infer("triple", {"x": np.zeros((1, 1), np.float32)})
        assert missing.value.reason == "MODEL_NOT_FOUND"
        with pytest.raises(InvalidInput, match="expected datatype FP32, got FP64"):
            client.infer("double", {"x": np.zeros((1, 1))})
        with pytest.raises(Unimplemented):
            client.load_model("double")
        endless: dict[str, Any] = {
            "x": np.zeros((1, 1), np.float32),
            "steps": np.array([models.ENDLESS], np.int64),
            "index": np.zeros(1, np.int64),
        }
        with pytest.raises(DeadlineExceeded):
            client.infer("lab", endless, deadline=0.5)
        assert one(4) == 8


def batch(cluster: str | None, *arguments: str | pathlib.Path) -> subprocess.Popen[str]:
    """Of what it says on standard error, Ray says much of its own."""
    engine = [] if cluster is None else ["--engine=ray", f"--ray-address={cluster}"]
    return subprocess.Popen(
        [server.executable(), "batch", *arguments, *engine],
        env=environment(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_batch(tmp_path: pathlib.Path, cluster: str) -> None:
    """On the cluster, its driver killed on the way, it is what one process alone makes of it."""
    models.save(models.lab(), tmp_path / "lab.onnx")
    rows = 400
    index = np.arange(rows) % 10
    index[::50] = 99  # on these the run fails
    x = np.random.default_rng(0).standard_normal((rows, 3)).astype(np.float32)
    np.savez(tmp_path / "rows.npz", x=x, steps=np.full(rows, 50), index=index)
    flags = ("--format=npz", "--on-error=skip", "--rows-per-part=20")
    given = (tmp_path / "lab.onnx", tmp_path / "rows.npz", *flags, "--output")
    ours, alone = tmp_path / "ray", tmp_path / "alone"

    process = batch(cluster, *given, ours)
    end = time.monotonic() + PATIENCE
    while len(list(ours.glob("part-*.npz"))) < 3 and process.poll() is None:
        assert time.monotonic() < end
        time.sleep(0.005)
    time.sleep(random.uniform(0, 0.02))
    process.kill()
    process.communicate()
    assert not (ours / "summary.json").exists(), "it was still running"

    for engine, output in ((cluster, ours), (None, alone)):
        process = batch(engine, *given, output)
        said, errors = process.communicate(timeout=PATIENCE)
        assert process.returncode == 0, errors
        assert said.startswith("392 of 400 rows"), said
    names = {path.name for path in alone.iterdir()}
    assert {path.name for path in ours.iterdir()} == names
    for path in sorted(alone.glob("part-*.npz")):
        with np.load(path) as expected, np.load(ours / path.name) as found:
            assert expected.files == found.files
            for name in expected.files:
                assert np.array_equal(expected[name], found[name]), (path.name, name)
    assert (ours / "skipped.jsonl").read_text() == (alone / "skipped.jsonl").read_text()


def test_what_kubernetes_is_told_is_the_same() -> None:
    service, address = yaml.safe_load_all((RAY / "rayservice.yaml").read_text())
    told = yaml.safe_load(service["spec"]["serveConfigV2"])
    assert told == yaml.safe_load((RAY / "serve.yaml").read_text())
    (port,) = address["spec"]["ports"]
    assert port["port"] == port["targetPort"] == told["grpc_options"]["port"]
    cluster = service["spec"]["rayClusterConfig"]
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        labels = group["template"]["metadata"]["labels"] | {"ray.io/serve": "true"}
        assert address["spec"]["selector"] == labels
