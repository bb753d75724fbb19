"""uvicorn with limits on time and connections, from a run's folder to the end of the process."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from http import HTTPStatus
from pathlib import Path
from types import FrameType
from typing import Any

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from ..io.streams import Report
from .app import create_app
from .endpoint import MAX_PENDING, Endpoint, bind, chosen_token, is_loopback, names, url
from .guard import AccessPolicy
from .limits import Limits
from .model import open_run

GRACE_S = 5  # seconds that requests have to end, after a signal

STOP_TIMEOUT_S = 9  # seconds after a signal until the process ends, whatever it does

OPEN_FILES = 16_384  # files that the process asks to have open at once

MAX_CONNECTIONS = 4096

# A body may come in FREE_PARTS parts of any size; further ones have PART_BYTES on average.
FREE_PARTS, PART_BYTES = 1000, 256


def serve(
    run: Path,
    endpoint: Endpoint | None = None,
    limits: Limits | None = None,
    *,
    device: str = "cpu",
    say: Report = print,
    complain: Report = print,
    as_json: bool = False,
) -> None:
    """Serve a run's model until Ctrl-C. ``say`` prints the address, as a sentence or JSON; ``complain`` prints notes.

    Raises UsageError for a taken port, a host that is not this machine's, a short token or a folder that is no
    run; SourceError for a damaged run.
    """
    endpoint, limits = endpoint or Endpoint(), limits or Limits()
    token, made = chosen_token(endpoint.host, endpoint.token)
    listening = bind(endpoint.host, endpoint.port)
    try:
        served = open_run(run, device)
        served.warm_up()
        host, port = listening.getsockname()[:2]
        address = url(host, port)
        for note in served.notes:
            complain(f"note: {note}")
        if not is_loopback(host):
            complain("note: plain HTTP; across a network put a proxy with TLS before it")

        def started() -> None:
            """Print the address, once the server answers connections."""
            if as_json:
                record = {"url": address, "host": host, "port": port, "pid": os.getpid(), "run": str(run)}
                say(json.dumps(record | ({"token": token} if made else {})))
            else:
                say(f"{run} is served at {address}{f'#token={token}' if made else ''}   (Ctrl-C stops)")

        policy = AccessPolicy(names(host, endpoint.allow_host), addresses=not is_loopback(host), token=token)
        app = create_app(served, policy, limits, started=started, complain=complain)
        with suppress(KeyboardInterrupt):  # uvicorn ends open requests, then raises the signal again
            Server(app, limits, open_files(), complain).run(sockets=[listening])
        complain("stopped")
    finally:
        listening.close()


class Server(uvicorn.Server):
    """A uvicorn server that ends in time and holds fewer connections than files may be open."""

    def __init__(self, app: Any, limits: Limits, files: int, complain: Callable[[str], None]) -> None:
        self.timer: threading.Timer | None = None
        self.complain, self.full = complain, False
        super().__init__(
            uvicorn.Config(
                app,
                http=patient(limits.body_seconds, min(MAX_CONNECTIONS, files // 2)),
                ws="none",
                loop="asyncio",
                log_config=None,
                log_level="error",
                access_log=False,
                server_header=False,
                timeout_graceful_shutdown=GRACE_S,
                # asyncio accepts this many at a time, before the server closes one too many
                backlog=max(1, min(MAX_PENDING, files // 16)),
            )
        )

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        asyncio.get_running_loop().set_exception_handler(self._report_accept)
        await super().startup(sockets)
        for listening in sockets or []:
            listening.listen(MAX_PENDING)

    def _report_accept(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """Report once that no connection could be accepted: asyncio reports it thousands of times a second."""
        if "socket.accept()" not in str(context.get("message")):
            loop.default_exception_handler(context)
        elif not self.full:
            self.full = True
            self.complain(f"connections could not be accepted: {context.get('exception')}")

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self.timer is None:
            self.timer = threading.Timer(STOP_TIMEOUT_S, os._exit, (128 + sig,))
            self.timer.daemon = True
            self.timer.start()
        super().handle_exit(sig, frame)

    def run(self, sockets: list[socket.socket] | None = None) -> None:
        try:
            super().run(sockets)
        finally:
            if self.timer is not None:
                self.timer.cancel()


def open_files() -> int:
    """Raise the limit of open files to OPEN_FILES where the system allows it, and return the limit."""
    try:
        import resource
    except ImportError:  # Windows has no such limit
        return OPEN_FILES
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = OPEN_FILES if hard == resource.RLIM_INFINITY else min(OPEN_FILES, hard)
    if soft != resource.RLIM_INFINITY and soft < most:
        with suppress(OSError, ValueError):  # macOS has a lower limit than the one that it reports
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
            soft = most
    return OPEN_FILES if soft == resource.RLIM_INFINITY else soft


class Counted(h11.Connection):
    """A connection that refuses a body in many small parts, because each part costs as much as a large one."""

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


def patient(seconds: float, most: int = MAX_CONNECTIONS) -> type[H11Protocol]:
    """Return uvicorn's HTTP protocol with three further limits.

    They limit the seconds until a request's headers are complete, the number of connections, and the parts of a
    body. Beyond ``most`` connections it closes the one that has waited longest for a request.
    """
    waiting: dict[H11Protocol, None] = {}  # connections that wait for a request's headers, oldest first

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
            """Start the timer for the next request's headers, or stop it where they are complete."""
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
            """Answer unless an answer has begun, and close the connection."""
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
