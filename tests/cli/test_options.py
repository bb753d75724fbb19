"""Flags come from the plan's schema, choices from the plug-in folders."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
import typer.main

from regraft import plugins
from regraft.cli import app as cli
from regraft.cli.flags import FLAGS, PLUGIN_FOLDERS, flag, optimizer_names, sentence
from regraft.plan.read import check
from regraft.plan.schema import Plan, keys_of
from regraft.plan.write import write_plan

COMMANDS: dict[str, Any] = typer.main.get_command(cli.app).commands  # type: ignore[attr-defined]


def description(key: str) -> str:
    section, name = key.split(".")
    field: Any = Plan.model_fields[section]
    return str(field.description if section in PLUGIN_FOLDERS else keys_of(field.annotation)[name].description)


@pytest.mark.parametrize("name", FLAGS)
def test_help_and_plan_file_share_the_schemas_text(name):
    option = next(p for p in COMMANDS["fit"].params if p.name == name)
    text = description(FLAGS[name])
    assert option.help.startswith(sentence(text)[:-1]) and option.help.endswith(".")
    if FLAGS[name].split(".")[0] not in PLUGIN_FOLDERS:
        plan = check({"source": {"ref": "x"}, "data": {"path": "y"}})
        assert f"# {text}" in write_plan(plan)


@pytest.mark.parametrize("name", FLAGS)
def test_a_flag_that_is_absent_leaves_the_plan_alone(name):
    assert flag(name).default in (None, False, [])


def test_a_new_plug_in_is_offered_at_once(monkeypatch):
    monkeypatch.setattr(plugins, "names", lambda folder: [f"new_{folder}"])
    flag.cache_clear()
    for name, folder in (("task", "tasks"), ("freezing", "freezing")):
        assert f"new_{folder}" in flag(name).annotation.__metadata__[0].help
    flag.cache_clear()


def test_the_optimizers_are_those_that_torch_has():
    from torch import optim

    known = {n for n, c in vars(optim).items() if isinstance(c, type) and issubclass(c, optim.Optimizer)}
    assert set(optimizer_names()) == known - {"Optimizer"}


BAD = {
    "fit data --source random:timm/x --out r --task clasification": 'did you mean "classification"?',
    "fit data --source random:timm/x --out r --freezing head_onli": 'did you mean "head_only"?',
    "fit data --source random:timm/x --out r --optimizer AdmW": 'did you mean "AdamW"?',
    "export run --to onx": 'did you mean "onnx"?',
    "track run --to tensorbord": 'did you mean "tensorboard"?',
}


def test_a_bad_name_is_refused_before_torch_is_imported():
    code = f"""
import sys
from regraft.cli.app import main
for line in {list(BAD)!r}:
    sys.argv = ["regraft", *line.split()]
    try:
        main()
    except SystemExit as stop:
        print(stop.code, file=sys.stderr)
print([m for m in ("torch", "numpy", "onnx", "mlflow") if m in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
    for hint in BAD.values():
        assert hint in done.stderr
    assert [line for line in done.stderr.splitlines() if line.isdecimal()] == ["2"] * len(BAD)


@pytest.mark.parametrize("name", COMMANDS)
def test_help_is_shown_whole(name):
    """Brackets in it would be markup, and vanish."""
    from rich.text import Text

    for text in (COMMANDS[name].help, *(getattr(p, "help", None) for p in COMMANDS[name].params)):
        assert Text.from_markup(text or "").plain == (text or "")
