"""The guard before every page and server: who may ask, and how long and how much they may send.

Host      the guard refuses a name that is not this server's. By DNS rebinding, a page of another site could
          otherwise reach a server on 127.0.0.1 under that site's name
Origin    it refuses a request that a browser makes for another site; there is no CORS and no cookie
token     it compares "Authorization: Bearer …" in constant time. The page takes the token from the part of its
          address behind "#", which a browser never sends
twice     it refuses a repeated header that one of these checks or the reader of the body uses
body      it reads the whole body within a size and a time, before the request takes a thread or a place in the
          queue. A slow client holds one connection and nothing else

An ``AccessPolicy`` configures the first three and the headers of every answer, ``Limits`` the bodies.
"""

from __future__ import annotations

import asyncio
import hmac
import ipaddress
import json
import time
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from ..io.streams import Report
    from .figures import Figures
    from .limits import Limits

LINGER_S = 2.0  # seconds in which the guard reads and drops the rest of a refused body

SINGLE_HEADERS = frozenset(
    {
        "host",
        "origin",
        "authorization",
        "content-length",
        "content-type",
        "content-encoding",
        "transfer-encoding",
        "sec-fetch-site",
        "sec-fetch-mode",
        "sec-fetch-dest",
    }
)


def security_headers(images: str = "data:") -> dict[str, str]:
    """Return the headers of a page that loads everything from its own server, and ``images`` from there too."""
    return {
        "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
        f"img-src 'self' {images}; connect-src 'self'; base-uri 'none'; form-action 'none'; "
        "frame-ancestors 'none'",
        "x-content-type-options": "nosniff",
        "x-frame-options": "DENY",
        "referrer-policy": "no-referrer",
        "cross-origin-opener-policy": "same-origin",
        "cross-origin-resource-policy": "same-origin",
        "cache-control": "no-store",
    }


@dataclass(frozen=True)
class AccessPolicy:
    """Names of a server, conditions of its requests, and headers of its answers. Defaults are those of ``serve``."""

    hosts: frozenset[str]  # names that the server answers to
    addresses: bool = False  # accept any literal address as Host, for a server bound beyond loopback
    loopback: bool = True  # accept any literal loopback address as Host
    token: str | None = None  # token that a request needs; None: no token
    open_paths: frozenset[str] = frozenset({"/", "/app.js", "/style.css", "/health"})  # they show nothing of a run
    link_paths: frozenset[str] = frozenset()  # pages that a link on another site may open
    wrong_host: tuple[int, str] = (400, "this server does not answer under that Host name: see --allow-host")
    headers: Mapping[str, str] = field(default_factory=lambda: security_headers("blob: data:"))

    def knows(self, host: str) -> bool:
        """Return whether a Host header, without its port, is one of this server's names."""
        name = name_of(host)
        if name in self.hosts:
            return True
        try:
            address = ipaddress.ip_address(name.strip("[]"))
        except ValueError:
            return False
        return self.addresses or (self.loopback and address.is_loopback)

    def admits(self, authorization: str) -> bool:
        """Return whether a header has the token, or no token is needed."""
        if self.token is None:
            return True
        scheme, _, given = authorization.partition(" ")
        same = hmac.compare_digest(given.strip().encode("latin-1", "replace"), self.token.encode())
        return scheme.lower() == "bearer" and same

    def check(self, scope: Scope) -> None:
        """Raise Refused for a request that may not be answered."""
        headers = decoded(scope["headers"])
        host, path = headers.get("host", ""), scope["path"]
        if name := repeated(scope["headers"]):
            raise Refused(400, f"the request repeats the header {name}: send it once")
        if not self.knows(host):
            raise Refused(*self.wrong_host)
        if path in self.open_paths:
            return
        linked = path in self.link_paths and headers.get("sec-fetch-dest") == "document"
        if not linked and from_elsewhere(headers, host):
            raise Refused(403, "a browser makes this request for another site: begin at the first page")
        if not self.admits(headers.get("authorization", "")):
            bearer = {"www-authenticate": "Bearer"}
            raise Refused(401, "the token is missing or wrong: Authorization: Bearer TOKEN", bearer)


class Refused(Exception):  # noqa: N818
    """An answer that the guard gives instead of the app."""

    def __init__(self, status: int, detail: str, headers: dict[str, str] | None = None) -> None:
        super().__init__(detail)
        self.status, self.detail, self.headers = status, detail, headers or {}


