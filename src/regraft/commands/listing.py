"""``regraft list``: the plug-ins of each kind with their options, and the runs in a folder."""

from __future__ import annotations

import ast
import json
from dataclasses import MISSING, Field, fields
from pathlib import Path
from typing import Any

from .. import plugins
from ..errors import UsageError, did_you_mean, printable
from ..plan.recipes import read_recipe, recipe_names
from ..plan.write import toml_value
from ..runs.folder import runs_below
from ..runs.result import Unfinished, read_ended
from ..runs.summary import estimate


def listing(what: str, as_json: bool) -> str:
    """Return the list of plug-ins or runs as text or JSON.

    Raises UsageError for a name that is neither a kind of plug-in nor a folder.
    """
    kinds = (*plugins.FOLDERS, "recipes")
    if what in kinds or what == "all":
        folders = kinds if what == "all" else (what,)
        found = {folder: recipes() if folder == "recipes" else plugins_of(folder) for folder in folders}
        return json.dumps(found) if as_json else "\n\n".join(in_words(f, p) for f, p in found.items())
    if not Path(what).is_dir():
        raise UsageError(f'nothing is called "{what}"; {did_you_mean(what, [*kinds, "all"])}')
    runs = [run_line(path) for path in runs_below(Path(what))]
    if as_json:
        return json.dumps(runs)
    lines = [printable(f"{r['run']:<28} {r['status']:<12} {r['figures']}") for r in runs]
    return "\n".join(lines) or f"no runs in {what}"


def plugins_of(folder: str) -> list[dict[str, Any]]:
    """Return the plug-ins of a folder; see :func:`plugin`."""
    return [plugin(folder, name) for name in plugins.names(folder)]


def recipes() -> list[dict[str, Any]]:
    """Return the recipes that regraft brings, with their settings by dotted key in place of options."""
    every = map(read_recipe, recipe_names())
    return [
        {
            "name": r.name,
            "about": r.about,
            "options": {f"{s}.{k}": toml_value(v) for s, values in r.tree.items() for k, v in values.items()},
        }
        for r in every
    ]


def plugin(folder: str, name: str) -> dict[str, Any]:
    """Return name, first line of the docstring and options, without the imports inside its functions."""
    path = plugins.place(folder) / f"{name}.py"
    doc = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    options: dict[str, str] = {}
    if folder in ("tasks", "freezing", "regularizers"):
        for field in fields(plugins.options_class(folder, name)):
            options[field.name] = default_of(field)
    return {"name": name, "about": doc.splitlines()[0] if doc else "", "options": options}


def default_of(field: Field[Any]) -> str:
    """Return an option's default as text; "required" if it has none."""
    if field.default_factory is not MISSING:
        return repr(field.default_factory())
    return "required" if field.default is MISSING else repr(field.default)


def in_words(folder: str, plugins_of_folder: list[dict[str, Any]]) -> str:
    """Return the plug-ins of a folder as text."""
    lines = [folder]
    for p in plugins_of_folder:
        options = ", ".join(f"{k} = {v}" for k, v in p["options"].items())
        lines.append(f"  {p['name']:<18} {p['about']}" + (f"  [{options}]" if options else ""))
    return "\n".join(lines)


def run_line(path: Path) -> dict[str, str]:
    """Return a line of the list; that of a damaged run gives the reason."""
    try:
        result = read_ended(path)
    except UsageError as error:  # one damaged run does not hide the others
        return {"run": str(path), "status": "damaged", "figures": str(error)}
    if result is None:
        return {"run": str(path), "status": "unfinished", "figures": ""}
    if isinstance(result, Unfinished):
        return {"run": str(path), "status": result.status, "figures": printable(result.error)}
    e = result.test[result.primary]
    figures = f"{result.primary} {estimate(e)} n = {e.n}   {printable(result.source.name)}"
    return {"run": str(path), "status": "finished", "figures": figures}
