"""The sockets on which processes wait for others to connect."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from contextlib import suppress

import psutil


def family(pid: int) -> list[psutil.Process]:
    """A process and all that it started, directly or not."""
    with suppress(psutil.NoSuchProcess):
        process = psutil.Process(pid)
        return [process, *process.children(recursive=True)]
    return []


def listening(processes: Iterable[psutil.Process]) -> set[tuple[str, int]]:
    """Address and port of each TCP socket on which these processes listen, and of each UDP one."""
    found = set()
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            found |= {
                (connection.laddr.ip, connection.laddr.port)
                for connection in process.net_connections(kind="inet")
                if connection.laddr and not connection.raddr and connection.status in ("LISTEN", "NONE")
            }
    return found


def beyond_loopback(sockets: Iterable[tuple[str, int]]) -> set[tuple[str, int]]:
    """Those of the sockets that other machines may reach."""
    return {(ip, port) for ip, port in sockets if not ipaddress.ip_address(ip).is_loopback}
