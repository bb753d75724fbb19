"""Who may ask, and how long and how much they may send. It stands before the routes.

Host      a name that is not this server's is refused: by DNS rebinding, a page of another site would
          reach a server on 127.0.0.1 under that site's name
Origin    a request that a browser makes for another site is refused; there is no CORS and no cookie
token     as "Authorization: Bearer …", compared in constant time; the page has it from the part of its
          address behind "#", which is sent to no server
twice     a header that one of these checks reads, or that says what the body is, stands there once
body      read here, whole, within a size and a time, before a thread or a place in the queue is taken:
          a slow client holds one connection and no more
"""

from __future__ import annotations

import asyncio
import hmac
import ipaddress
import json
import time
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass
from typing import Any

from .figures import Figures
from .limits import Limits
from .local_pages import name_of, repeated, security_headers

Scope = MutableMapping[str, Any]

Message = MutableMapping[str, Any]

Receive = Callable[[], Awaitable[Message]]

Send = Callable[[Message], Awaitable[None]]

App = Callable[[Scope, Receive, Send], Awaitable[None]]

OPEN = frozenset({"/", "/app.js", "/style.css", "/health"})  # these hold nothing of the run

LINGER = 2.0  # seconds in which the rest of a refused body is read and dropped

HEADERS = security_headers(images="blob: data:")  # pictures that are dropped, and heat maps


@dataclass(frozen=True)
class AccessPolicy:
    """Under which names the server answers, and to whom."""

    hosts: frozenset[str]  # beside literal addresses, where ``addresses``
    addresses: bool = False  # any literal address is a name of it: bound elsewhere than on loopback
    token: str | None = None

    def knows(self, host: str) -> bool:
        """Whether a Host header, without its port, is one of this server's names."""
        name = name_of(host)
        if name in self.hosts:
            return True
        try:
            address = ipaddress.ip_address(name.strip("[]"))
        except ValueError:
            return False
        return self.addresses or address.is_loopback

    def admits(self, authorization: str) -> bool:
        """Whether a header has the token; always where there is none."""
        if self.token is None:
            return True
        scheme, _, given = authorization.partition(" ")
        same = hmac.compare_digest(given.strip().encode("latin-1", "replace"), self.token.encode())
        return scheme.lower() == "bearer" and same


class Refused(Exception):  # noqa: N818
    """An answer instead of the app's."""

    def __init__(self, status: int, detail: str, headers: dict[str, str] | None = None) -> None:
        super().__init__(detail)
        self.status, self.detail, self.headers = status, detail, headers or {}


class Guard:
    """ASGI middleware; see the top of the file."""

    def __init__(
        self,
        app: App,
        *,
        door: AccessPolicy,
        limits: Limits,
        figures: Figures,
        paths: frozenset[str],
        complain: Callable[[str], None],
    ) -> None:
        self.app, self.door, self.limits, self.figures = app, door, limits, figures
        self.paths, self.complain = paths, complain
        self.held = 0  # bytes of bodies

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        begin, path = time.monotonic(), str(scope["path"])
        status = 0  # none is sent

        async def sending(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = int(message["status"])
                own = [(k.encode(), v.encode()) for k, v in HEADERS.items()]
                message["headers"] = [*message.get("headers", []), *own]
            await send(message)

        try:
            await self._pass(scope, receive, sending)
        except Refused as refused:
            await _answer(refused, receive, sending)
        except asyncio.CancelledError:  # uvicorn cancels what a stop leaves no time for
            if not status:
                stopping = Refused(503, "the server is stopping", {"retry-after": "1"})
                await _answer(stopping, receive, sending, linger=0)
        except Exception as error:  # told to who runs the server, not to the client
            self.complain(f"{scope['method']} {path}: unexpected {type(error).__name__}: {error}")
            if not status:
                failed = Refused(500, "the server failed; it says more where it runs")
                await _answer(failed, receive, sending)
        finally:
            label = path if path in self.paths else "other"
            self.figures.requests.labels(label, str(status)).inc()
            self.figures.seconds.labels(label).observe(time.monotonic() - begin)

    async def _pass(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = {k.decode("latin-1").lower(): v.decode("latin-1") for k, v in scope["headers"]}
        host = headers.get("host", "")
        if twice := repeated(scope["headers"]):
            raise Refused(400, f"the header {twice} stands there more than once")
        if not self.door.knows(host):
            raise Refused(400, "this server does not answer under that Host name: see --allow-host")
        if scope["path"] not in OPEN:
            if _from_elsewhere(headers, host):
                raise Refused(403, "requests that a browser makes for another site are refused")
            if not self.door.admits(headers.get("authorization", "")):
                how = {"www-authenticate": "Bearer"}
                raise Refused(401, "the token is missing or wrong: Authorization: Bearer TOKEN", how)
        if scope["method"] in ("GET", "HEAD"):
            await self.app(scope, receive, send)
            return
        size = headers.get("content-length", "0")
        if not size.isdecimal() or int(size) > self.limits.body:
            raise Refused(413, f"a body has {self.limits.megabytes:g} MB at most")
        parts: list[bytes] = []
        try:
            try:
                async with asyncio.timeout(self.limits.body_seconds):
                    await self._read(receive, parts)
            except TimeoutError:
                text = f"the body did not arrive within {self.limits.body_seconds:g} seconds"
                raise Refused(408, text) from None
            parts[:] = [b"".join(parts)]
            await self.app(scope, _given(parts[0], receive), send)
        finally:
            self._hold(-sum(map(len, parts)))

    async def _read(self, receive: Receive, parts: list[bytes]) -> None:
        """The body, in parts. Raises Refused where it is too large, by itself or with the others."""
        total, more = 0, True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise Refused(408, "the client left")  # nobody hears it
            part = message.get("body", b"")
            total += len(part)
            parts.append(part)
            self._hold(len(part))
            if total > self.limits.body:
                raise Refused(413, f"a body has {self.limits.megabytes:g} MB at most")
            if self.held > self.limits.held:
                text = "the server holds as many bodies as it may: try again"
                raise Refused(503, text, {"retry-after": "1"})
            more = bool(message.get("more_body", False))

    def _hold(self, size: int) -> None:
        self.held += size
        self.figures.held.set(self.held)


def _from_elsewhere(headers: dict[str, str], host: str) -> bool:
    """Whether a browser says that another site's page makes the request. Other clients say nothing."""
    if headers.get("sec-fetch-site", "same-origin") not in ("same-origin", "none"):
        return True
    origin = headers.get("origin")
    return origin is not None and origin.lower().partition("://")[2] != host.strip().lower()


def _given(body: bytes, receive: Receive) -> Receive:
    """The body in one message, then what the connection says."""
    given = False

    async def receiving() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return receiving


async def _answer(refused: Refused, receive: Receive, send: Send, linger: float = LINGER) -> None:
    """The answer at once; then the rest of the body is read for a while and dropped, or the client,
    still sending, would find its connection reset and never read the answer."""
    body = json.dumps({"detail": refused.detail}).encode()
    headers = {"content-type": "application/json", "content-length": str(len(body)), "connection": "close"}
    start = [(k.encode(), v.encode()) for k, v in (headers | refused.headers).items()]
    await send({"type": "http.response.start", "status": refused.status, "headers": start})
    await send({"type": "http.response.body", "body": body, "more_body": True})
    try:
        async with asyncio.timeout(linger):
            while (message := await receive())["type"] == "http.request" and message.get("more_body"):
                pass
    except TimeoutError:
        pass
    await send({"type": "http.response.body", "body": b"", "more_body": False})
