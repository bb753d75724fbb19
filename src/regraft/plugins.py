"""Plug-ins, found by file name in one of these folders.

    sources/ formats/ metrics/ checks/        a module of functions
    exports/ trackers/ report/sections/       likewise
    tasks/ freezing/ regularizers/            a module with one public options dataclass

An options dataclass carries ``__pydantic_config__ = {"extra": "forbid", "strict": True}``, because pydantic
drops a misspelt key of a plain one in silence. A dotted path ("my_lab.penalties:Mine") names outside code. It
runs only where the caller allows code.
"""

from __future__ import annotations

import dataclasses
import inspect
import json
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

from pydantic import TypeAdapter, ValidationError

from .errors import UsageError, did_you_mean

FOLDERS = (
    "sources",
    "formats",
    "tasks",
    "freezing",
    "regularizers",
    "metrics",
    "checks",
    "exports",
    "trackers",
    "report.sections",
)


def place(folder: str) -> Path:
    """Return where the plug-ins of a folder lie."""
    return Path(__file__).parent.joinpath(*folder.split("."))


def names(folder: str) -> list[str]:
    """Return the plug-ins of a folder, sorted, from its file names; import nothing."""
    return sorted(p.stem for p in place(folder).glob("*.py") if not p.stem.startswith("_"))


def module(folder: str, name: str) -> ModuleType:
    """Import a plug-in's module.

    Raises LookupError, listing what exists, for a name that matches nothing.
    """
    if name not in names(folder):
        raise LookupError(f'{folder} has no "{name}"; {did_you_mean(name, names(folder))}')
    return import_module(f".{folder}.{name}", __package__)


def installed_module(folder: str, name: str, extra: str) -> ModuleType:
    """Import a plug-in's module, for ``--to name``.

    Raises UsageError for a name that matches nothing, and where modules of the extra are not installed.
    """
    try:
        found = module(folder, name.replace("-", "_"))
    except LookupError as error:
        raise UsageError(f"--to {name}: {error}") from error
    missing = [m for m in found.needs if find_spec(m) is None]
    if missing:
        text = f'--to {name} needs {", ".join(missing)}, not installed here: pip install "regraft[{extra}]"'
        raise UsageError(text)
    return found


def options_class(folder: str, name: str, *, allow_code: bool = False) -> type[Any]:
    """Return the options dataclass of a plug-in, by file name or, where code is allowed, by dotted path.

    Raises LookupError for a name that matches nothing or a dotted path without leave.
    """
    if ":" in name:
        if not allow_code:
            raise LookupError(f'"{name}" is code: say --allow-code to run it')
        path, _, attribute = name.partition(":")
        try:
            return getattr(import_module(path), attribute)  # type: ignore[no-any-return]
        except (ImportError, AttributeError) as error:
            raise LookupError(f'"{name}" cannot be imported: {error}') from error
    found = module(folder, name)
    classes = [
        c
        for n, c in vars(found).items()
        if inspect.isclass(c)
        and c.__module__ == found.__name__
        and not n.startswith("_")
        and "__pydantic_config__" in vars(c)
    ]
    if len(classes) != 1:
        raise LookupError(f"{folder}/{name}.py must define one public options dataclass")
    return classes[0]


def make(cls: type[Any], values: dict[str, Any], where: str) -> tuple[Any, list[str]]:
    """Return (options | None, problems in words) of plain values, read strictly."""
    try:
        # through JSON, whose strict mode still reads an array as a tuple and a string as a path
        return TypeAdapter(cls).validate_json(json.dumps(values, default=str)), []
    except ValidationError as error:
        known = [f.name for f in dataclasses.fields(cls)]
        return None, [problem(where, dict(e), known) for e in error.errors()]


def problem(where: str, error: dict[str, Any], known: list[str]) -> str:
    """Return one pydantic error as a line, with the nearest known key where a key is unknown."""
    place = ".".join([where, *(str(p) for p in error["loc"])]).strip(".")
    if error["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
        return f"{place}: unknown key; {did_you_mean(str(error['loc'][-1]), known)}"
    text = str(error["msg"]).removeprefix("Value error, ")
    return f"{place}: {text[0].lower()}{text[1:]}"
