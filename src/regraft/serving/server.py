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
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from http import HTTPStatus
from pathlib import Path
from types import FrameType
from typing import Any

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from ..errors import UsageError
from .app import create_app
from .guard import AccessPolicy
from .limits import Limits
from .model import open_run

TOKEN = "REGRAFT_TOKEN"  # the environment variable

SHORTEST = 16  # letters of a token

BACKLOG = 2048  # connections that wait to be accepted

STOP = 5  # seconds that requests have to end, after a signal

END = 9  # seconds after which the process ends, whatever it does

FILES = 16_384  # that the process asks to have open at once

CONNECTIONS = 4096

FREE_PARTS, PART_BYTES = 1000, 256  # a body's parts beyond the first ones are so large on average


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
                record = {"url": address, "host": bound, "port": at, "pid": os.getpid(), "run": str(run)}
                say(json.dumps(record | ({"token": token} if made else {})))
            else:
                say(f"{run} is served at {where}   (Ctrl-C stops)")

        door = AccessPolicy(names(bound, allow_host), addresses=not is_loopback(bound), token=token)
        app = create_app(served, door, limits, started=started, complain=complain)
        with suppress(KeyboardInterrupt):  # uvicorn ends what was begun, then sends the signal on
            Server(app, limits, open_files(), complain).run(sockets=[listening])
        complain("stopped")
    finally:
        listening.close()


class Server(uvicorn.Server):
    """uvicorn's server that ends in time, and that holds fewer connections than files may be open."""

    def __init__(self, app: Any, limits: Limits, files: int, complain: Callable[[str], None]) -> None:
        self.clock: threading.Timer | None = None
        self.complain, self.full = complain, False
        super().__init__(
            uvicorn.Config(
                app,
                http=patient(limits.body_seconds, min(CONNECTIONS, files // 2)),
                ws="none",
                loop="asyncio",
                log_config=None,
                log_level="error",
                access_log=False,
                server_header=False,
                timeout_graceful_shutdown=STOP,
                # asyncio accepts so many at a time, before one that is too many is closed
                backlog=max(1, min(BACKLOG, files // 16)),
            )
        )

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        asyncio.get_running_loop().set_exception_handler(self._hear)
        await super().startup(sockets)
        for listening in sockets or []:
            listening.listen(BACKLOG)

    def _hear(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """Say once that no connection could be accepted: asyncio says it thousands of times a second."""
        if "socket.accept()" not in str(context.get("message")):
            loop.default_exception_handler(context)
        elif not self.full:
            self.full = True
            self.complain(f"connections could not be accepted: {context.get('exception')}")

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self.clock is None:
            self.clock = threading.Timer(END, os._exit, (128 + sig,))
            self.clock.daemon = True
            self.clock.start()
        super().handle_exit(sig, frame)

    def run(self, sockets: list[socket.socket] | None = None) -> None:
        try:
            super().run(sockets)
        finally:
            if self.clock is not None:
                self.clock.cancel()


def chosen_token(host: str, given: str | None) -> tuple[str | None, bool]:
    """(token or None, whether it was made here). Raises UsageError for one that is easily guessed."""
    token = given if given is not None else os.environ.get(TOKEN)
    if token is not None:
        if len(token) < SHORTEST or not token.isascii() or not token.isprintable() or " " in token:
            raise UsageError(f"a token has {SHORTEST} or more ASCII letters and signs, without spaces")
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
            errno.EADDRNOTAVAIL: f"--host {host} is no address of this machine: give one, or 0.0.0.0 for all",
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


def open_files() -> int:
    """Return how many files this process may have open, after asking for FILES."""
    try:
        import resource
    except ImportError:  # Windows has no such limit
        return FILES
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = FILES if hard == resource.RLIM_INFINITY else min(FILES, hard)
    if soft != resource.RLIM_INFINITY and soft < most:
        with suppress(OSError, ValueError):  # macOS has another limit below the one that it names
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
            soft = most
    return FILES if soft == resource.RLIM_INFINITY else soft


class Counted(h11.Connection):
    """A connection that refuses a body in very many small parts: each costs as much as a large one."""

    refusal = ""
    parts = size = 0

    def next_event(self) -> Any:
        event = super().next_event()
        if isinstance(event, h11.Request):
            self.parts = self.size = 0
        elif isinstance(event, h11.Data):
            self.parts, self.size = self.parts + 1, self.size + len(event.data)
            if self.parts > FREE_PARTS + self.size // PART_BYTES:
                self.refusal = f"the body comes in parts of fewer than {PART_BYTES} bytes"
                raise h11.RemoteProtocolError(self.refusal)
        return event


def patient(seconds: float, most: int = CONNECTIONS) -> type[H11Protocol]:
    """Return uvicorn's HTTP with the limits that it has not.

    They are on the time that a request's headers take, on connections, and on the parts of a body. Of more
    than ``most`` connections the one that has waited longest for a request is closed.
    """
    waiting: dict[H11Protocol, None] = {}  # for a request's headers, in their order

    class Patient(H11Protocol):
        late: asyncio.TimerHandle | None = None

        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            self.conn = Counted(h11.SERVER)

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            self._watch()
            if len(self.connections) > most:
                oldest = next(iter(waiting))
                assert isinstance(oldest, Patient)
                oldest._refuse(503, "the server holds as many connections as it may: try again")

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            self._watch()

        def on_response_complete(self) -> None:
            super().on_response_complete()
            self._watch()

        def connection_lost(self, error: Exception | None) -> None:
            self._forget()
            super().connection_lost(error)

        def send_400_response(self, msg: str) -> None:
            self._refuse(400, self.conn.refusal or msg)  # type: ignore[attr-defined]

        def _watch(self) -> None:
            """Headers are awaited from the first byte after a request until the next is there."""
            if self.conn.their_state is not h11.IDLE or self.transport.is_closing():
                self._forget()
            elif self.late is None:
                text = f"the headers did not arrive within {seconds:g} seconds"
                self.late = self.loop.call_later(seconds, self._refuse, 408, text)
                waiting[self] = None

        def _forget(self) -> None:
            waiting.pop(self, None)
            if self.late is not None:
                self.late.cancel()
                self.late = None

        def _refuse(self, status: int, detail: str) -> None:
            """Answer where none is on its way, and close the connection."""
            self._forget()
            unanswered = self.cycle is None or not self.cycle.response_started
            if unanswered and not self.transport.is_closing():
                body = json.dumps({"detail": detail}).encode()
                head = (
                    f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\nconnection: close\r\n"
                    f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
                )
                self.transport.write(head.encode() + body)
            self.connections.discard(self)
            self.transport.close()

    return Patient
