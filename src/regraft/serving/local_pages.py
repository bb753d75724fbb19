"""Pages for the browser of this machine: their policy, their port, and their end.

They listen on 127.0.0.1 only. The guard refuses other Host names and requests that a browser makes for another
site. A link on any site may open the first page.
"""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

from ..errors import UsageError
from ..io.streams import complain
from .endpoint import bind
from .guard import AccessPolicy, Guard, security_headers

if TYPE_CHECKING:
    from starlette.types import ASGIApp

    from ..io.streams import Report

POLICY = AccessPolicy(
    frozenset({"127.0.0.1", "localhost", "[::1]"}),
    loopback=False,
    open_paths=frozenset(),
    link_paths=frozenset({"/"}),
    wrong_host=(421, "this page answers only under the name of this machine"),
    headers=security_headers(),
)

# A report is one file with its styles inside, and without scripts.
REPORT_CSP = (
    "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'; sandbox allow-same-origin"
)


def need_extra() -> None:
    """Raise UsageError, with the remedy, where a package of the extra "serve" is missing."""
    try:
        import fastapi  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError as error:
        raise UsageError(f'the page needs the package {error.name}: pip install "regraft[serve]"') from error


def serve(app: ASGIApp, port: int, *, browser: bool, say: Report, ready: str) -> None:
    """Answer requests until Ctrl-C; port 0 takes a free one. ``say`` prints ``ready`` with the address.

    Raises UsageError where the port cannot be used.
    """
    import uvicorn

    listening = bind("127.0.0.1", port)
    address = f"http://127.0.0.1:{listening.getsockname()[1]}/"
    say(f"{ready}: {address}   (Ctrl-C ends the page)")
    if browser:
        open_browser(address)
    config = uvicorn.Config(
        Guard(app, POLICY, complain=complain),
        log_level="warning",
        access_log=False,
        server_header=False,
        lifespan="off",
        timeout_graceful_shutdown=1,
    )
    try:
        uvicorn.Server(config).run(sockets=[listening])
    except KeyboardInterrupt:
        pass  # the usual end of a page
    finally:
        listening.close()


def open_browser(address: str) -> None:
    """Open the address where there is a screen; a browser in the terminal would take the terminal over."""
    import webbrowser

    screen = os.name != "posix" or sys.platform == "darwin"
    if screen or os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"):
        webbrowser.open(address)
