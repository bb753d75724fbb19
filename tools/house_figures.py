"""Figures of the code's layout and wording, for docs/log.md.

    .venv/bin/python tools/house_figures.py [FOLDER] [--list]

FOLDER is a package like src/regraft; another checkout's gives the figures to compare with.
"""

from __future__ import annotations

import ast
import re
import sys
from collections import Counter
from collections.abc import Iterator
from functools import cache
from pathlib import Path

PACKAGE = Path(__file__).parents[1] / "src" / "regraft"
# A first word with one of these endings is no imperative, unless it is listed.
NOT_A_VERB = re.compile(r"(ed|ing|tion|ment|ness|ity|s)$")
VERBS_ALL_THE_SAME = """
pass process guess express address miss cross dismiss bring feed need embed proceed shed seed
discuss press assess compress access focus bless mention position partition condition question
transition function section comment implement increment decrement augment string ring sing ping
spread bias canvas
"""
NOT_A_START = """
a an the what whether how who which where when why that this these those one two each every all any
some no none its his their is are was were by of in on at to for from with without as and or but if
else than then so such not only also both more most many much other another same plain rows names
inside outside here there it he she they we you i may
"""


@cache
def trees(package: Path) -> dict[str, ast.Module]:
    """Return each module's syntax tree by its path below the package."""
    files = sorted(package.rglob("*.py"))
    return {str(f.relative_to(package)): ast.parse(f.read_text(encoding="utf-8")) for f in files}


def functions(package: Path) -> Iterator[tuple[str, ast.FunctionDef | ast.AsyncFunctionDef]]:
    """Yield (module, function) of every function and method."""
    for module, tree in trees(package).items():
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                yield module, node


def parameters(function: ast.FunctionDef | ast.AsyncFunctionDef) -> list[ast.arg]:
    """Return the parameters but self and cls."""
    args = function.args
    every = [*args.posonlyargs, *args.args, *args.kwonlyargs]
    return [a for a in every if a.arg not in ("self", "cls")]


def entries(package: Path) -> int:
    """Count files and folders at the package's top level."""
    return sum(1 for p in package.iterdir() if p.name != "__pycache__")


def rooms(package: Path) -> dict[str, tuple[int, int]]:
    """Return (files, lines) of each folder, and of the top level's files as "."."""
    found: dict[str, tuple[int, int]] = {}
    for module in trees(package):
        room = module.partition("/")[0] if "/" in module else "."
        lines = (package / module).read_text(encoding="utf-8").count("\n")
        files, total = found.get(room, (0, 0))
        found[room] = files + 1, total + lines
    return found


def imported(module: str, package: Path) -> set[str]:
    """Return the package's modules that one imports, late and for types included."""
    names = {m.removesuffix(".py").replace("/", "."): m for m in trees(package)}
    own = module.removesuffix(".py").split("/")[:-1]
    found = set()
    for node in ast.walk(trees(package)[module]):
        if not isinstance(node, ast.ImportFrom):
            continue
        if node.level == 0 and (node.module or "").partition(".")[0] != package.name:
            continue
        base = own[: len(own) - node.level + 1] if node.level else []
        base += [p for p in (node.module or "").split(".") if p and p != package.name]
        for alias in node.names:
            for parts in ([*base, alias.name], [*base, alias.name, "__init__"], base, [*base, "__init__"]):
                if ".".join(parts) in names:
                    found.add(names[".".join(parts)])
                    break
    return found - {module}


def circles(package: Path) -> int:
    """Count files that reach themselves by imports."""
    below = {m: imported(m, package) for m in trees(package)}

    def reached(module: str) -> set[str]:
        seen: set[str] = set()
        new = set(below[module])
        while new:
            seen |= new
            new = {b for m in new for b in below[m]} - seen
        return seen

    return sum(module in reached(module) for module in below)


def most_parameters(package: Path) -> list[tuple[int, str]]:
    """Return functions with more than nine parameters, most first."""
    found = [(len(parameters(f)), f"{module}:{f.name}") for module, f in functions(package)]
    return sorted((f for f in found if f[0] > 9), reverse=True) or sorted(found, reverse=True)[:1]


