"""Pages that this machine's own browser shows: who may ask, the headers, a port, and how it ends.

They listen on 127.0.0.1 alone. A request must name this machine as its host, or a foreign page could
reach it under a name of its own that it lets point here (DNS rebinding); and one that a foreign page
caused is refused, as the browser says itself (Sec-Fetch-Site). A link to the first page may be followed
from anywhere.
"""

from __future__ import annotations

import os
import socket
import sys
from collections import Counter
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from ..errors import UsageError

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send


HOSTS = ("127.0.0.1", "localhost", "[::1]")

# a report is one file with its styles inside, and without scripts
REPORT_CSP = (
    "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'; sandbox allow-same-origin"
)


def security_headers(images: str = "data:") -> dict[str, str]:
    """Of a page that loads what it needs from its own server, and ``images`` from there too."""
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


HEADERS = security_headers()

ONCE = frozenset(
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


def repeated(headers: Iterable[tuple[bytes, bytes]]) -> str | None:
    """Return the name of a header that decides who may ask, or what is read, and stands there twice.

    Readers differ in which of the two they take, so a check could see another than is used.
    """
    counts = Counter(name.decode("latin-1").lower() for name, _ in headers)
    return next((name for name, count in counts.items() if count > 1 and name in ONCE), None)


def need_extra() -> None:
    """Raises UsageError, with the remedy, where the packages of the extra "serve" are not there."""
    try:
        import fastapi  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError as error:
        raise UsageError(f'the page needs the package {error.name}: pip install "regraft[serve]"') from error


class Guard:
    """Refuses requests from elsewhere, and gives every answer the headers that it has not itself."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        asked = {k.decode("latin-1"): v.decode("latin-1") for k, v in scope["headers"]}

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                own = {k.decode("latin-1").lower() for k, _ in message["headers"]}
                message["headers"] = [
                    *message["headers"],
                    *((k.encode(), v.encode()) for k, v in HEADERS.items() if k not in own),
                ]
            await send(message)

        app = self.app
        if twice := repeated(scope["headers"]):
            app = refusal(400, f"The header {twice} stands there more than once.")
        elif name_of(asked.get("host", "")) not in HOSTS:
            app = refusal(421, "This page answers under the name of this machine alone.")
        elif asked.get("sec-fetch-site", "none") not in ("none", "same-origin") and not (
            scope["path"] == "/" and asked.get("sec-fetch-dest") == "document"
        ):
            app = refusal(403, "Another page asked for this one. Begin at the first page.")
        await app(scope, receive, with_headers)


def name_of(host: str) -> str:
    """A Host header without its port, in lower case."""
    host = host.strip().lower()
    if host.startswith("["):
        return host.partition("]")[0] + "]"
    return host.partition(":")[0].rstrip(".")


def refusal(status: int, text: str) -> Any:
    from starlette.responses import PlainTextResponse

    return PlainTextResponse(text, status_code=status)


def serve(app: ASGIApp, port: int, *, browser: bool, say: Callable[[str], None], ready: str) -> None:
    """Answer until Ctrl-C; port 0 takes any that is free. ``ready`` is said with the address.

    Raises UsageError where the port is taken.
    """
    import uvicorn

    listening = listen(port)
    address = f"http://127.0.0.1:{listening.getsockname()[1]}/"
    say(f"{ready}: {address}   (Ctrl-C ends the page)")
    if browser:
        open_browser(address)
    config = uvicorn.Config(
        Guard(app),
        log_level="warning",
        access_log=False,
        server_header=False,
        lifespan="off",
        timeout_graceful_shutdown=1,
    )
    try:
        uvicorn.Server(config).run(sockets=[listening])
    except KeyboardInterrupt:
        pass  # how a page ends
    finally:
        listening.close()


def listen(port: int) -> socket.socket:
    found = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    try:
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        found.bind(("127.0.0.1", port))
        found.listen(64)  # whoever asks before the server begins waits
    except (OSError, OverflowError) as error:
        found.close()
        raise UsageError(
            f"port {port} of 127.0.0.1 cannot be used ({error}): choose another --port, or 0 for any"
        ) from error
    return found


def open_browser(address: str) -> None:
    """Where there is a screen to show one; a browser in the terminal would take it over."""
    import webbrowser

    screen = os.name != "posix" or sys.platform == "darwin"
    if screen or os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"):
        webbrowser.open(address)
