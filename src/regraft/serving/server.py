"""A socket, a token where others can reach it, uvicorn, and the end.

On 127.0.0.1 no token is asked for; bound elsewhere one always is. The socket is bound before the model is
read: a port that is taken is said at once.
"""

from __future__ import annotations

import asyncio
import errno
import ipaddress
import json
import os
import secrets
import socket
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from ..errors import UsageError
from .app import create_app
from .guard import Door
from .limits import Limits
from .model import open_run

TOKEN = "REGRAFT_TOKEN"  # the environment variable
SHORTEST = 16  # letters of a token
BACKLOG = 2048  # connections that wait to be accepted
STOP = 10  # seconds that requests have to end


def serve(
    run: Path,
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    token: str | None = None,
    allow_host: Sequence[str] = (),
    limits: Limits | None = None,
    device: str = "cpu",
    say: Callable[[str], None] = print,
    complain: Callable[[str], None] = print,
    as_json: bool = False,
) -> None:
    """Serve a run's model until Ctrl-C. ``say`` is told the address, as a sentence or as JSON; ``complain``
    what is worth knowing.

    Raises UsageError for a port that is taken, a host that is not this machine's, a token that is too
    short, or a folder that is no run; SourceError for a damaged one.
    """
    limits = limits or Limits()
    token, made = chosen_token(host, token)
    listening = bind(host, port)
    try:
        served = open_run(run, device)
        served.warm_up()
        bound, at = listening.getsockname()[:2]
        address = url(bound, at)
        for note in served.notes:
            complain(f"note: {note}")
        if not is_loopback(bound):
            complain("note: plain HTTP; across a network put a proxy with TLS before it")

        def started() -> None:
            """Said once connections are answered."""
            where = f"{address}#token={token}" if made else address
            if as_json:
                record = {
                    "url": address,
                    "host": bound,
                    "port": at,
                    "pid": os.getpid(),
                    "run": str(run),
                }
                say(json.dumps(record | ({"token": token} if made else {})))
            else:
                say(f"{run} is served at {where}   (Ctrl-C stops)")

        door = Door(names(bound, allow_host), addresses=not is_loopback(bound), token=token)
        app = create_app(served, door, limits, started=started, complain=complain)
        config = uvicorn.Config(
            app, http=patient(limits.body_seconds), ws="none", loop="asyncio", log_config=None,
            access_log=False, server_header=False, timeout_graceful_shutdown=STOP,
            backlog=BACKLOG,
        )  # fmt: skip
        more_files()
        with suppress(KeyboardInterrupt):  # uvicorn ends what was begun, then sends the signal on
            uvicorn.Server(config).run(sockets=[listening])
        complain("stopped")
    finally:
        listening.close()


def chosen_token(host: str, given: str | None) -> tuple[str | None, bool]:
    """(token or None, whether it was made here). Raises UsageError for one that is easily guessed."""
    token = given if given is not None else os.environ.get(TOKEN)
    if token is not None:
        if len(token) < SHORTEST or not token.isascii() or not token.isprintable() or " " in token:
            raise UsageError(
                f"a token has {SHORTEST} or more ASCII letters and signs, without spaces"
            )
        return token, False
    if is_loopback(resolved(host, 0)[1][0]):
        return None, False
    return secrets.token_urlsafe(32), True


def resolved(host: str, port: int) -> tuple[int, Any]:
    """(family, address) of a host name. Raises UsageError where it has none."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (socket.gaierror, UnicodeError) as error:
        raise UsageError(f"--host {host}: no such host ({error})") from error
    return found[0][0], found[0][4]


def bind(host: str, port: int) -> socket.socket:
    """A listening socket. Raises UsageError with the remedy where it cannot be had."""
    if not 0 <= port <= 65535:
        raise UsageError(f"--port takes 0 (any that is free) to 65535, not {port}")
    family, address = resolved(host, port)
    made = socket.socket(family, socket.SOCK_STREAM)
    try:
        if os.name == "posix":  # after a restart; elsewhere it would let two servers share a port
            made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind(address)
        made.listen(BACKLOG)
    except OSError as error:
        made.close()
        why = {
            errno.EADDRINUSE: f"port {port} on {host} is taken: choose another with --port, or --port 0 "
            "for one that is free",
            errno.EACCES: f"port {port} is the system's own: choose one from 1024 on with --port",
            errno.EADDRNOTAVAIL: f"--host {host} is no address of this machine: give one, or 0.0.0.0 for "
            "all",
        }.get(error.errno or 0, f"{host} port {port} cannot be listened on: {error.strerror}")
        raise UsageError(why) from error
    return made


def is_loopback(address: str) -> bool:
    try:
        return ipaddress.ip_address(address.partition("%")[0]).is_loopback
    except ValueError:
        return False


def url(address: str, port: int) -> str:
    """What a browser on this machine opens."""
    any_address = ipaddress.ip_address(address.partition("%")[0]).is_unspecified
    shown = socket.gethostname() if any_address else address
    return f"http://[{shown}]:{port}/" if ":" in shown else f"http://{shown}:{port}/"


def names(address: str, allowed: Sequence[str]) -> frozenset[str]:
    """Host names that the server answers to, beside literal addresses."""
    own = {"localhost", *(name.lower() for name in allowed)}
    return frozenset(own if is_loopback(address) else own | {socket.gethostname().lower()})


def more_files() -> None:
    """As many connections as the system lets this process have."""
    try:
        import resource
    except ImportError:  # not on Windows
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def patient(seconds: float) -> type[H11Protocol]:
    """uvicorn's HTTP, with a limit on the time that a request's headers take, which it has not."""

    class Patient(H11Protocol):
        late: asyncio.TimerHandle | None = None

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            self._watch()

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            self._watch()

        def connection_lost(self, error: Exception | None) -> None:
            if self.late is not None:
                self.late.cancel()
            super().connection_lost(error)

        def _watch(self) -> None:
            """Headers are awaited from the first byte after a request until the next is there."""
            awaited = self.conn.their_state is h11.IDLE
            if awaited and self.late is None:
                self.late = self.loop.call_later(seconds, self._close)
            elif not awaited and self.late is not None:
                self.late.cancel()
                self.late = None

        def _close(self) -> None:
            self.late = None
            if self.conn.their_state is h11.IDLE and not self.transport.is_closing():
                self.transport.write(
                    b"HTTP/1.1 408 Request Timeout\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"
                )
                self.transport.close()

    return Patient
