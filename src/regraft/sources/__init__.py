"""Sources, one file each; regraft finds a source by its file's name.

A plug-in has ``load(name, options) -> Source`` and ``build(recipe, folder) -> Source``. ``build`` makes the same
architecture again, offline and without weights. A plug-in whose sources lie in packages or in a cache also has
``local(kind) -> names``, of those that load without network. Files whose names begin with "_" are shared by the
plug-ins of this folder.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

from .. import plugins
from ..compute.arrays import Kind
from ..errors import SourceError, did_you_mean
from ..model.types import Source, SourceOptions

FORMS = "write timm:NAME, transformers:NAME_OR_FOLDER, bundled:NAME, random:timm/NAME or a run folder"


@contextmanager
def hub_offline() -> Iterator[None]:
    """Set the hub's library to offline inside the block.

    Even with local files only, the library would send requests of other kinds, such as for a list of agent programs.
    """
    from huggingface_hub import constants

    before = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before


def load_source(ref: str, options: SourceOptions) -> Source:
    """Return the source that a reference names. The path of a run folder needs no prefix.

    Raises SourceError for a reference that matches nothing or a source that cannot be loaded.
    """
    with hub_offline() if options.offline else nullcontext():
        if os.path.lexists(Path(ref) / "model" / "config.json"):  # run.load refuses a path that is no regular file
            source: Source = plugins.module("sources", "run").load(ref, options)
            return source
        prefix, colon, name = ref.partition(":")
        known = plugins.names("sources")
        if colon and name and prefix in known:
            source = plugins.module("sources", prefix).load(name, options)
            source.name = ref
            return source
        if colon and prefix not in known:
            raise SourceError(f'source "{ref}": {did_you_mean(prefix, known)}; {FORMS}')
        if Path(ref).is_dir():
            raise SourceError(f'source "{ref}" is a folder without model/config.json; {FORMS}')
        raise SourceError(f'source "{ref}" is not known; {FORMS}')


def local_references(kind: Kind) -> list[str]:
    """Return references of sources for inputs of a kind that are installed or in a cache, and need no network."""
    modules = {name: plugins.module("sources", name) for name in plugins.names("sources")}
    return [f"{name}:{found}" for name, m in modules.items() if hasattr(m, "local") for found in m.local(kind)]
