"""Who may import whom: the layers of docs/architecture.md, and what stays light."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

import regraft
from regraft.plugins import FOLDERS

ROOT = Path(regraft.__file__).parent
DOCS = Path(__file__).parents[1] / "docs"
FILES = sorted(ROOT.rglob("*.py"))
# What plug-ins may import beside their folder: the errors and the nouns.
NOUNS = {"errors", "compute.arrays", "data.types", "model.types", "io.progress", "tasks.__init__"}
SHARED = {
    "tasks.__init__": {"plugins"},  # facts of a task by its name, metrics by theirs
    "sources.__init__": {"plugins"},  # load_source finds a plug-in by a reference's prefix
    "sources.run": {
        "plugins",
        "io.guarded",
        "runs.records",
        "runs.model_files",
    },  # a run names the file that builds its model
    "sources.bundled": {"io.hashing", "sources.timm", "sources.transformers"},  # it fetches the file; they load it
    "sources._weights": {"io.hashing"},  # weights are known by their digest
    "sources.random": {"sources.timm"},  # timm's architecture without weights
    "sources._folder": {"io.foreign_code"},  # tokenizers load in one place, which refuses code
    "sources.transformers": {"io.foreign_code"},
    "exports._shared": {"io.foreign_code"},
    "exports.bundle": {"io.guarded"},  # it copies a run's files by name
    "formats._pictures": {"io.atomic", "io.places"},  # where pictures from a table's cells become files
    "checks._rows": {"data.columns"},  # rows are counted and sorted without an object each
    "checks._near": {"data.columns"},
    "checks.near_duplicates": {"data.columns"},
}
BY_NAME = {  # an import that another room has of a plug-in
    ("commands.predict", "formats.image_folder"),  # predict reads rows without labels
    ("commands.predict", "formats.table"),
    ("pipeline.gallery", "checks.label_errors"),  # a fit shows what that one check ranks
}


def module_of(file: Path) -> str:
    return ".".join(file.relative_to(ROOT).with_suffix("").parts)


MODULES = {module_of(file): file for file in FILES}


@cache
def imports(module: str, late: bool = True) -> frozenset[str]:
    """Return regraft's modules that one imports, and others' top names as "!name"; with ``late`` those
    within functions and for types alone as well."""
    package = module.split(".")[:-1]
    tree = ast.parse(MODULES[module].read_text(encoding="utf-8"))
    hidden = {
        id(node)
        for top in ast.walk(tree)
        if isinstance(top, ast.FunctionDef) or (isinstance(top, ast.If) and "TYPE_CHECKING" in ast.dump(top.test))
        for node in ast.walk(top)
    }
    seen: set[str] = set()
    for node in ast.walk(tree):
        if not late and id(node) in hidden:
            continue
        if isinstance(node, ast.Import):
            seen |= {f"!{a.name.partition('.')[0]}" for a in node.names}
        elif isinstance(node, ast.ImportFrom):
            path = [*package[: len(package) - node.level + 1]] if node.level else []
            path += node.module.split(".") if node.module else []
            if node.level == 0 and path[0] != "regraft":
                seen.add(f"!{path[0]}")
                continue
            base = [part for part in path if part != "regraft"]
            seen |= {resolved([*base, a.name], base) for a in node.names}
    return frozenset(seen)


def inside(module: str) -> set[str]:
    """Return regraft's modules that one imports, late or not."""
    return {i for i in imports(module) if not i.startswith("!")}


def resolved(name: list[str], base: list[str]) -> str:
    """Return the module that ``from base import name`` reads: the submodule, or the package itself."""
    for parts in (name, [*name, "__init__"], base, [*base, "__init__"]):
        if ".".join(parts) in MODULES:
            return ".".join(parts)
    raise AssertionError(f"{'.'.join(name)} is no module of regraft")


