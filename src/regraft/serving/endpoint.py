"""The address that ``regraft serve`` listens on, its token and its names.

On 127.0.0.1 no token is needed; on any other address requests need one. The socket is bound before the model
loads, so a taken port is reported at once.
"""

from __future__ import annotations

import errno
import ipaddress
import os
import secrets
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import UsageError
from .limits import described

TOKEN_VARIABLE = "REGRAFT_TOKEN"

MIN_TOKEN_LETTERS = 16

MAX_PENDING = 2048  # connections that wait to be accepted


@dataclass(frozen=True)
class Endpoint:
    """Address, token and further names of a server."""

    host: str = described("127.0.0.1", "address to listen on; other addresses than loopback need a token")
    port: int = described(8000, "port to listen on; 0 takes a free one")
    token: str | None = described(None, f"token instead of a random one; better set {TOKEN_VARIABLE}")
    allow_host: tuple[str, ...] = described((), "another name that requests may use as Host, as behind a proxy")


def chosen_token(host: str, given: str | None) -> tuple[str | None, bool]:
    """Return (token or None, whether it is a new random one). Raises UsageError for a token that is too short."""
    token = given if given is not None else os.environ.get(TOKEN_VARIABLE)
    if token is not None:
        if len(token) < MIN_TOKEN_LETTERS or not token.isascii() or not token.isprintable() or " " in token:
            raise UsageError(f"a token has {MIN_TOKEN_LETTERS} or more ASCII letters and signs, without spaces")
        return token, False
    if is_loopback(resolved(host, 0)[1][0]):
        return None, False
    return secrets.token_urlsafe(32), True


def resolved(host: str, port: int) -> tuple[int, Any]:
    """Return (family, address) of a host name. Raises UsageError where it has none."""
    try:
        addresses = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (socket.gaierror, UnicodeError) as error:
        raise UsageError(f"--host {host}: no such host ({error})") from error
    return addresses[0][0], addresses[0][4]


def bind(host: str, port: int) -> socket.socket:
    """Return a listening socket. Raises UsageError with the remedy where the address or port cannot be used."""
    if not 0 <= port <= 65535:
        raise UsageError(f"--port takes 0 (any that is free) to 65535, not {port}")
    family, address = resolved(host, port)
    listening = socket.socket(family, socket.SOCK_STREAM)
    try:
        if os.name == "posix":  # for a restart; on Windows two servers could then share a port
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(address)
        listening.listen(MAX_PENDING)
    except OSError as error:
        listening.close()
        why = {
            errno.EADDRINUSE: f"port {port} on {host} is taken: choose another with --port, or --port 0 "
            "for one that is free",
            errno.EACCES: f"port {port} is the system's own: choose one from 1024 on with --port",
            errno.EADDRNOTAVAIL: f"--host {host} is no address of this machine: give one, or 0.0.0.0 for all",
        }.get(error.errno or 0, f"{host} port {port} cannot be listened on: {error.strerror}")
        raise UsageError(why) from error
    return listening


def is_loopback(address: str) -> bool:
    """Return whether an address is reachable from this machine only."""
    try:
        return ipaddress.ip_address(address.partition("%")[0]).is_loopback
    except ValueError:
        return False


def url(address: str, port: int) -> str:
    """Return the address for a browser on this machine."""
    any_address = ipaddress.ip_address(address.partition("%")[0]).is_unspecified
    shown = socket.gethostname() if any_address else address
    return f"http://[{shown}]:{port}/" if ":" in shown else f"http://{shown}:{port}/"


def names(address: str, allowed: Sequence[str]) -> frozenset[str]:
    """Return the host names that the server answers to, beside literal addresses."""
    own = {"localhost", *(name.lower() for name in allowed)}
    return frozenset(own if is_loopback(address) else own | {socket.gethostname().lower()})
