"""Harmless classes that a checkpoint may name, and messages for all others.

Trainers save their options beside the weights: an argparse.Namespace, a path, a numpy number. Only these names are
allowed. A placeholder that keeps nothing replaces each of them, so none of their code runs, not even numpy's.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..errors import shorten

DICTIONARIES = (
    "lightning.fabric.utilities.data.AttributeDict",
    "lightning_fabric.utilities.data.AttributeDict",
    "lightning.pytorch.utilities.parsing.AttributeDict",
    "pytorch_lightning.utilities.parsing.AttributeDict",
    "easydict.EasyDict",
    "addict.addict.Dict",
    "yacs.config.CfgNode",
    "timm.utils.misc.AttributeDict",
)

NAMES = (
    "argparse.Namespace",
    "types.SimpleNamespace",
    "datetime.date",
    "datetime.datetime",
    "datetime.timedelta",
    "pathlib.Path",
    "pathlib.PosixPath",
    "pathlib.PurePosixPath",
    "pathlib.PureWindowsPath",
    "pathlib.WindowsPath",
    "pathlib._local.PosixPath",
    "pathlib._local.WindowsPath",
    "numpy.dtype",
    "numpy.ndarray",
    "numpy.core.multiarray.scalar",
    "numpy.core.multiarray._reconstruct",
    "numpy._core.multiarray.scalar",
    "numpy._core.multiarray._reconstruct",
    "torch.torch_version.TorchVersion",
    "omegaconf.base.ContainerMetadata",
    "omegaconf.base.Metadata",
    "omegaconf.dictconfig.DictConfig",
    "omegaconf.listconfig.ListConfig",
    "omegaconf.nodes.AnyNode",
    "omegaconf.nodes.BooleanNode",
    "omegaconf.nodes.FloatNode",
    "omegaconf.nodes.IntegerNode",
    "omegaconf.nodes.StringNode",
    "typing.Any",
)

NETWORKS = ("torch.nn.modules.", "timm.", "transformers.models.", "torchvision.models.")


class Record:
    """A placeholder for an object of an allowed class. It takes any arguments and keeps nothing."""

    def __new__(cls, *_: Any, **__: Any) -> Record:
        return object.__new__(cls)

    def __setstate__(self, _: Any) -> None:
        pass

    def __iter__(self) -> Iterator[Any]:
        return iter(())


def allowed() -> list[Any]:
    """Return placeholders under the names of harmless classes, for torch's ``safe_globals``."""
    return [*((Record, n) for n in NAMES), *((OrderedDict, n) for n in DICTIONARIES)]


def describe_refusal(path: Path, error: Exception) -> str:
    """Return why a torch file is refused and the remedy, without torch's own advice."""
    names = foreign_names(path, error)
    whole = [n for n in names if n.startswith(NETWORKS)]
    what = (
        "it is damaged, or holds more than tensors"
        if not names
        else f"it holds a whole module ({shorten(whole, 3)})"
        if whole
        else f"beside tensors it holds objects of classes that may run code ({shorten(names, 3)})"
    )
    return (
        f"refused, nothing executed: {what}; remedy: where you trust it, load it in a sandbox and save its "
        "state_dict() with safetensors.torch.save_file"
    )


def foreign_names(path: Path, error: Exception) -> list[str]:
    """Return the classes and functions that a torch file names and that are not allowed."""
    from torch.serialization import get_unsafe_globals_in_checkpoint

    try:
        return sorted(get_unsafe_globals_in_checkpoint(str(path)))
    except Exception:  # an old or damaged file: torch's message has the first name only
        return re.findall(r"GLOBAL ([\w.]+)", str(error))[:1]
