"""Write docs/reference.md: every key of a plan and every plug-in, from the code itself."""

from pathlib import Path

from regraft import plugins
from regraft.listing import plugin
from regraft.plan import Plan, described

OUT = Path(__file__).with_name("reference.md")


def main() -> None:
    lines = ["# Reference", "", "Made by `make docs` from the code; do not edit.", "", "## The plan", ""]
    for section, field in Plan.model_fields.items():
        model = field.annotation
        if not isinstance(model, type) or not (
            hasattr(model, "model_fields") or hasattr(model, "__dataclass_fields__")
        ):
            continue
        lines += [f"### [{section}]", "", "| key | default | meaning |", "|---|---|---|"]
        if hasattr(model, "model_fields"):
            rows = [
                (k, "required" if f.is_required() else repr(f.default), f.description or "")
                for k, f in model.model_fields.items()
            ]
        else:
            rows = [(k, repr(v), text) for k, v, text in described(model(), model)]
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
