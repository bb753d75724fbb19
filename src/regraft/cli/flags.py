"""Flags for keys of the plan, with the schema's type, default and help, and choices from the plug-in folders."""

from __future__ import annotations

import ast
import functools
import inspect
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from types import GenericAlias, NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import typer

from .. import plugins
from ..errors import PlanError, UsageError, did_you_mean
from ..plan.schema import Plan, keys_of

FLAGS = {  # flag: key of the plan
    "source": "source.ref",
    "weights": "source.weights",
    "source_data": "source_data.path",
    "offline": "source.offline",
    "image_root": "data.image_root",
    "image": "data.image",
    "text": "data.text",
    "label": "data.label",
    "split": "data.split",
    "group": "data.group",
    "on_bad": "data.on_bad",
    "task": "task.name",
    "recipe": "fit.recipe",
    "epochs": "fit.epochs",
    "batch_size": "fit.batch_size",
    "lr": "fit.lr",
    "head_lr": "fit.head_lr",
    "optimizer": "fit.optimizer",
    "freezing": "freezing.name",
    "retain": "fit.retain",
    "controls": "evaluate.controls",
    "slice": "evaluate.slices",
    "seed": "run.seed",
    "seeds": "run.seeds",
    "device": "run.device",
    "workers": "run.workers",
    "nproc": "run.processes",
    "out": "run.out",
}

TAKE_AUTO = ("seeds",)  # flags of numbers that take "auto" too; elsewhere it is the default

PLUGIN_FOLDERS = {"task": "tasks", "freezing": "freezing"}  # sections whose "name" is a plug-in


# ---------------------------------------------------------------- keys of the plan as options


@functools.cache
def flag(name: str, default: Any = None) -> inspect.Parameter:
    """Return the option of a plan's key. Absent, it is ``default``, or None, False or [] by its type."""
    section, key = FLAGS[name].split(".")
    field = Plan.model_fields[section]
    if section in PLUGIN_FOLDERS:
        text = f"{field.description}: {', '.join(plugins.names(PLUGIN_FOLDERS[section]))}"
        return option(name, str, None, text, shown=field.default[key])
    field = keys_of(field.annotation)[key]
    kind, text = cli_type(field.annotation, field.json_schema_extra), field.description or ""
    if default is not None:
        return option(name, kind, default, text)
    absent: Any = False if kind is bool else [] if get_origin(kind) is list else None
    planned = None if field.is_required() else field.default
    shown = str(planned) if isinstance(planned, str | int | float) and kind is not bool else False
    if name in TAKE_AUTO:
        return option(name, kind, absent, text, shown=shown, words=("auto",))
    if name == "optimizer":
        text = f"{text}: {', '.join(optimizer_names())}"
        return option(name, kind, absent, text, shown=shown, check=checked_optimizer)
    return option(name, kind, absent, text, shown=shown)


def option(
    name: str,
    kind: Any,
    default: Any,
    text: str,
    *,
    shown: str | bool = True,
    check: Callable[[Any], Any] | None = None,
    words: tuple[str, ...] = (),
) -> inspect.Parameter:
    """Return a command's parameter that typer reads as an option; ``shown`` stands for the default in the help.

    ``words`` are values that a number may be replaced by.
    """
    about = typer.Option(f"--{name.replace('_', '-')}", help=sentence(text), callback=check, show_default=shown)
    if words:
        about.parser, about.metavar = partial(number_or_word, words=words), f"INTEGER|{'|'.join(words)}"
    taken = kind | None if default is None else kind
    annotation: Any = Annotated[taken, about]
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


def number_or_word(text: str, words: tuple[str, ...]) -> int | str:
    """Return a whole number, or one of the words. Raises BadParameter for another text."""
    if text in words:
        return text
    try:
        return int(text)
    except ValueError:
        raise typer.BadParameter(f'give a whole number or {" or ".join(words)}, not "{text}"') from None


def cli_type(annotation: Any, extra: Any = None) -> Any:
    """Return the type of an option from that of a field: without bounds, None and "auto"."""
    origin, inside = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        extra = next((e for m in inside[1:] if (e := getattr(m, "json_schema_extra", None))), extra)
        return cli_type(inside[0], extra)
    if origin in (list, tuple):  # typer takes no list of literals; the plan checks them
        return GenericAlias(list, str if get_origin(inside[0]) is Literal else inside[0])
    if origin in (Union, UnionType):
        return cli_type(next(t for t in inside if t not in (NoneType, Literal["auto"])), extra)
    return Path if extra == {"format": "path"} else annotation


def sentence(text: str) -> str:
    """Return a description of the schema as a sentence."""
    return f"{text[:1].upper()}{text[1:]}."


# ---------------------------------------------------------------- names of plug-ins


def plugin_option(folder: str, text: str) -> Any:
    """Return an option that takes a plug-in of a folder by name. It refuses others before anything heavy loads."""
    known = [name.replace("_", "-") for name in plugins.names(folder)]

    def check(name: str) -> str:
        if name.replace("_", "-") not in known:
            raise UsageError(f'{folder} has no "{name}"; {did_you_mean(name, known)}')
        return name

    return typer.Option(help=f"{text}: {', '.join(known)}.", callback=check)


@functools.cache
def optimizer_names() -> tuple[str, ...]:
    """Return the optimizers of torch.optim, read from its source: importing torch takes seconds."""
    torch = find_spec("torch")
    file = Path(torch.origin or "").parent / "optim" / "__init__.py" if torch else None
    if file is None or not file.is_file():
        return ()
    tree = ast.parse(file.read_text(encoding="utf-8"))
    imported = {a.asname or a.name for n in tree.body if isinstance(n, ast.ImportFrom) for a in n.names}
    return tuple(sorted(name for name in imported - {"Optimizer"} if name[0].isupper()))


def checked_optimizer(name: str | None) -> str | None:
    """Return the name. Raises PlanError, as reading the plan does later, for one that torch lacks."""
    known = optimizer_names()
    if name is not None and known and name not in known:
        raise PlanError([f'fit.optimizer: torch has no "{name}"; {did_you_mean(name, known)}'])
    return name
