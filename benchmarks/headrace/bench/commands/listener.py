"""Which process of this machine is behind an address."""

from __future__ import annotations

import ipaddress

import psutil


def listener(address: str) -> int | None:
    """The process that listens at an address of this machine; None where it is elsewhere, or the
    system does not tell. Of several, as when workers share a port, the one that began first, which
    has started the others."""
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
    return min(known, key=lambda pid: psutil.Process(pid).create_time(), default=None)


def _local(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
