"""Plans as TOML files, with the reason of each automatic choice as a comment."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from .schema import Plan, TunePlan, keys_of

# ---------------------------------------------------------------- writing


def write_plan(plan: Plan, reasons: Mapping[str, str] | None = None) -> str:
    """Return the plan as TOML, every key with a comment: the reason of its choice, else its meaning."""
    reasons = reasons or {}
    out = ["# regraft plan: `regraft fit` on this file runs it"]
    for section, field in Plan.model_fields.items():
        value = getattr(plan, section)
        if section == "regularizers":
            for name, options in value.items():
                out += ["", f"[regularizers.{toml_key(name)}]"]
                out += [f"{toml_key(k)} = {toml_value(v)}" for k, v in options.items()]
            continue
        if section == "tune" and value == TunePlan():
            continue  # only a plan to be searched has it
        out += ["", f"[{section}]"]
        if isinstance(value, dict):
            out += [f"{toml_key(k)} = {toml_value(v)}" for k, v in value.items()]
            continue
        for key, info in keys_of(field.annotation).items():
            item = getattr(value, key)
            comment = reasons.get(f"{section}.{key}", info.description or "")
            line = f"{key} = {toml_value(item)}" if item is not None else f"# {key} ="
            out.append(f"{line:<34}  # {comment}".rstrip(" #"))
    return "\n".join(out) + "\n"


def toml_key(key: str) -> str:
    return key if re.fullmatch(r"[A-Za-z0-9_-]+", key) else toml_value(key)


def toml_value(value: Any) -> str:
    """Return a TOML literal. JSON's strings, numbers, booleans and arrays are TOML's too."""
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{toml_key(k)} = {toml_value(v)}" for k, v in value.items()) + " }"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(toml_value(v) for v in value) + "]"
    if isinstance(value, float):
        return repr(value)
    # DEL is the one character that JSON leaves bare and TOML does not allow
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
