"""Write docs/reference.md (every key of a plan and every plug-in) and docs/command-line.md, from the code itself."""

import re
from pathlib import Path

import typer.main

from regraft import errors, plugins
from regraft.cli.app import app
from regraft.commands.listing import plugin
from regraft.plan.schema import Plan, keys_of

OUT = Path(__file__).with_name("reference.md")
COMMANDS = Path(__file__).with_name("command-line.md")


def main() -> None:
    reference()
    command_line()


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
