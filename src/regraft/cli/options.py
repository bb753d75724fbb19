"""Options of the commands. A key of the plan that is a flag has the schema's type, default and help."""

from __future__ import annotations

import ast
import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from importlib.util import find_spec
from pathlib import Path
from types import GenericAlias, NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import typer

from .. import plugins
from ..errors import PlanError, UsageError, did_you_mean
from ..plan.schema import Plan, keys_of

Command = Callable[..., None]

AllowCode = Annotated[bool, typer.Option("--allow-code", help="Let dotted paths of the plan import your code.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, for machines.")]
Calibrated = Annotated[
    bool, typer.Option("--calibrated", help="Give probabilities at the temperature that was fitted on val.")
]
NoBrowser = Annotated[bool, typer.Option("--no-browser", help="Print the address and open no browser.")]
Port = Annotated[int, typer.Option(help="Port of the page on 127.0.0.1; 0 takes a free one.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print only the result.")]
RunFolder = Annotated[Path, typer.Argument(help="A run folder.")]

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
    "epochs": "fit.epochs",
    "batch_size": "fit.batch_size",
    "lr": "fit.lr",
    "head_lr": "fit.head_lr",
    "optimizer": "fit.optimizer",
    "freezing": "freezing.name",
    "retain": "fit.retain",
    "controls": "evaluate.controls",
    "seed": "run.seed",
    "seeds": "run.seeds",
    "device": "run.device",
    "workers": "run.workers",
    "nproc": "run.processes",
    "out": "run.out",
}

PLUGIN_FOLDERS = {"task": "tasks", "freezing": "freezing"}  # sections whose "name" is a plug-in


# ---------------------------------------------------------------- keys of the plan as options


def flag(name: str, default: Any = None) -> inspect.Parameter:
    """Return the option of a plan's key. Absent, it is ``default``, or None, False or [] by its type."""
    section, key = FLAGS[name].split(".")
    field = Plan.model_fields[section]
    if section in PLUGIN_FOLDERS:
        text = f"{field.description}: {', '.join(plugins.names(PLUGIN_FOLDERS[section]))}"
        return option(name, str, None, text, shown=field.default[key])
    model: Any = field.annotation
    field = keys_of(model)[key]
    kind, text = cli_type(field.annotation, field.json_schema_extra), field.description or ""
    if default is not None:
        return option(name, kind, default, text)
    absent: Any = False if kind is bool else [] if get_origin(kind) is list else None
    planned = None if field.is_required() else field.default
    shown = str(planned) if isinstance(planned, str | int | float) and kind is not bool else False
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
) -> inspect.Parameter:
    """Return a command's parameter that typer reads as an option; ``shown`` stands for the default in the help."""
    about = typer.Option(f"--{name.replace('_', '-')}", help=sentence(text), callback=check, show_default=shown)
    taken = kind | None if default is None else kind
    annotation: Any = Annotated[taken, about]
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


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


# ---------------------------------------------------------------- one parameter, many options


def gather(
    parameter: str, options: Sequence[inspect.Parameter], make: Callable[..., Any]
) -> Callable[[Command], Command]:
    """Put ``options`` in the place of a command's parameter, which gets ``make(**values)``."""

    def decorate(command: Command) -> Command:
        own = inspect.signature(command, eval_str=True).parameters
        new: list[inspect.Parameter] = []
        for name, p in own.items():
            new += options if name == parameter else [p.replace(kind=inspect.Parameter.KEYWORD_ONLY)]

        @functools.wraps(command)
        def wrapper(**given: Any) -> None:
            values = {o.name: given.pop(o.name) for o in options}
            command(**{parameter: make(**values)}, **given)

        # typer reads both
        wrapper.__signature__ = inspect.Signature(new)  # type: ignore[attr-defined]
        wrapper.__annotations__ = {p.name: p.annotation for p in new}
        return wrapper

    return decorate


def takes_flags(*names: str, **defaults: Any) -> Callable[[Command], Command]:
    """Give a command flags of the plan; its parameter ``flags`` gets their values. ``defaults`` replace None."""
    return gather("flags", [flag(n, defaults.get(n)) for n in FLAGS if n in {*names, *defaults}], dict)


def takes_record(parameter: str, record: type[Any], *names: str) -> Callable[[Command], Command]:
    """Give a command fields of a dataclass as options; its parameter gets the record, with defaults elsewhere."""
    hints = get_type_hints(record)
    options = []
    for f in fields(record):
        if f.name in names:
            default = list(f.default) if isinstance(f.default, tuple) else f.default
            options.append(option(f.name, cli_type(hints[f.name]), default, f.metadata["help"]))

    def make(**values: Any) -> Any:
        try:
            return record(**{k: tuple(v) if isinstance(v, list) else v for k, v in values.items()})
        except ValueError as error:
            raise UsageError(f"--{str(error).replace('_', '-', 1)}") from error

    return gather(parameter, options, make)


@dataclass(frozen=True)
class PlanArguments:
    """What a command line says of a plan: data or a plan file, then flags, then --set."""

    data: str
    flags: Mapping[str, Any]
    settings: Sequence[str]
    allow_code: bool

    def plan(self, *, needs_source: bool = True) -> Plan:
        """Return the plan; a later setting beats an earlier one.

        Raises PlanError with all problems, UsageError where a source is missing.
        """
        from ..plan.read import parse_setting, read_plan

        is_plan = self.data.endswith(".toml")
        values: dict[str, Any] = {} if is_plan else {"data.path": self.data}
        for name, value in self.flags.items():
            if value is None or value is False or value == []:
                continue
            values[FLAGS[name]] = str(value) if isinstance(value, Path) else value
        values |= dict(parse_setting(s) for s in self.settings)
        if not is_plan and not needs_source:
            values.setdefault("source.ref", "")
        if not is_plan and "source.ref" not in values:
            raise UsageError("say what to start from: --source bundled:efficientnet-lite0, or see --help")
        return read_plan(Path(self.data) if is_plan else None, values, allow_code=self.allow_code)


def takes_plan(*, but: tuple[str, ...] = ()) -> Callable[[Command], Command]:
    """Give a command DATA, the flags of the plan, --set and --allow-code; its parameter ``given`` gets them."""
    kind = inspect.Parameter.KEYWORD_ONLY
    data = Annotated[str, typer.Argument(metavar="DATA|PLAN", help="Data, or a plan.toml.")]
    settings = Annotated[list[str], typer.Option("--set", metavar="KEY=VALUE", help="Set any key of the plan.")]

    def make(data: str, settings: list[str], allow_code: bool, **flags: Any) -> PlanArguments:
        return PlanArguments(data, flags, settings, allow_code)

    options = [
        inspect.Parameter("data", kind, annotation=data),
        *(flag(name) for name in FLAGS if name not in but),
        inspect.Parameter("settings", kind, default=[], annotation=settings),
        inspect.Parameter("allow_code", kind, default=False, annotation=AllowCode),
    ]
    return gather("given", options, make)
