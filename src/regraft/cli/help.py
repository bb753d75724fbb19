"""Commands about the installation: cache, doctor, list."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from .. import plugins
from ..io import streams
from .options import AsJson
from .printing import print_result


def cache(clear: Annotated[bool, typer.Option("--clear", help="Remove every entry.")] = False) -> None:
    """Show where features are cached for the next run and how much space they take, or --clear them."""
    from ..data.store import cache_in
    from ..io.places import pictures_root, unpacked_pictures

    store = cache_in("shared")
    pictures = unpacked_pictures()
    if clear:
        for path in pictures:
            path.unlink(missing_ok=True)
        streams.echo(f"{store.clear()} entries removed from {store.root}")
        streams.echo(f"{len(pictures)} pictures of tables removed from {pictures_root()}")
        return
    entries = store.entries()
    size = sum(size for _, size, _ in entries)
    streams.echo(f"{store.root}: {len(entries)} entries, {size / 1e6:,.1f} MB")
    if pictures:
        size = sum(path.stat().st_size for path in pictures)
        streams.echo(f"{pictures_root()}: {len(pictures)} pictures of tables, {size / 1e6:,.1f} MB")


def doctor(
    runs: Annotated[Path, typer.Argument(help="The folder that runs are in.")] = Path("runs"), as_json: AsJson = False
) -> None:
    """Check versions, devices, disk, caches and locks; name what is wrong and the remedy."""
    from ..commands.doctor import examine, format_findings

    findings = examine(runs)
    print_result([asdict(f) for f in findings], lambda: format_findings(findings), as_json)
    if any(f.remedy for f in findings):
        raise typer.Exit(1)


def list_(
    what: Annotated[str, typer.Argument(help=f"{', '.join(plugins.FOLDERS)}, recipes, or a folder of runs.")] = "all",
    as_json: AsJson = False,
) -> None:
    """List plug-ins and recipes with their options, or the runs in a folder."""
    from ..commands.listing import listing

    streams.echo(listing(what, as_json))


COMMANDS = {"cache": cache, "doctor": doctor, "list": list_}
