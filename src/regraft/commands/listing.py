"""``regraft list``: the plug-ins of each kind with their options, and the runs in a folder."""

from __future__ import annotations

import ast
import json
from dataclasses import MISSING, Field, fields
from pathlib import Path
from typing import Any

from .. import plugins
from ..errors import UsageError, did_you_mean, printable
from ..io import guarded
from ..runs import records
from ..runs.folder import finished, runs_below
from ..runs.summary import estimate


def listing(what: str, as_json: bool) -> str:
    """Raises UsageError for what is neither a kind of plug-in nor a folder."""
    if what in plugins.FOLDERS or what == "all":
        folders = plugins.FOLDERS if what == "all" else (what,)
        found = {folder: [plugin(folder, n) for n in plugins.names(folder)] for folder in folders}
        return json.dumps(found) if as_json else "\n\n".join(in_words(f, p) for f, p in found.items())
    if not Path(what).is_dir():
        raise UsageError(f'nothing is called "{what}"; {did_you_mean(what, [*plugins.FOLDERS, "all"])}')
    runs = [run_line(path) for path in runs_below(Path(what))]
    if as_json:
        return json.dumps(runs)
    lines = [printable(f"{r['run']:<28} {r['status']:<12} {r['figures']}") for r in runs]
    return "\n".join(lines) or f"no runs in {what}"


def plugin(folder: str, name: str) -> dict[str, Any]:
    """Name, first line of the docstring and options, without importing what the file imports late."""
    path = plugins.place(folder) / f"{name}.py"
    doc = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    options: dict[str, str] = {}
    if folder in ("tasks", "freezing", "regularizers"):
        for field in fields(plugins.options_class(folder, name)):
            options[field.name] = default_of(field)
    return {"name": name, "about": doc.splitlines()[0] if doc else "", "options": options}


def default_of(field: Field[Any]) -> str:
    if field.default_factory is not MISSING:
        return repr(field.default_factory())
    return "required" if field.default is MISSING else repr(field.default)


def in_words(folder: str, found: list[dict[str, Any]]) -> str:
    lines = [folder]
    for p in found:
        options = ", ".join(f"{k} = {v}" for k, v in p["options"].items())
        lines.append(f"  {p['name']:<18} {p['about']}" + (f"  [{options}]" if options else ""))
    return "\n".join(lines)


def run_line(path: Path) -> dict[str, str]:
    """Return a line of the list. A run that does not read is one too, with the reason."""
    try:
        r = guarded.read_json(path, "result.json")
        if r is None:
            return {"run": str(path), "status": "unfinished", "figures": ""}
        if records.problem(records.Unfinished, r) is None:
            why = printable(records.text_in(r, "error"))
            return {"run": str(path), "status": r["status"], "figures": why}
        r = finished(path)
    except UsageError as error:  # one damaged run does not hide the others
        return {"run": str(path), "status": "damaged", "figures": str(error)}
    e = r["test"][r["primary"]]
    figures = f"{r['primary']} {estimate(e)} n = {e['n']}   {printable(r['source']['name'])}"
    return {"run": str(path), "status": "finished", "figures": figures}
