"""The two applications: one run that is followed, and the runs of a folder.

A page is a file of static/ that never changes; what it shows it asks for as JSON and sets as text, so
that no name of a class or a run is ever read as HTML.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any

from ..errors import RegraftError, UsageError, printable
from ..io import guarded
from ..io.json_files import dumps, plain
from ..io.work_folders import temporary_folder
from ..serving.local_pages import REPORT_CSP, need_extra
from .following import look
from .following import name_of as run_name
from .resources import ProcessMonitor
from .runs import Runs, fault

if TYPE_CHECKING:
    from fastapi import FastAPI


STATIC = Path(__file__).parent / "static"

FILES = {"page.css": "text/css", "watch.js": "text/javascript", "ui.js": "text/javascript"}

MOST = 12  # runs that are compared at once

PLAIN = "text/plain; charset=utf-8"


def watch_app(run: Path) -> FastAPI:
    """The page of one run, which need not have begun."""
    app = _app("watch.html")
    meter = ProcessMonitor()
    alone = Lock()

    @app.get("/state")
    def state(offset: int = 0, crc: int = 0) -> Any:
        with alone:  # two pages would each see half of the processor's time
            return as_json(looked(run, meter, offset, crc))

    return app


def ui_app(folder: Path) -> FastAPI:
    """The runs below a folder: their list, the page of each, reports and comparisons."""
    from fastapi import Query

    app = _app("ui.html")
    runs = Runs(folder)
    meters: dict[str, ProcessMonitor] = {}
    several = Query(max_length=MOST)
    alone = Lock()

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
        with alone:
            return as_json(looked(path, meters.setdefault(run, ProcessMonitor()), offset, crc))

    @app.get("/report")
    def report(run: str) -> Any:
        return as_report(lambda: report_of(runs.safe(run)))

    @app.get("/compare")
    def compare(run: list[str] = several) -> Any:
        return as_report(lambda: comparison_of([runs.safe(name) for name in run]))

    return app


def _app(page: str) -> FastAPI:
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
    from fastapi import Response

    return Response((STATIC / name).read_bytes(), media_type=f"{kind}; charset=utf-8")


def as_json(value: Any) -> Any:
    from fastapi import Response

    return Response(dumps(plain(value)), media_type="application/json")


def as_report(made: Callable[[], str]) -> Any:
    """A report, or the sentence that says why there is none."""
    from fastapi import Response

    try:
        html = made()
    except (RegraftError, OSError) as error:
        return Response(sendable(f"{error}\n"), 409, media_type=PLAIN)
    except Exception as error:  # a fault of regraft's, which other pages must not suffer
        return Response(sendable(f"{fault(error)}\n"), 500, media_type=PLAIN)
    headers = {"content-security-policy": REPORT_CSP}
    return Response(html, media_type="text/html; charset=utf-8", headers=headers)


def sendable(text: str) -> bytes:
    """Return text as UTF-8: names of files may be bytes that are none."""
    return text.encode("utf-8", "backslashreplace")


def looked(run: Path, meter: ProcessMonitor, offset: int, crc: int) -> dict[str, Any]:
    """Return what a run says now, or the sentence that says why not."""
    try:
        return look(run, meter, offset=offset, crc=crc)
    except Exception as error:  # a fault of regraft's: the page goes on and says so
        return {"name": run_name(run), "state": "broken", "words": printable(fault(error))}


def report_of(run: Path) -> str:
    """The run's report.html, made anew where there is none that is younger than the result."""
    from ..report.render import report

    name = "report.html"
    made = (run / name).lstat().st_mtime if guarded.is_file(run, name) else -1.0
    if made < changed_at(run):
        report([run])
    return guarded.text(run, name) or ""


def changed_at(run: Path) -> float:
    """When result.json was written; infinity where there is none, so that a report says why."""
    try:
        return (run / "result.json").lstat().st_mtime
    except OSError:
        return math.inf


def comparison_of(runs: list[Path]) -> str:
    """The comparison of runs; nothing of it is kept."""
    from ..report.render import report

    if len(runs) < 2:
        raise UsageError("choose two runs or more to compare")
    with temporary_folder("regraft-compare") as folder:
        made = report(runs, folder / "comparison.html")
        return guarded.text(made.parent, made.name) or ""
