"""A server as a process group of its own: its ports, its start, and its end with all children."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import psutil

HOST = "127.0.0.1"


def free_ports(count: int) -> tuple[int, ...]:
    """`count` different ports on which nobody listens now."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind((HOST, 0))
        return tuple(each.getsockname()[1] for each in sockets)


@contextmanager
def process_group(
    command: Sequence[str], *, environ: Mapping[str, str], folder: Path, log: Path, grace: float
) -> Iterator[subprocess.Popen[bytes]]:
    """`command` in a session and process group of its own, which it leads. At the end the whole
    group is told to stop, and killed after `grace` seconds; nothing of it is left."""
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            env=dict(environ),
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        yield process
    finally:
        stop_group(process, grace)


def stop_group(process: subprocess.Popen[bytes], grace: float) -> None:
    """Ends the group that `process` leads, with any descendant that has left the group."""
    strays = _descendants(process.pid)
    _signal_group(process.pid, signal.SIGTERM)
    everyone = _unique([*strays, *members(process.pid)])
    _, alive = psutil.wait_procs(everyone, timeout=grace)
    if alive or members(process.pid):
        _signal_group(process.pid, signal.SIGKILL)
        for each in alive:
            with suppress(psutil.NoSuchProcess):
                each.kill()
        psutil.wait_procs(_unique([*alive, *members(process.pid)]), timeout=grace)
    process.wait()


def family(pid: int) -> list[psutil.Process]:
    """The process, all its descendants, and whoever else is in the group that it leads."""
    with suppress(psutil.NoSuchProcess):
        return _unique([psutil.Process(pid), *_descendants(pid), *members(pid)])
    return []


def members(group: int) -> list[psutil.Process]:
    """The processes of a group that still run."""
    return [each for each in psutil.process_iter() if _runs_in(each, group)]


def _runs_in(process: psutil.Process, group: int) -> bool:
    try:
        in_group = os.getpgid(process.pid) == group
        return in_group and process.status() != psutil.STATUS_ZOMBIE
    except (ProcessLookupError, psutil.NoSuchProcess):
        return False


def _descendants(pid: int) -> list[psutil.Process]:
    try:
        return list(psutil.Process(pid).children(recursive=True))
    except psutil.NoSuchProcess:
        return []


def _unique(processes: Sequence[psutil.Process]) -> list[psutil.Process]:
    return list({each.pid: each for each in processes}.values())


def _signal_group(group: int, number: signal.Signals) -> None:
    with suppress(ProcessLookupError):
        os.killpg(group, number)
