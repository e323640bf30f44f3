"""A Ray cluster of several nodes that are all this machine. Prints its address and lasts until
standard input ends. It ends what it has started and nothing else, which `ray stop` does not."""

from __future__ import annotations

import sys
from typing import Any

from ray.cluster_utils import Cluster


def main(nodes: int, cpus: int) -> None:
    each: dict[str, Any] = {"num_cpus": cpus, "object_store_memory": 100_000_000}
    cluster: Any = Cluster(
        initialize_head=True, head_node_args={**each, "include_dashboard": False}
    )
    try:
        for _ in range(nodes - 1):
            cluster.add_node(**each)
        print(cluster.address, flush=True)  # noqa: T201
        sys.stdin.read()
    finally:
        cluster.shutdown()


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
