"""Write the reference pages from the code: reference.md, command-line.md, result.md and result.schema.json."""

import json
import re
from pathlib import Path
from typing import Any

import typer.main

from regraft import errors, plugins
from regraft.cli.app import app
from regraft.commands.listing import plugin
from regraft.plan.schema import Plan, keys_of
from regraft.runs.result import Result

OUT = Path(__file__).with_name("reference.md")
COMMANDS = Path(__file__).with_name("command-line.md")
RESULT = Path(__file__).with_name("result.md")
RESULT_SCHEMA = Path(__file__).with_name("result.schema.json")


def main() -> None:
    reference()
    command_line()
    result()


def result() -> None:
    """Write the schema of result.json, and a table of its keys."""
    schema = Result.model_json_schema()
    RESULT_SCHEMA.write_text(json.dumps(schema, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    lines = [
        "# result.json",
        "",
        "Made by `make docs` from the code; do not edit.",
        "",
        "A finished run leaves `result.json`. Its JSON schema is [result.schema.json](result.schema.json); in Python,",
        '`regraft.Run.read("runs/NAME").result` is the same, key by key (`run.result.fit.epochs`; a blank in a key is',
        "an underscore). An undefined number is `null`. The file of an older run may lack keys that have a default.",
        "",
        *table_of(schema),
    ]
    for name, part in schema["$defs"].items():
        about = part["description"]
        lines += [f"## {name}", "", about, "", *table_of(part)]
    RESULT.write_text("\n".join(lines), encoding="utf-8")
    print(f"{RESULT} and {RESULT_SCHEMA} written")


def table_of(schema: dict[str, Any]) -> list[str]:
    """Return the table of an object's keys: type, default, meaning; nothing for an object of any keys."""
    if "properties" not in schema:
        return [f"Values: {type_of(schema['additionalProperties'])}.", ""]
    rows = []
    for key, value in schema["properties"].items():
        missing = "" if "default" not in value else f"`{json.dumps(value['default'])}`"
        default = "required" if key in schema.get("required", ()) else missing
        text = value["description"]
        rows.append(f"| `{key}` | {type_of(value)} | {default} | {text} |")
    return ["| key | type | default | meaning |", "|---|---|---|---|", *rows, ""]


def type_of(schema: dict[str, Any]) -> str:
    """Return a JSON schema's type in words, with links to the parts of this page."""
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        return f"[{name}](#{name.lower()})"
    if "const" in schema or "enum" in schema:
        return " or ".join(f"`{json.dumps(v)}`" for v in schema.get("enum", [schema.get("const")]))
    for key in ("anyOf", "oneOf"):
        if key in schema:
            return " or ".join(type_of(s) for s in schema[key])
    if schema["type"] == "array":
        return f"list of {type_of(schema['items'])}"
    if schema.get("maxProperties") == 0:
        return "`{}`"
    if schema["type"] == "object":
        return f"object of {type_of(schema['additionalProperties'])}"
    return str(schema["type"])


def command_line() -> None:
    lines = [
        "# Command line",
        "",
        "Made by `make docs` from the code; do not edit.",
        "",
        "`regraft --help` lists the commands; each takes `--help`, and `--debug` for the traceback of an error.",
        "",
    ]
    group = typer.main.get_command(app)
    for name, command in group.commands.items():
        taken = [p.metavar or p.name.upper() for p in command.params if p.param_type_name == "argument"]
        lines += [
            f"## regraft {name}",
            "",
            " ".join((command.help or "").split()),
            "",
            f"`regraft {name} {' '.join(taken)} [OPTIONS]`".replace("  ", " "),
            "",
            "| option | default | meaning |",
            "|---|---|---|",
        ]
        for p in command.params:
            if p.name == "help":
                continue
            shown = p.metavar or p.name.upper() if p.param_type_name == "argument" else ", ".join(p.opts)
            none = p.default is None or p.default is False or p.default == [] or p.required or callable(p.default)
            planned = getattr(p, "show_default", None)  # a flag of the plan is absent by default
            shown_default = planned if isinstance(planned, str) else "" if none else str(p.default)
            default = "required" if p.required else f"`{shown_default}`" if shown_default else ""
            lines.append(f"| `{shown}` | {default} | {p.help or ''} |".replace("`DATA|PLAN`", "`DATA` or `PLAN`"))
        lines.append("")
    lines += ["## Exit codes", "", "| code | means |", "|---|---|", "| 0 | fine |"]
    for name, code, about in re.findall(r"(\w+Error) +(\d+) *(.*)", errors.__doc__ or ""):
        lines.append(
            f"| {code} | `{name}` {about or 'any other fault, or a finding of `verify-resume` and `doctor`'} |"
        )
    lines += ["| 130 | interrupted, with a checkpoint saved |", "| 143 | terminated, likewise |", ""]
    COMMANDS.write_text("\n".join(lines), encoding="utf-8")
    print(f"{COMMANDS} written")


def reference() -> None:
    lines = ["# Reference", "", "Made by `make docs` from the code; do not edit.", "", "## The plan", ""]
    for section, field in Plan.model_fields.items():
        model = field.annotation
        if not keys_of(model):
            continue
        lines += [f"### [{section}]", "", "| key | default | meaning |", "|---|---|---|"]
        rows = [
            (k, "required" if f.is_required() else repr(f.default), f.description or "")
            for k, f in keys_of(model).items()
        ]
        lines += [f"| `{k}` | `{d}` | {text} |" for k, d, text in rows] + [""]
    lines += ["`[task]`, `[freezing]` and `[regularizers.NAME]` take a plug-in's options:", ""]
    for folder in plugins.FOLDERS:
        lines += [f"## {folder}", "", "| name | about | options |", "|---|---|---|"]
        for found in (plugin(folder, n) for n in plugins.names(folder)):
            options = ", ".join(f"`{k} = {v}`" for k, v in found["options"].items())
            lines.append(f"| `{found['name']}` | {found['about']} | {options} |")
        lines.append("")
    OUT.write_text("\n".join(lines), encoding="utf-8")
    print(f"{OUT} written")


if __name__ == "__main__":
    main()
