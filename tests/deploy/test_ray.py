"""Ray, on a cluster of two nodes that both are this machine: Ray Serve by the configuration that is
given, and `headrace batch --engine ray`, killed and resumed."""

from __future__ import annotations

import importlib.util
import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import sysconfig
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import yaml

from headrace.client import Client, HeadraceError, InvalidInput, ModelNotFound, RetryPolicy
from headrace.client.errors import Unimplemented
from support import models, server

pytestmark = [
    pytest.mark.skipif(
        importlib.util.find_spec("ray") is None, reason="not installed: pip install 'ray[data,serve]'"
    ),
    pytest.mark.timeout(180),
]

RAY = pathlib.Path(__file__).parents[2] / "deploy" / "ray"
CONFIGURATION: dict[str, Any] = yaml.safe_load((RAY / "serve.yaml").read_text())
NODES = 2
PATIENCE = 120.0


def environment(folder: pathlib.Path) -> dict[str, str]:
    """What Ray's programs get: nothing is asked of anybody, nothing is said to anybody."""
    more = {
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_TMPDIR": str(folder),
        "RAY_ADDRESS": "",
        # Nodes on one machine share its memory; none is to be killed for what others take.
        "RAY_memory_monitor_refresh_ms": "0",
    }
    path = f"{sysconfig.get_path('scripts')}{os.pathsep}{os.environ['PATH']}"
    return {**server.clean_environment(more), "PATH": path}


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Two nodes; gives the address of the first. Sockets have short names, so not in pytest's."""
    import tempfile

    with tempfile.TemporaryDirectory(prefix="ray") as name:
        given = environment(pathlib.Path(name))
        port = free_port()
        common = ["--num-cpus=1", "--object-store-memory=100000000", "--disable-usage-stats"]
        try:
            ray("start", "--head", f"--port={port}", "--include-dashboard=false", *common, env=given)
            for _ in range(NODES - 1):
                ray("start", f"--address=127.0.0.1:{port}", *common, env=given)
            yield f"127.0.0.1:{port}"
        finally:
            ray("stop", "--force", env=given)
