"""Ray, on a cluster of two nodes that are both this machine: Ray Serve by the configuration that is
given, its replicas fixed or as many as the load wants; and `headrace batch --engine ray`, killed
and resumed."""

from __future__ import annotations

import contextlib
import importlib.util
import pathlib
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
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
from support import models, ray_cluster, server
from support.ray_cluster import PATIENCE

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
ONCE = RetryPolicy(max_attempts=1)
CALLS = 41
# Whoever is started in the background of a shell ignores SIGINT, and so do its children. Not by
# `preexec_fn`: that forks, and a fork of a process that uses gRPC may crash (grpc/grpc#43055).
INTERRUPTIBLE = """
import os, signal, sys
signal.signal(signal.SIGINT, signal.SIG_DFL)
os.execvp(sys.argv[1], sys.argv[1:])
"""


@pytest.fixture(scope="module")
def cluster() -> Iterator[str]:
    with ray_cluster.running(NODES, CPUS) as address:
        yield address


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


def configured(repository: pathlib.Path, port: int, scaling: Mapping[str, Any]) -> dict[str, Any]:
    """What is given, with this machine's ports and paths, and what `scaling` says of replicas."""
    found: dict[str, Any] = yaml.safe_load((RAY / "serve.yaml").read_text())
    found["grpc_options"]["port"] = port
    # Both nodes are one machine: their proxies would want the same port.
    found |= {"proxy_location": "HeadOnly", "http_options": {"port": free_port()}}
    (application,) = found["applications"]
    application["args"] = {"models": [str(repository)]}
    (deployment,) = application["deployments"]
    deployment["ray_actor_options"] = {"num_cpus": 1}
    deployment["max_ongoing_requests"] = 4
    deployment["autoscaling_config"] |= scaling
    return found


@contextlib.contextmanager
def serving(folder: pathlib.Path, cluster: str, scaling: Mapping[str, Any]) -> Iterator[str]:
    """`serve run` inside the block; gives the address of gRPC."""
    repository = folder / "models"
    models.write(repository, "double", models.scaled(2))
    models.write(repository, "lab", models.lab())
    port = free_port()
    file, log = folder / "serve.yaml", folder / "log"
    file.write_text(yaml.safe_dump(configured(repository, port, scaling)))
    with log.open("w") as output:
        process = subprocess.Popen(
            [sys.executable, "-c", INTERRUPTIBLE, "serve", "run", f"--address={cluster}", file],
            env=ray_cluster.environment(),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
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


def right(client: Client, number: int, steps: int = 0) -> bool:
    """Whether a call that takes so many steps is answered as it should be."""
    inputs: dict[str, Any] = {
        "x": np.array([[number]], np.float32),
        "steps": np.array([steps], np.int64),
        "index": np.zeros(1, np.int64),
    }
    return bool(client.infer("lab", inputs, deadline=PATIENCE)["y"].item() == 2 * number + 1)


def spread(client: Client, steps: int) -> None:
    """Calls in waves, each of them `steps` long, until every node has answered some: a proxy turns
    to others when its own is busy. The answers are right, and each is counted by one replica."""

    def count(_: int) -> int:
        return client.model_statistics("lab")[0].inference_count

    total, counts = 0, {0}
    end = time.monotonic() + PATIENCE
    with ThreadPoolExecutor(CALLS) as pool:
        while len(counts) < NODES or 0 in counts:
            assert time.monotonic() < end, f"of {total} calls, by replica: {counts}"
            assert all(pool.map(lambda number: right(client, number, steps), range(CALLS)))
            total += CALLS
            counts = set(pool.map(count, range(CALLS)))
    assert sum(counts) == total


@contextlib.contextmanager
def called(client: Client) -> Iterator[None]:
    """Inside the block, call after call, each answered as it should be."""
    stop = threading.Event()

    def one_by_one() -> int:
        number = 0
        while not stop.is_set():
            assert right(client, number)
            number += 1
        return number

    with ThreadPoolExecutor(1) as pool:
        calls = pool.submit(one_by_one)
        try:
            yield
        finally:
            stop.set()
        assert calls.result(PATIENCE) > 0


def test_serve(tmp_path: pathlib.Path, cluster: str) -> None:
    one_each = {"min_replicas": NODES, "max_replicas": NODES}
    with serving(tmp_path, cluster, one_each) as address, Client(address, retry=ONCE) as client:
        spread(client, steps=0)

        assert client.server_metadata().name == "headrace"
        assert [t.name for t in client.model_metadata("double").inputs] == ["x"]
        with pytest.raises(ModelNotFound) as missing:
            client.infer("triple", {"x": np.zeros((1, 1), np.float32)})
        assert missing.value.reason == "MODEL_NOT_FOUND"
        with pytest.raises(InvalidInput, match=r"expected datatype FP32 \(float32\), got FP64"):
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
        again = client.infer("double", {"x": np.array([[4]], np.float32)}, deadline=PATIENCE)
        assert again["y"].item() == 8


def test_replicas_come_with_load_and_go_without(tmp_path: pathlib.Path, cluster: str) -> None:
    """From one to two and back; what is called meanwhile is answered, and rightly. The delays are
    short ones: those that are given are for machines that take their time to start."""
    scaling = {
        "min_replicas": 1,
        "max_replicas": NODES,
        "target_ongoing_requests": 2,
        "look_back_period_s": 1,
        "metrics_interval_s": 0.5,
        "upscale_delay_s": 0,
        "downscale_delay_s": 4,
    }
    with (
        serving(tmp_path, cluster, scaling) as address,
        Client(address, retry=ONCE) as client,
        ray_cluster.replicas(cluster, tmp_path / "replicas") as wait,
    ):
        wait(1)
        spread(client, steps=2000)
        wait(NODES)
        with called(client):
            wait(1)


def batch(cluster: str | None, *arguments: str | pathlib.Path) -> subprocess.Popen[str]:
    """Of what it says on standard error, Ray says much of its own."""
    engine = [] if cluster is None else ["--engine=ray", f"--ray-address={cluster}"]
    return subprocess.Popen(
        [server.executable(), "batch", *arguments, *engine],
        env=ray_cluster.environment(),
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