def whole_job(package: Path) -> int:
    """Count functions that take the whole prepared run: an argument of type Prepared or Job."""
    kinds = re.compile(r"\b(Prepared|Job)\b")
    return sum(
        any(a.annotation is not None and kinds.search(ast.unparse(a.annotation)) for a in parameters(f))
        for _, f in functions(package)
    )


def task_names(package: Path) -> list[str]:
    """Return places outside tasks/ that hold a task's name as a whole string, to compare with or to look up."""
    names = {p.stem for p in (package / "tasks").glob("*.py") if not p.stem.startswith("_")}
    found = [
        f"{module}:{node.lineno}: {node.value}"
        for module, tree in trees(package).items()
        if not module.startswith("tasks/")
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and node.value in names
    ]
    quoted = re.compile(rf"""(["'`])({"|".join(sorted(names))})\1""")
    for path in (p for p in sorted(package.rglob("*.*")) if p.suffix in (".html", ".js")):
        lines = path.read_text(encoding="utf-8").splitlines()
        places = ((i, m[2]) for i, line in enumerate(lines, 1) for m in quoted.finditer(line))
        found += [f"{path.relative_to(package)}:{i}: {name}" for i, name in places]
    return found


def docstrings(package: Path) -> tuple[int, int, list[str]]:
    """Return (functions' docstrings that start with an imperative verb, all, places of the others)."""
    good, others = 0, []
    total = 0
    for module, function in functions(package):
        text = ast.get_docstring(function)
        if text is None:
            continue
        total += 1
        if is_imperative(text):
            good += 1
        else:
            others.append(f"{module}:{function.lineno} {function.name}: {text.splitlines()[0][:80]}")
    return good, total, others


def is_imperative(text: str) -> bool:
    """Return whether a text's first word reads as a verb in the imperative."""
    word = re.match(r"[A-Za-z]+", text)
    if word is None or not word.group()[0].isupper():
        return False
    first = word.group().lower()
    return first not in NOT_A_START.split() and (first in VERBS_ALL_THE_SAME.split() or not NOT_A_VERB.search(first))


def exempt_from_formatter(package: Path) -> int:
    """Count lines that the formatter must leave alone, in the package and beside it."""
    root = package.parents[1]
    folders = [root / name for name in ("src", "tests", "tools", "benchmarks", "docs")]
    texts = (f.read_text(encoding="utf-8") for d in folders for f in d.rglob("*.py"))
    return sum(line.rstrip().endswith("# fmt: skip") for text in texts for line in text.splitlines())


def statements(package: Path) -> int:
    """Count statements, docstrings and imports left out: the size of the code whatever its format."""
    kinds: Counter[bool] = Counter()
    for tree in trees(package).values():
        for node in ast.walk(tree):
            if isinstance(node, ast.stmt):
                kinds[isinstance(node, ast.Import | ast.ImportFrom) or is_text(node)] += 1
    return kinds[False]


def is_text(node: ast.stmt) -> bool:
    """Return whether a statement is a docstring or "..."."""
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)


def main() -> int:
    folders = [a for a in sys.argv[1:] if a != "--list"]
    package = Path(folders[0]).resolve() if folders else PACKAGE
    by_room = rooms(package)
    print(f"entries at the top level: {entries(package)}")
    for room, (files, lines) in sorted(by_room.items()):
        print(f"  {room:14}{files:4} files {lines:6} lines")
    print(f"lines in all: {sum(n for _, n in by_room.values())}; statements: {statements(package)}")
    print(f"files in circles: {circles(package)}")
    print(f"most parameters: {most_parameters(package)}")
    print(f"functions that take the whole job: {whole_job(package)}")
    by_task = task_names(package)
    print(f"branches on a task's name outside tasks/: {len(by_task)}")
    good, total, others = docstrings(package)
    print(f"docstrings that start with an imperative verb: {good} of {total} ({good / total:.0%})")
    print(f"# fmt: skip: {exempt_from_formatter(package)}")
    if "--list" in sys.argv:
        print(*by_task, *others, sep="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