def layers() -> dict[str, int]:
    """Return each room's line in docs/architecture.md, counted from below."""
    page = (DOCS / "architecture.md").read_text(encoding="utf-8")
    block = re.search(r"```text\n(.*?)```", page, re.DOTALL)
    assert block
    lines = block.group(1).split("\n")[:-1]
    return {room: i for i, line in enumerate(reversed(lines)) for room in line.split()}


def room_of(module: str) -> str:
    return module.partition(".")[0]


def test_every_room_has_its_line():
    assert set(layers()) == {room_of(module) for module in MODULES}


def test_a_file_imports_lower_rooms_alone():
    line = layers()
    assert not [
        f"{module} imports {other}"
        for module in MODULES
        for other in inside(module)
        if room_of(other) != room_of(module) and line[room_of(other)] >= line[room_of(module)]
    ]


def test_no_two_files_import_each_other():
    left = {m: inside(m) - {m} for m in MODULES}
    while ready := [m for m, below in left.items() if not below & set(left)]:
        for module in ready:
            del left[module]
    assert not left, f"files in circles: {sorted(left)}"


PLUGINS = [m for m in MODULES if room_of(m) in FOLDERS]


@pytest.mark.parametrize("module", PLUGINS)
def test_a_plug_in_imports_nouns_alone(module):
    shared = {i for i in inside(module) if room_of(i) == room_of(module) and "._" in i}
    assert inside(module) - shared <= NOUNS | SHARED.get(module, set())


def test_other_rooms_know_contracts_and_no_plug_in():
    known = {
        (module, other)
        for module in MODULES
        for other in inside(module)
        if room_of(module) not in FOLDERS and room_of(other) in FOLDERS and not other.endswith(".__init__")
    }
    assert known == BY_NAME


LIGHT = [
    "__init__",
    "__main__",
    "commands.listing",
    "commands.search.options",
    "data.types",
    "errors",
    "io.guarded",
    "io.progress",
    "model.types",
    "plugins",
    "runs.folder",
    "runs.records",
    "runs.result",
    "runs.summary",
    "serving.endpoint",
    "serving.limits",
    *(m for m in MODULES if room_of(m) in ("cli", "plan")),
]


@pytest.mark.parametrize("module", LIGHT)
def test_what_help_and_summary_need_is_light(module):
    heavy = {"!torch", "!numpy", "!timm", "!transformers", "!sklearn", "!scipy", "!matplotlib"}
    assert not imports(module, late=False) & heavy


@pytest.mark.parametrize("module", [m for m in MODULES if room_of(m) == "report"])
def test_the_report_imports_nothing_that_trains(module):
    assert "!torch" not in imports(module)
    assert {room_of(i) for i in inside(module)} <= {"errors", "io", "runs", "evidence", "report"}
    assert not imports(module, late=False) & {"!matplotlib", "!jinja2", "!numpy"}


@pytest.mark.parametrize("module", [m for m in MODULES if room_of(m) == "watching"])
def test_the_pages_import_nothing_that_trains(module):
    assert "!torch" not in imports(module)
    assert {room_of(i) for i in inside(module) - {"serving.local_pages"}} <= {
        "errors",
        "io",
        "plugins",
        "report",
        "runs",
        "trackers",
        "watching",
    }
    assert not imports(module, late=False) & {"!fastapi", "!uvicorn", "!starlette"}


def test_web_libraries_stay_with_the_servers():
    web = {"!fastapi", "!starlette", "!uvicorn", "!prometheus_client", "!captum"}
    assert {room_of(m) for m in MODULES if imports(m) & web} <= {"serving", "watching"}


@pytest.mark.parametrize("module", [m for m in PLUGINS if room_of(m) not in ("sources", "metrics")])
def test_a_plug_in_of_a_plan_imports_torch_late(module):
    assert "!torch" not in imports(module, late=False)
    if room_of(module) == "freezing" and "def adapted(" not in MODULES[module].read_text():
        assert "!torch" not in imports(module) or module == "freezing.__init__"


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
