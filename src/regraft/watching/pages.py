"""The two applications: one run that is followed, and the runs of a folder.

A page is a constant file of static/. It requests its content as JSON and sets it as text, so that a browser never
reads the name of a class or a run as HTML.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any

from ..errors import RegraftError, UsageError
from ..io import guarded
from ..io.json_files import dumps, plain
from ..io.work_folders import temporary_folder
from ..serving.local_pages import REPORT_CSP, need_extra
from .following import fault, look
from .resources import ProcessMonitor
from .runs import Runs

if TYPE_CHECKING:
    from fastapi import FastAPI


STATIC = Path(__file__).parent / "static"

FILES = {"page.css": "text/css", "watch.js": "text/javascript", "ui.js": "text/javascript"}

MAX_COMPARED = 12  # runs at once

PLAIN = "text/plain; charset=utf-8"


def watch_app(run: Path) -> FastAPI:
    """Return the application with the page of one run, which need not have begun."""
    app = _app("watch.html")
    meter = ProcessMonitor()
    lock = Lock()

    @app.get("/state")
    def state(offset: int = 0, crc: int = 0) -> Any:
        with lock:  # else two pages would each measure half of the processor's time
            return as_json(look(run, meter, offset=offset, crc=crc))

    return app


def ui_app(folder: Path) -> FastAPI:
    """Return the application for the runs below a folder: list, page of each run, reports, comparisons."""
    from fastapi import Query

    app = _app("ui.html")
    runs = Runs(folder)
    meters: dict[str, ProcessMonitor] = {}
    several = Query(max_length=MAX_COMPARED)
    lock = Lock()

    @app.get("/runs")
    def listed() -> Any:
        return as_json({"folder": str(folder), "runs": runs.all()})

    @app.get("/watch")
    def watch() -> Any:
        return _file("watch.html", "text/html")

    @app.get("/state")
    def state(run: str, offset: int = 0, crc: int = 0) -> Any:
        try:
            path = runs.path(run)
        except UsageError as error:
            return as_json({"name": run, "state": "absent", "words": f"{error}."})
        with lock:
            return as_json(look(path, meters.setdefault(run, ProcessMonitor()), offset=offset, crc=crc))

    @app.get("/report")
    def report(run: str) -> Any:
        return as_report(lambda: report_of(runs.safe(run)))

    @app.get("/compare")
    def compare(run: list[str] = several) -> Any:
        return as_report(lambda: comparison_of([runs.safe(name) for name in run]))

    return app


def _app(page: str) -> FastAPI:
    """Return an application with a page and its static files."""
    need_extra()
    from fastapi import FastAPI, HTTPException

    app = FastAPI(openapi_url=None, docs_url=None, redoc_url=None)

    @app.get("/")
    def first() -> Any:
        return _file(page, "text/html")

    @app.get("/static/{name}")
    def static(name: str) -> Any:
        if name not in FILES:
            raise HTTPException(404)
        return _file(name, FILES[name])

    return app


def _file(name: str, kind: str) -> Any:
    """Return the response with a static file."""
    from fastapi import Response

    return Response((STATIC / name).read_bytes(), media_type=f"{kind}; charset=utf-8")


def as_json(value: Any) -> Any:
    """Return the response with a value as JSON."""
    from fastapi import Response

    return Response(dumps(plain(value)), media_type="application/json")


def as_report(made: Callable[[], str]) -> Any:
    """Return the response with a report, or with the sentence that says why there is none."""
    from fastapi import Response

    try:
        html = made()
    except (RegraftError, OSError) as error:
        return Response(sendable(f"{error}\n"), 409, media_type=PLAIN)
    except Exception as error:  # a fault of regraft must not stop the other pages
        return Response(sendable(f"{fault(error)}\n"), 500, media_type=PLAIN)
    headers = {"content-security-policy": REPORT_CSP}
    return Response(html, media_type="text/html; charset=utf-8", headers=headers)


def sendable(text: str) -> bytes:
    """Return text as UTF-8; bytes of file names that are not UTF-8 are escaped."""
    return text.encode("utf-8", "backslashreplace")


def report_of(run: Path) -> str:
    """Return the run's report.html; make it unless it is newer than the result."""
    from ..report.render import report

    page, result = run / "report.html", run / "result.json"
    known = guarded.is_file(run, page.name) and result.exists()  # report() says why it cannot be made
    if not known or page.lstat().st_mtime < result.lstat().st_mtime:
        report([run])
    return guarded.text(run, page.name) or ""


def comparison_of(runs: list[Path]) -> str:
    """Return the comparison of runs as HTML; no file of it stays."""
    from ..report.render import report

    if len(runs) < 2:
        raise UsageError("choose two runs or more to compare")
    with temporary_folder("regraft-compare") as folder:
        made = report(runs, folder / "comparison.html")
        return guarded.text(made.parent, made.name) or ""
