"""Says how many replicas of a deployment of Ray Serve run: a line with the number, whenever it has
changed, until standard input ends."""

from __future__ import annotations

import select
import sys
from typing import Any

import ray
from ray import serve


def running(application: str, deployment: str) -> int:
    status: Any = serve.status()
    found = status.applications.get(application)
    if found is None or deployment not in found.deployments:
        return 0
    return int(found.deployments[deployment].replica_states.get("RUNNING", 0))


def main(address: str, application: str, deployment: str) -> None:
    ray.init(address=address, log_to_driver=False, configure_logging=False)
    said = None
    while not select.select([sys.stdin], [], [], 0.1)[0]:
        number = running(application, deployment)
        if number != said:
            said = number
            print(number, flush=True)  # noqa: T201


if __name__ == "__main__":
    main(*sys.argv[1:])
