"""Which process of this machine is behind an address."""

from __future__ import annotations

import ipaddress
import os

import psutil


def listener(address: str) -> int | None:
    """The process that listens at an address of this machine, or the one of the same program that
    started it; None where it is elsewhere, or the system does not tell. Of several, as when workers
    share a port, the one that began first, which has started the others."""
    host, _, port = address.removeprefix("http://").partition("/")[0].rpartition(":")
    if not port.isdecimal() or not _local(host.strip("[]")):
        return None
    try:
        found = {
            connection.pid
            for connection in psutil.net_connections("tcp")
            if connection.status == psutil.CONN_LISTEN and connection.laddr.port == int(port)
        }
    except psutil.Error:
        return None
    known = [pid for pid in found if pid and psutil.pid_exists(pid)]
    first = min(known, key=lambda pid: psutil.Process(pid).create_time(), default=None)
    try:
        return first and _head(psutil.Process(first)).pid
    except psutil.Error:
        return first


def _head(process: psutil.Process) -> psutil.Process:
    """Whoever of the same program and process group began it all: a server may listen in one
    process and work in others beside it. Never this process, nor one that started it."""
    ours = {os.getpid(), *(parent.pid for parent in psutil.Process().parents())}
    group = os.getpgid(process.pid)
    while (parent := process.parent()) is not None:
        alike = os.getpgid(parent.pid) == group and parent.exe() == process.exe()
        if not alike or parent.pid in ours:
            break
        process = parent
    return process


def _local(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
