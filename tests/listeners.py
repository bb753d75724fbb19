"""Which sockets the processes of a command listen on."""

from __future__ import annotations

import ipaddress

import psutil


def listeners(pid: int) -> dict[int, set[str]]:
    """pid → the addresses at which a process, and each that came from it, can be reached."""
    found = {}
    root = psutil.Process(pid)
    for process in (root, *root.children(recursive=True)):
        open_ = process.net_connections(kind="inet")
        waiting = [c for c in open_ if c.status == psutil.CONN_LISTEN or (not c.raddr and c.laddr)]
        found[process.pid] = {c.laddr.ip for c in waiting}
    return found


def on_loopback_alone(pid: int) -> int:
    """Fail where anything listens on another address; → how many processes were looked at."""
    found = listeners(pid)
    wide = {p: ips for p, ips in found.items() if not all(map(is_loopback, ips))}
    assert not wide, wide
    return len(found)


def is_loopback(address: str) -> bool:
    return ipaddress.ip_address(address.partition("%")[0]).is_loopback
