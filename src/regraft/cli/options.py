"""Options that commands share, and decorators that put several options in the place of one parameter."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import typer

from ..errors import UsageError
from ..plan.schema import Plan
from .flags import FLAGS, cli_type, flag, option

Command = Callable[..., None]

AllowCode = Annotated[bool, typer.Option("--allow-code", help="Let dotted paths of the plan import your code.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, for machines.")]
Calibrated = Annotated[
    bool, typer.Option("--calibrated", help="Give probabilities at the temperature that was fitted on held-out rows.")
]
NoBrowser = Annotated[bool, typer.Option("--no-browser", help="Print the address and open no browser.")]
Port = Annotated[int, typer.Option(help="Port of the page on 127.0.0.1; 0 takes a free one.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print only the result.")]
RunFolder = Annotated[Path, typer.Argument(help="A run folder.")]


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
    """Arguments that make a plan: data or a plan file, then flags, then --set."""

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
