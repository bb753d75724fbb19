"""Plans from TOML files and ``--set``: every problem at once, each with its line."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from .. import plugins
from ..errors import PlanError, UsageError, printable, shorten
from ..io import guarded
from .plug_ins import PlugIns, Problem, make_plugins
from .ranges import Ranges, read_ranges
from .recipes import overlay, read_recipe
from .schema import FitPlan, Plan, keys_of

# ---------------------------------------------------------------- reading


def read_plan(path: Path | None, settings: Mapping[str, Any], *, allow_code: bool = False) -> Plan:
    """Read a plan from a TOML file and settings by dotted key; a setting beats the file.

    Raises PlanError with every problem at once, UsageError where there is no such file.
    """
    text = ""
    if path is not None:
        try:
            text = path.read_text(encoding="utf-8")
        except OSError as error:
            raise UsageError(f"{path} cannot be read: {error.strerror or error}") from error
        except UnicodeDecodeError as error:
            raise PlanError([f"not UTF-8 at byte {error.start}"], str(path)) from error
    return plan_in(text, str(path) if path else "the plan", settings, allow_code=allow_code)


def read_run_plan(run: Path, *, allow_code: bool = False) -> Plan:
    """Return the plan that a run was made from; of a run from elsewhere too, whose files may be anything.

    Raises PlanError with every problem at once, UsageError where there is no such file.
    """
    text = guarded.text(run, "plan.toml")
    if text is None:
        raise UsageError(f"{guarded.shown(run, 'plan.toml')} is missing; is this a run folder?")
    return plan_in(text, guarded.shown(run, "plan.toml"), {}, allow_code=allow_code, recipes=False)


def plan_in(text: str, where: str, settings: Mapping[str, Any], *, allow_code: bool, recipes: bool = True) -> Plan:
    """Return the plan of a text and of settings by dotted key; ``recipes`` lets it name one.

    Raises PlanError with all problems.
    """
    try:
        tree = guarded.parse_toml(text)
    except ValueError as error:  # tomllib's own error, and what int() says of too many digits
        raise PlanError([printable(str(error))], where) from error
    if not recipes and isinstance(tree.get("fit"), dict) and "recipe" in tree["fit"]:
        raise PlanError(["fit.recipe: the plan of a run has a recipe's values and names none: remove the key"], where)
    for key, value in settings.items():
        set_key(tree, key.split("."), value)
    return check(tree, where=where, lines=key_lines(text), allow_code=allow_code)


def check(
    tree: dict[str, Any], *, where: str = "the plan", lines: Mapping[str, int] | None = None, allow_code: bool = False
) -> Plan:
    """Return a plan from plain values. Raises PlanError with all problems, each with its line."""
    problems: list[Problem] = []
    try:
        guarded.check_values(tree)
    except ValueError as error:
        raise PlanError([str(error)], where) from error
    tree, reasons = with_recipe(tree)
    plan: Plan | None = None
    try:
        plan = Plan.model_validate_json(json.dumps(tree, default=str))
    except ValidationError as error:
        by_key: dict[str, list[str]] = {}
        for e in error.errors():
            loc = [str(p) for p in e["loc"] if p not in UNION_TAGS]
            text = plugins.problem("", {**e, "loc": loc}, known_keys(loc))
            by_key.setdefault(".".join(loc), []).append(text)
        for key, texts in by_key.items():  # a key that takes a number or "auto" fails twice
            others = "".join(f", or {t.partition(': ')[2]}" for t in texts[1:])
            problems.append((key, texts[0] + others))
    known = {key for key, _ in problems}
    problems += [(k, f"{k}: must be a finite number") for k in not_finite(tree) if k not in known]
    fit = tree["fit"] if isinstance(tree.get("fit"), dict) else {}
    made, found = make_plugins(tree, allow_code=allow_code)
    problems += found
    problems += penalty_problems(made, fit)
    problems += seed_problems(tree)
    if not problems:  # the ends of each range are tried in the rest of the plan
        problems += read_ranges(tree, partial(refusals, allow_code=allow_code))[1]
    if problems or plan is None:
        raise PlanError([with_line(k, t, lines or {}) for k, t in dict.fromkeys(problems)], where)
    return plan.with_reasons(reasons).with_plugins(made, allow_code=allow_code)


def seed_problems(tree: Mapping[str, Any]) -> list[Problem]:
    """Return why the number of seeds cannot be left to the verdict, where a plan asks for it."""
    run, evaluate = (tree[k] if isinstance(tree.get(k), dict) else {} for k in ("run", "evaluate"))
    if run.get("seeds") != "auto":
        return []
    problems = []
    if "scratch" not in (evaluate.get("controls") or []):
        text = "auto looks at the gain over scratch, which is not trained here: --seeds auto --controls scratch"
        problems.append(("run.seeds", f"run.seeds: {text}"))
    if run.get("spread") == "arms":
        text = "auto fits seed after seed, so ranks have no seeds to share: --seeds auto --set run.spread=rows"
        problems.append(("run.seeds", f"run.seeds: {text}"))
    return problems


def with_recipe(tree: dict[str, Any]) -> tuple[dict[str, Any], dict[str, str]]:
    """Return a plan's plain values with those of its recipe in place of its name, and the reason by dotted key.

    Raises PlanError for a recipe that cannot be read, and for one beside a range of recipes.
    """
    fit = tree.get("fit")
    name = fit.get("recipe") if isinstance(fit, dict) else None
    if not isinstance(fit, dict) or not isinstance(name, str):
        return tree, {}  # the schema says what is wrong
    tune = tree.get("tune")
    ranges = tune.get("ranges") if isinstance(tune, dict) else None
    if isinstance(ranges, dict) and "fit.recipe" in ranges:
        said = "tune.ranges searches over recipes, and this one would set its keys in every trial"
        raise PlanError([f"fit.recipe: {said}: remove one of the two"])
    bare = {**tree, "fit": {key: value for key, value in fit.items() if key != "recipe"}}
    return overlay(bare, read_recipe(name))


def refusals(tree: dict[str, Any], *, allow_code: bool) -> list[str]:
    """Return why a plan of plain values cannot be used; nothing for a plan that can."""
    try:
        check(tree, allow_code=allow_code)
    except PlanError as error:
        return list(error.problems)
    return []


def ranges_of(plan: Plan) -> Ranges:
    """Return the ranges of a checked plan, by dotted key."""
    own = plan.model_dump(exclude_none=True, exclude_unset=True)  # a range of recipes sets what the plan leaves out
    return read_ranges(own, partial(refusals, allow_code=plan.allow_code))[0]


def refuse_ranges(plan: Plan) -> None:
    """Raise PlanError for a plan that names ranges: one fit has one value of each key."""
    if plan.tune.ranges:
        keys = shorten(list(plan.tune.ranges))
        raise PlanError(
            f"tune.ranges names values to search ({keys}), and a fit takes one of each: search with `regraft tune`, "
            "which writes best.toml for `regraft fit`, or remove [tune]"
        )


def penalty_problems(made: PlugIns, fit: Mapping[str, Any]) -> list[Problem]:
    """Return why penalties do not go with ``[fit]``, or with one another."""
    problems: list[Problem] = []
    for name, penalty in made.regularizers.items():
        key = f"regularizers.{name}"
        for option, needed in penalty.needs_fit().items():
            now = fit.get(option, FitPlan.model_fields[option].default)
            if now not in (needed, "auto"):  # "auto" takes what is needed
                text = f"{key} goes with {needed} alone, not {now}: set fit.{option} to"
                problems.append((key, f'{text} "{needed}", or change {key}'))
    pulls = [name for name, r in made.regularizers.items() if r.pulls_to_source]
    shrinks = [name for name, r in made.regularizers.items() if r.shrinks_to_zero]
    decay = fit.get("weight_decay", "auto")
    shrinks += ["fit.weight_decay"] if isinstance(decay, int | float) and decay > 0 else []
    if pulls and shrinks:
        text = f"pulls weights to the source and {shrinks[0]} pulls the same weights to zero: remove one of them"
        problems.append((f"regularizers.{pulls[0]}", f"regularizers.{pulls[0]} {text}"))
    return problems


def not_finite(tree: Any, key: str = "") -> list[str]:
    """Return the dotted keys of NaN and infinities, which a dataclass of options would let through."""
    if isinstance(tree, dict):
        inside = [(f"{key}.{k}".strip("."), v) for k, v in tree.items()]
    elif isinstance(tree, list | tuple):
        inside = [(key, v) for v in tree]
    else:
        return [key] if isinstance(tree, float) and not math.isfinite(tree) else []
    return [found for k, v in inside for found in not_finite(v, k)]


UNION_TAGS = {
    "int",
    "float",
    "bool",
    "str",
    "literal['auto']",
    "constrained-int",
    "constrained-float",
    "constrained-str",
    "list[float]",
}


def known_keys(loc: list[str]) -> list[str]:
    """Return the keys that a plan has in the table of the last key of ``loc``."""
    section: Any = Plan
    for part in loc[:-1]:
        section = Plan.model_fields[part].annotation if part in Plan.model_fields else None
    return list(keys_of(section))


def with_line(key: str, text: str, lines: Mapping[str, int]) -> str:
    """Return the problem with the line of its key, or of the nearest table around it."""
    parts = key.split(".")
    while parts:
        line = lines.get(".".join(parts))
        if line is not None:
            return f"line {line:<4} {text}"
        parts.pop()
    return text


def key_lines(text: str) -> dict[str, int]:
    """Return lines, from 1, by dotted key. tomllib gives no lines; this scan knows tables and plain keys."""
    lines: dict[str, int] = {}
    table = ""
    for number, line in enumerate(text.splitlines(), 1):
        if match := re.match(r"\s*\[\[?\s*([^\]#]+?)\s*\]", line):
            table = match[1].replace('"', "")
            lines.setdefault(table, number)
        elif match := re.match(r"""\s*([\w."'-]+)\s*=""", line):
            key = re.sub(r"[\"']", "", match[1])
            lines.setdefault(f"{table}.{key}".strip("."), number)
    return lines


def set_key(tree: dict[str, Any], keys: list[str], value: Any) -> None:
    """Set a dotted key in nested tables."""
    for i, key in enumerate(keys[:-1]):
        tree = tree.setdefault(key, {})
        if not isinstance(tree, dict):
            raise PlanError(f"{'.'.join(keys[: i + 1])} is a value, not a table")
    tree[keys[-1]] = value


def parse_setting(text: str) -> tuple[str, Any]:
    """Parse ``section.key=value`` of --set; the value is TOML, or a plain word."""
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        raise UsageError(f'--set takes section.key=value, not "{text}"')
    try:
        return key.strip(), guarded.parse_toml(f"x = {value}")["x"]
    except (ValueError, KeyError):
        return key.strip(), value
