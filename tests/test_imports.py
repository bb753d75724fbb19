"""Who may import whom (docs/design: types, errors ← plug-ins ← machinery ← run ← api, cli)."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import regraft
from regraft.plugins import FOLDERS

ROOT = Path(regraft.__file__).parent
# What is allowed beyond the rule, each with its reason.
SHARED = {
    "sources/__init__": {"plugins"},  # load_source finds a plug-in by a reference's prefix
    "sources/run": {
        "plugins",
        "guarded",
        "records",
    },  # a run names the source file that builds its architecture
    "exports/bundle": {"guarded"},  # it copies a run's files by name
    "sources/bundled": {"sources"},  # it fetches the file and lets timm or transformers load it
    "sources/random": {"sources"},  # timm's architecture without weights
    "sources/_folder": {"foreign_code"},  # tokenizers load in one place, which refuses code
    "sources/transformers": {"foreign_code"},
    "exports/_shared": {"foreign_code"},
    "formats/image_folder": {"pictures"},  # which suffixes are pictures
    "formats/table": {"pictures"},
    "checks/_rows": {"columns"},  # rows are counted and sorted without an object each
    "checks/_near": {"columns"},
    "checks/near_duplicates": {"columns"},
    "formats/_unpacked": {"places"},  # where pictures from a table's cells become files
}
BY_NAME = {
    ("prepare", "sources"), ("api", "sources"), ("checking", "sources"),  # load_source, the folder's one entry
    ("__init__", "sources"), ("types", "sources"),  # the same, and Source.from_module, late
    ("exporting", "sources"),  # load_source again
    ("inputs", "formats"),  # predict reads tables without labels
    ("suspects", "checks"),  # a fit shows what that one check ranks
}  # fmt: skip


def imports(file: Path, late: bool = True) -> set[str]:
    """Dotted names below regraft that a file imports, and others' top names as "!name"."""
    package = ("regraft", *file.relative_to(ROOT).parent.parts)
    tree = ast.parse(file.read_text(encoding="utf-8"))
    hidden = {
        id(n) for top in ast.walk(tree)
        if isinstance(top, ast.FunctionDef) or (isinstance(top, ast.If) and "TYPE_CHECKING" in ast.dump(top.test))
        for n in ast.walk(top)
    }  # fmt: skip
    found: set[str] = set()
    for node in ast.walk(tree):
        if not late and id(node) in hidden:
            continue
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [a.name for a in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(package[: len(package) - node.level + 1]) if node.level else ""
            path = ".".join(filter(None, (base, node.module)))
            names = [path]
            if path in ("regraft", *(f"regraft.{f}" for f in FOLDERS)):
                names = [f"{path}.{a.name}" for a in node.names]
        for name in names:
            inside = name.startswith("regraft.")
            found.add(name.removeprefix("regraft.") if inside else f"!{name.partition('.')[0]}")
    return found


def name_of(file: Path) -> str:
    return str(file.relative_to(ROOT).with_suffix(""))


PLUGINS = [f for folder in FOLDERS for f in sorted((ROOT / folder).glob("*.py"))]
MACHINERY = sorted(ROOT.glob("*.py"))


@pytest.mark.parametrize("file", PLUGINS, ids=name_of)
def test_a_plug_in_imports_types_errors_and_progress_alone(file):
    folder = file.parent.name
    allowed = {"types", "errors", "progress"} | SHARED.get(name_of(file), set())
    for name in imports(file):
        if name.startswith("!"):
            continue
        top, _, rest = name.partition(".")
        private = top == folder and rest.startswith("_")
        assert private or top in allowed, f"{name_of(file)} imports {name}"


@pytest.mark.parametrize("file", MACHINERY, ids=name_of)
def test_the_machinery_names_no_plug_in(file):
    for name in imports(file):
        top = name.partition(".")[0]
        assert top not in FOLDERS or (file.stem, top) in BY_NAME, f"{file.stem} imports {name}"


@pytest.mark.parametrize("file", MACHINERY, ids=name_of)
def test_nothing_below_imports_run_api_or_cli(file):
    found = {n.partition(".")[0] for n in imports(file)}
    above = {
        "run": {"api", "cli", "demo", "rechoose"}, "cli": {"__main__"},
        "api": {"cli", "inputs", "exporting", "__init__"},
        "checking": {"api", "cli"},
        "prepare": {"run", "arms", "scratch", "reuse", "results", "resuming", "estimate", "rechoose", "curve",
                        "range_test", "checking", "suspects"},
    }  # fmt: skip
    for module, users in above.items():
        assert module not in found or file.stem in users, f"{file.stem} imports {module}"


LIGHT = ["__init__", "__main__", "cli", "errors", "types", "plan", "plugins", "runfiles", "summary",
         "listing", "progress", "guarded", "records"]  # fmt: skip


@pytest.mark.parametrize("name", LIGHT)
def test_what_help_and_summary_need_is_light(name):
    heavy = {"!torch", "!numpy", "!timm", "!transformers", "!sklearn", "!scipy", "!matplotlib"}
    assert not imports(ROOT / f"{name}.py", late=False) & heavy


@pytest.mark.parametrize("file", sorted((ROOT / "report").rglob("*.py")), ids=name_of)
def test_the_report_imports_no_torch_and_nothing_that_trains(file):
    found = {n.partition(".")[0] for n in imports(file)}
    assert "!torch" not in found
    allowed = {
        "errors",
        "types",
        "runfiles",
        "summary",
        "intervals",
        "comparison",
        "confusion",
        "report",
        "guarded",
        "records",
    }
    assert {n for n in found if not n.startswith("!")} <= allowed
    assert not imports(file, late=False) & {"!matplotlib", "!jinja2", "!numpy"}


@pytest.mark.parametrize("file", sorted((ROOT / "watching").glob("*.py")), ids=name_of)
def test_the_pages_import_no_torch_and_nothing_that_trains(file):
    found = imports(file)
    assert "!torch" not in found
    allowed = {
        "errors",
        "locks",
        "runfiles",
        "summary",
        "webpage",
        "watching",
        "report",
        "guarded",
        "records",
        "workfolders",
        "commands",
    }
    assert {n.partition(".")[0] for n in found if not n.startswith("!")} <= allowed
    assert not imports(file, late=False) & {"!fastapi", "!uvicorn", "!starlette"}


@pytest.mark.parametrize("file", sorted(ROOT.rglob("*.py")), ids=name_of)
def test_only_the_command_line_and_itself_import_the_server(file):
    top = file.relative_to(ROOT).parts[0]
    found = {n.partition(".")[0] for n in imports(file)}
    assert "serving" not in found or top in ("cli.py", "serving")
    assert top == "serving" or not found & {"!prometheus_client", "!captum"}
    web = {"!fastapi", "!starlette", "!uvicorn"}
    assert top in ("serving", "watching", "webpage.py") or not found & web


@pytest.mark.parametrize("file", PLUGINS, ids=name_of)
def test_a_plug_in_of_a_plan_imports_torch_late(file):
    if file.parent.name in (
        "tasks",
        "freezing",
        "regularizers",
        "formats",
        "checks",
        "exports",
        "trackers",
    ):
        assert "!torch" not in imports(file, late=False)
    if file.parent.name == "freezing" and "def adapted(" not in file.read_text():
        assert "!torch" not in imports(file)


def test_every_strategy_of_freezing_answers_without_torch():
    code = """
import sys
from regraft.plugins import names, options_class
for name in names("freezing"):
    assert options_class("freezing", name)()(["stem", "a", "head"], 1), name
print([m for m in ("torch", "peft", "timm") if m in sys.modules])
"""
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert said.stdout.strip() == "[]", said.stdout
