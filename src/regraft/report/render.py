"""The HTML file of one or more run folders: no script, no request, readable at 360 pixels and on paper."""

from __future__ import annotations

import os
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from threading import get_ident
from types import ModuleType
from typing import Any

from ..errors import UsageError
from ..io.atomic import disk_errors, write_file
from ..runs.summary import estimate, number, signed
from .reading import RunFiles, brief

HERE = Path(__file__).parent


def report(runs: Sequence[str | Path], out: Path | None = None) -> Path:
    """Write the report of a run, or of several side by side, and return its path.

    Without ``out`` the report of one run goes into its folder, and replaces an older one there.

    Raises UsageError for folders that are no finished runs, for runs that cannot be compared and for several
    runs without ``out``; DiskError if the file cannot be written.
    """
    paths = [Path(run) for run in runs]
    if not paths:
        raise UsageError("give a run folder: regraft report runs/NAME")
    if out is None and len(paths) > 1:
        raise UsageError("several runs go into one file: say which with --out comparison.html")
    html = page([RunFiles.read(path) for path in paths])
    target = out or paths[0] / "report.html"
    part = target.with_name(f".{target.name}.{os.getpid()}.{get_ident()}.part")
    with disk_errors(target):
        write_file(target, html.encode(errors="backslashreplace"), part)
    return target


def page(files: Sequence[RunFiles]) -> str:
    """Return the whole HTML."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    env = Environment(
        loader=FileSystemLoader(HERE), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    env.globals |= {"estimate": estimate, "signed": signed, "number": number, "brief": brief}
    many = len(files) > 1
    parts: list[dict[str, Any]] = []
    if many:
        from . import comparison

        parts.append(rendered(env, comparison, comparison.context(files), "comparison"))
    for i, run in enumerate(files):
        for module in sections():
            if many and not getattr(module, "IN_COMPARISON", False):
                continue
            name = module.__name__.rpartition(".")[2]
            part = rendered(env, module, module.context(run), f"{name}-{i}" if many else name)
            title = f"{run.name}: {part['title']}" if many else part["title"]
            parts.append(part | {"title": title})
    names = ", ".join(run.name for run in files)
    return env.get_template("page.html").render(
        title=names, parts=parts, runs=files, version=files[0].environment.regraft
    )


def sections() -> list[ModuleType]:
    """Return the modules of ``sections/`` in their order."""
    names = sorted(p.stem for p in (HERE / "sections").glob("*.py") if not p.stem.startswith("_"))
    modules = [import_module(f".sections.{name}", __package__) for name in names]
    return sorted(modules, key=lambda module: int(module.ORDER))


def rendered(env: Any, module: ModuleType, context: Any, anchor: str) -> dict[str, Any]:
    """Return a section's title, anchor and HTML; a sentence if it has nothing to show."""
    from markupsafe import Markup, escape

    if isinstance(context, str):
        html = Markup('<p class="none">') + escape(context) + Markup("</p>")
    else:
        head = '{% import "macros.html" as m with context %}\n'
        html = Markup(env.from_string(head + module.TEMPLATE).render(context))
    return {"title": module.TITLE, "anchor": anchor, "html": html}