class Guard:
    """ASGI middleware that answers what the policy or the limits refuse, and adds the policy's headers.

    Without ``limits`` it leaves bodies to the app.
    """

    def __init__(
        self,
        app: ASGIApp,
        policy: AccessPolicy,
        *,
        limits: Limits | None = None,
        figures: Figures | None = None,
        complain: Report = lambda line: None,
    ) -> None:
        self.app, self.policy, self.limits, self.figures = app, policy, limits, figures
        self.complain = complain
        self.held = 0  # bytes of all bodies in memory

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        begin, path = time.monotonic(), str(scope["path"])
        status = 0  # of the answer; 0 before there is one

        async def sending(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = int(message["status"])
                message["headers"] = [*message.get("headers", []), *self._missing(message.get("headers", []))]
            await send(message)

        try:
            self.policy.check(scope)
            await self._pass(scope, receive, sending)
        except Refused as refused:
            await answer(refused, receive, sending)
        except asyncio.CancelledError:  # uvicorn cancels requests that outlast its shutdown
            if not status:
                stopping = Refused(503, "the server is stopping", {"retry-after": "1"})
                await answer(stopping, receive, sending, linger=0)
        except Exception as error:  # the log names the fault; the client might be a stranger
            self.complain(f"{scope['method']} {path}: unexpected {type(error).__name__}: {error}")
            if not status:
                await answer(Refused(500, "internal server error; see the server log"), receive, sending)
        finally:
            if self.figures is not None:
                self.figures.answered(path, status, time.monotonic() - begin)

    def _missing(self, headers: Iterable[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
        """Return the policy's headers that an answer lacks."""
        own = decoded(headers)
        return [(k.encode(), v.encode()) for k, v in self.policy.headers.items() if k not in own]

    async def _pass(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Call the app, with a body that is whole. Raises Refused for one that is too large, slow or one too many."""
        limits = self.limits
        if limits is None or scope["method"] in ("GET", "HEAD"):
            await self.app(scope, receive, send)
            return
        size = decoded(scope["headers"]).get("content-length", "0")
        if not size.isdecimal() or int(size) > limits.body:
            raise too_large(limits)
        parts: list[bytes] = []
        try:
            try:
                async with asyncio.timeout(limits.body_seconds):
                    await self._read(limits, receive, parts)
            except TimeoutError:
                raise Refused(408, f"the body did not arrive within {limits.body_seconds:g} seconds") from None
            parts[:] = [b"".join(parts)]
            await self.app(scope, one_message(parts[0], receive), send)
        finally:
            self._hold(-sum(map(len, parts)))

    async def _read(self, limits: Limits, receive: Receive, parts: list[bytes]) -> None:
        """Read a body into ``parts``. Raises Refused where it, or all bodies together, are too large."""
        total, more = 0, True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise Refused(408, "the client left")
            part = message.get("body", b"")
            total += len(part)
            parts.append(part)
            self._hold(len(part))
            if total > limits.body:
                raise too_large(limits)
            if self.held > limits.held:
                text = "the server holds as many bodies as it may: try again"
                raise Refused(503, text, {"retry-after": "1"})
            more = bool(message.get("more_body", False))

    def _hold(self, size: int) -> None:
        self.held += size
        if self.figures is not None:
            self.figures.holds(self.held)


def decoded(headers: Iterable[tuple[bytes, bytes]]) -> dict[str, str]:
    """Return headers by lower-case name."""
    return {k.decode("latin-1").lower(): v.decode("latin-1") for k, v in headers}


def name_of(host: str) -> str:
    """Return a Host header without its port, in lower case."""
    host = host.strip().lower()
    if host.startswith("["):
        return host.partition("]")[0] + "]"
    return host.partition(":")[0].rstrip(".")


def repeated(headers: Iterable[tuple[bytes, bytes]]) -> str | None:
    """Return the name of a repeated header that a check or the reader of the body uses.

    Readers differ in which of two values they take, so a check could see another value than the app.
    """
    counts = Counter(name.decode("latin-1").lower() for name, _ in headers)
    return next((name for name, count in counts.items() if count > 1 and name in SINGLE_HEADERS), None)


def from_elsewhere(headers: Mapping[str, str], host: str) -> bool:
    """Return whether a browser makes the request for another site's page. Other clients send neither header."""
    if headers.get("sec-fetch-site", "same-origin") not in ("same-origin", "none"):
        return True
    origin = headers.get("origin")
    return origin is not None and origin.lower().partition("://")[2] != host.strip().lower()


def too_large(limits: Limits) -> Refused:
    return Refused(413, f"a body has {limits.megabytes:g} MB at most")


def one_message(body: bytes, receive: Receive) -> Receive:
    """Return a channel that gives the body in one message, then what the connection sends."""
    given = False

    async def receiving() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return receiving


async def answer(refused: Refused, receive: Receive, send: Send, linger: float = LINGER_S) -> None:
    """Send the answer at once, then read and drop the rest of the body for ``linger`` seconds.

    A client that still sends would otherwise find its connection reset, and never read the answer.
    """
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
