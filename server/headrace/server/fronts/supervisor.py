"""`headrace serve --front-processes N`: the process that starts the others, and starts them again.

It holds the port, so that no other program gets it while a front is away, and does nothing else: it
runs no models. SIGTERM and SIGINT come to it alone (child.py): the model process drains, as a
server of one process does; it tells the fronts when all is answered; they close. A second signal
ends this process, and with it, since their standard input ends, all others at once.
"""

from __future__ import annotations

import asyncio
import json
import logging
import shutil
import signal
import socket
import sys
import tempfile
from typing import Any

from headrace.server.config import Settings
from headrace.server.errors import ServerError
from headrace.server.fronts.child import EXIT_FAILURE, STOP
from headrace.server.rpc.engine import choose

_log = logging.getLogger(__name__)

# Between the end of a process and its next start: doubled each time it ends soon again.
_FIRST_DELAY, _LONGEST_DELAY = 0.1, 5.0
# A process that has served for so long has started well.
_STEADY_SECONDS = 10.0
# A front that has been told to stop has nothing left to do.
_FRONT_SECONDS = 5.0
_LONGEST_LINE = 1 << 20


class Failed(Exception):
    """A process ended before it served. `code`: its exit code; it has said why."""

    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.code = code


class Child:
    """A process that is to be there until it is told to stop.

    config: what it is started with, each time.
    """

    def __init__(self, name: str, module: str, config: dict[str, Any]) -> None:
        self.config = config
        self._name = name
        self._module = module
        self._process: asyncio.subprocess.Process | None = None
        self._ending = asyncio.Event()

    async def start(self) -> dict[str, Any]:
        """Starts it; returns what it reports once it serves. Raises Failed."""
        command = [sys.executable, "-P", "-m", f"headrace.server.fronts.{self._module}"]
        pipe = asyncio.subprocess.PIPE
        self._process = await asyncio.create_subprocess_exec(
            *command, stdin=pipe, stdout=pipe, limit=_LONGEST_LINE
        )
        assert self._process.stdout is not None
        self._say(json.dumps(self.config))
        if self._ending.is_set():
            self._say(STOP)
        line = await self._process.stdout.readline()
        if not line:
            raise Failed(await self._process.wait())
        found: dict[str, Any] = json.loads(line)
        return found

    async def keep(self) -> None:
        """Starts it again whenever it ends, until it is to end."""
        loop = asyncio.get_running_loop()
        delay, since = _FIRST_DELAY, loop.time()
        while True:
            assert self._process is not None
            code = await self._process.wait()
            if self._ending.is_set():
                return
            delay = _FIRST_DELAY if loop.time() - since >= _STEADY_SECONDS else delay
            _log.error("the %s has ended with %s, it is started again", self._name, _named(code))
            if await self._ends_within(delay):
                return
            delay, since = min(2 * delay, _LONGEST_DELAY), loop.time()
            try:
                await self.start()
                _log.info("the %s serves again", self._name)
            except Failed:
                continue

    def leave(self) -> None:
        """Lets it end when it likes: it is not started again."""
        self._ending.set()

    async def end(self, patience: float | None = None) -> int:
        """Tells it to stop; returns its exit code, 0 if it was not there. It is killed after
        `patience` seconds."""
        self._ending.set()
        process = self._process
        if process is None or process.returncode is not None:
            return 0
        self._say(STOP)
        try:
            return await asyncio.wait_for(process.wait(), patience)
        except TimeoutError:
            _log.warning("the %s does not stop, it is killed", self._name)
            return await self.kill()

    async def kill(self) -> int:
        """Ends it at once, if it is there. Returns its exit code."""
        if self._process is None:
            return 0
        if self._process.returncode is None:
            self._process.kill()
        return await self._process.wait()

    def _say(self, line: str) -> None:
        assert self._process is not None
        assert self._process.stdin is not None
        self._process.stdin.write(f"{line}\n".encode())

    async def _ends_within(self, seconds: float) -> bool:
        try:
            await asyncio.wait_for(self._ending.wait(), seconds)
        except TimeoutError:
            return False
        return True


async def serve(settings: Settings) -> int:
    """Serves until SIGTERM or SIGINT, then stops in order; a second signal stops at once. Returns
    the exit code. Raises ServerError when the port is taken, ConfigurationError when the RPC engine
    that is asked for is not installed."""
    chosen = choose(settings.rpc_engine)
    _log.info("RPC engine: %s, in %d front processes", chosen, settings.front_processes)
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.set)
    with _reserved(settings.host, settings.grpc_port) as held:
        port: int = held.getsockname()[1]
        folder = tempfile.mkdtemp(prefix="headrace-")
        try:
            values = settings.model_dump(mode="json") | {"grpc_port": port}
            return await _serve(values, settings.front_processes, folder, stopping)
        finally:
            shutil.rmtree(folder, ignore_errors=True)


async def _serve(values: dict[str, Any], fronts: int, folder: str, stopping: asyncio.Event) -> int:
    config = {"settings": values, "folder": folder}
    model = Child("model process", "model_process", config)
    children = [model] + [
        Child(f"front process {number}", "front_process", config) for number in range(fronts)
    ]
    try:
        # Together: while models load, fronts say that they do.
        reports = await _all(child.start for child in children)
        # The port stays, whoever has it.
        values["http_port"] = reports[0]["http_port"]
        host = values["host"]
        print(  # noqa: T201 (the contract: the first line on standard output says where)
            f"headrace serves gRPC on {host}:{values['grpc_port']} and HTTP on "
            f"{host}:{values['http_port']}",
            flush=True,
        )
        async with asyncio.TaskGroup() as keeping:
            for child in children:
                keeping.create_task(child.keep())
            await stopping.wait()
            code = await _stop(model, children[1:])
    except Failed as failure:
        return failure.code if failure.code > 0 else EXIT_FAILURE
    finally:
        for child in children:
            await child.kill()
    _log.info("stopped")
    return code


async def _all(starts: Any) -> list[dict[str, Any]]:
    """What all report. Raises Failed as soon as one has failed."""
    tasks = [asyncio.ensure_future(start()) for start in starts]
    try:
        reports: list[dict[str, Any]] = await asyncio.gather(*tasks)
        return reports
    finally:
        for task in tasks:
            task.cancel()


async def _stop(model: Child, fronts: list[Child]) -> int:
    _log.info("stopping: refusing new requests, answering those in flight")
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.remove_signal_handler(number)
    for front in fronts:
        front.leave()
    code = await model.end()
    await asyncio.gather(*(front.end(_FRONT_SECONDS) for front in fronts))
    return 0 if code == 0 else EXIT_FAILURE


def _reserved(host: str, port: int) -> socket.socket:
    """A socket that holds `port`, 0 for any that is free, for the fronts alone. It does not listen,
    so connections go to those that do. Raises ServerError when it cannot be had."""
    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        # Without SO_REUSEPORT, so that another server there is noticed.
        with socket.socket(family) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
            found = (address[0], probe.getsockname()[1], *address[2:])
        held = socket.socket(family)
        try:
            held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            held.bind(found)
        except OSError:
            held.close()
            raise
    except OSError as error:
        where = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        raise ServerError(
            f"grpc: cannot listen on {where}: another server may be there already, or the address "
            "is not this machine's; choose with --host and --grpc-port (0 takes a free port)"
        ) from error
    return held


def _named(code: int) -> str:
    """An exit code in words."""
    return f"exit code {code}" if code >= 0 else signal.Signals(-code).name
