"""Figures of the code's layout and wording, for docs/log.md.

    .venv/bin/python tools/house_figures.py [FOLDER] [--list]

FOLDER is a package like src/regraft; another checkout's gives the figures to compare with.
"""

from __future__ import annotations

import ast
import re
import sys
import tokenize
from collections import Counter
from collections.abc import Iterator
from functools import cache
from pathlib import Path

PACKAGE = Path(__file__).parents[1] / "src" / "regraft"


def words(text: str) -> frozenset[str]:
    """Return the words of a text."""
    return frozenset(text.split())


VERBS = words(
    """
    abort accept accumulate adapt add adjust adopt advance aggregate align allocate allow announce answer append
    apply approximate arrange ask assemble assert assign attach average avoid await backpropagate balance base
    batch begin bind blend block bootstrap bound break bring broadcast build cache calibrate call cancel capture
    carry cast center change charge check choose clamp classify clean clear clip clone close collapse collate
    collect combine compare compile complete compose compress compute concatenate configure confirm connect
    consume continue convert convolve copy correct count cover create crop cross cut deal debias decide declare
    decode decompress decrypt deduplicate define delay delete deliver demand denormalise derive describe
    deserialise destroy detach detect determine disable disassemble discard disconnect discover discretise disown
    dispatch display distribute divide download drain draw drop dump duplicate edit emit empty enable encode
    encrypt end enforce ensure enter enumerate erase escape estimate evaluate exchange exclude execute exit expand
    expect explain export expose extend extract feed fetch fill filter find fine-tune finish fit flatten flip
    float flush fold follow forbid force forget fork format forward free freeze fuse gate gather generate get give
    go graft group guard guess halt hand handle hash hide hold host identify ignore import include increase
    increment index infer inherit initialise initialize inject insert inspect install interpolate interrupt invert
    issue iterate join judge jump keep kill label launch lay lead leave let level lift limit linearise link list
    listen load locate lock log look loop lower make map mark mask match materialise maximise measure meet merge
    minimise mirror mix modify monitor mount move multiply mute name narrow normalise normalize note notify number
    observe obtain offer offload omit open optimise optimize order orthogonalise overwrite pack pad pair parse
    partition pass patch pause perform permute permit pick pin place plan play plot plug poll pool post prefer
    prefetch prepare prepend present preserve prevent print probe process produce profile project promise prove
    provide prune publish pull push put quantise quantize query queue quote raise rank re-raise read rebuild
    recall receive recompute reconstruct record recover redirect redo reduce refer refine refresh refuse register
    reinitialise reject release reload remember remove rename render reopen reorder repair repeat replace replay
    report reproduce request require resample reserve reset reshape resize resolve respond rest restart restore
    restrict resume retain retrieve retry return reuse reverse revert rewind rewrite roll rotate round route run
    sample save say scale scan schedule score search seed select send separate serialise serialize serve set settle
    shade shard share shift shorten show shrink shuffle shut sign signal silence simulate skip sleep slice smooth
    snapshot solve sort speak split spread stack stage standardise start state step stop store stream strip
    subtract suggest sum summarise supply support suppress survey suspend swap sweep switch sync synchronise
    synchronize take tally tell terminate test tie tile time tokenise tokenize toggle touch trace track train
    transfer transform translate transpose traverse trim truncate try tune turn unflatten unfold unfreeze unify
    unload unlock unpack unregister unwrap update upgrade upload use validate vary verify view visit vote wait
    wake walk warm warn watch weigh weight widen withhold wrap write yield zero
    """
)
# Some verbs are nouns too: "Mean of the rows", "Answer that a server gave", "Count: rows by class".
NOUN_FOLLOWS = re.compile(r":|\s+(?:of|that|which|per|is|are)\b")
NEVER_A_NOUN = words("return yield raise say tell write keep make let check ensure")
DETERMINER_FOLLOWS = re.compile(r"\s+(?:a|an|the|each|every|all|any|no|its|what|whether|one|two|only)\b")
NOT_A_NOUN = words(
    """
    what whether how who which where when why does do did is are was were can may must should something everything
    nothing it he she they we you i this that these those as of in on at to by for from with without into inside
    outside around under over between before after while and or but if else than then so such not only also here
    there both shows looks refuses holds keeps takes gives makes runs says tells reads searched said told gone
    going
    """
)


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
    sizes: dict[str, tuple[int, int]] = {}
    for module in trees(package):
        room = module.partition("/")[0] if "/" in module else "."
        lines = (package / module).read_text(encoding="utf-8").count("\n")
        files, total = sizes.get(room, (0, 0))
        sizes[room] = files + 1, total + lines
    return sizes


def imports_of(module: str, package: Path) -> set[str]:
    """Return the package's modules that a module imports, including late imports and imports for types."""
    names = {m.removesuffix(".py").replace("/", "."): m for m in trees(package)}
    own = module.removesuffix(".py").split("/")[:-1]
    modules = set()
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
                    modules.add(names[".".join(parts)])
                    break
    return modules - {module}


def circles(package: Path) -> int:
    """Count files that import themselves through other files."""
    below = {m: imports_of(m, package) for m in trees(package)}

    def reached(module: str) -> set[str]:
        seen: set[str] = set()
        new = set(below[module])
        while new:
            seen |= new
            new = {b for m in new for b in below[m]} - seen
        return seen

    return sum(module in reached(module) for module in below)


def most_parameters(package: Path) -> list[tuple[int, str]]:
    """Return functions with more than nine parameters, else the one with the most; the most first."""
    counts = [(len(parameters(f)), f"{module}:{f.name}") for module, f in functions(package)]
    return sorted((c for c in counts if c[0] > 9), reverse=True) or sorted(counts, reverse=True)[:1]


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
    found = []
    for module, tree in trees(package).items():
        if module.startswith("tasks/"):
            continue
        # a value in a table may be another library's word; what looks it up is a key
        tables = (zip(n.keys, n.values, strict=True) for n in ast.walk(tree) if isinstance(n, ast.Dict))
        values = {id(v) for pairs in tables for k, v in pairs if getattr(k, "value", None) not in ("name", "task")}
        constants = (n for n in ast.walk(tree) if isinstance(n, ast.Constant) and id(n) not in values)
        found += [f"{module}:{n.lineno}: {n.value}" for n in constants if n.value in names]
    quoted = re.compile(rf"""(["'`])({"|".join(sorted(names))})\1""")
    for path in (p for p in sorted(package.rglob("*.*")) if p.suffix in (".html", ".js")):
        lines = path.read_text(encoding="utf-8").splitlines()
        places = ((i, m[2]) for i, line in enumerate(lines, 1) for m in quoted.finditer(line))
        found += [f"{path.relative_to(package)}:{i}: {name}" for i, name in places]
    return found


def openings(package: Path) -> tuple[list[str], list[str]]:
    """Return places of docstrings that open well (verb for a function, noun for a class or module), and of others."""
    good, others = [], []
    for module, tree in trees(package).items():
        for node in ast.walk(tree):
            if not isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                continue
            text = ast.get_docstring(node)
            if text is None:
                continue
            named = isinstance(node, ast.Module | ast.ClassDef)
            opens_well = is_noun_phrase(text) if named else is_imperative(text)
            line, name = (1, "module") if isinstance(node, ast.Module) else (node.lineno, node.name)
            place = f"{module}:{line} {name}: {text.splitlines()[0][:80]}"
            (good if opens_well else others).append(place)
    return good, others


def is_imperative(text: str) -> bool:
    """Return whether a text opens with a verb in the imperative: "Return the rows", "Read, check and close"."""
    opening = re.match(r"([A-Z][a-z-]*)(?:, ([a-z-]+))?(?=[\s,.:]|$)", text)
    if opening is None:
        return False
    if any(w is not None and w.lower() not in VERBS for w in opening.groups()):
        return False
    return opening[1].lower() in NEVER_A_NOUN or not NOUN_FOLLOWS.match(text, opening.end())


def is_noun_phrase(text: str) -> bool:
    """Return whether a text opens with a noun, its article or an adjective: "A row", "Rows of a table", "ECE: …"."""
    opening = re.match(r"(`+)[^`]+\1(?!`)(?! (?:is|are|has|have|holds|gives|takes)\b)|[\w-]+", text)
    if opening is None or opening.group().lower() in NOT_A_NOUN:
        return False
    return opening.group().lower() not in VERBS or not DETERMINER_FOLLOWS.match(text, opening.end())


def exempt_from_formatter(package: Path) -> int:
    """Count lines with "# fmt: skip", in the package and in the folders beside it."""
    root = package.parents[1]
    folders = [root / name for name in ("src", "tests", "tools", "benchmarks", "docs")]
    texts = (f.read_text(encoding="utf-8") for d in folders for f in d.rglob("*.py"))
    return sum(line.rstrip().endswith("# fmt: skip") for text in texts for line in text.splitlines())


def statements(package: Path) -> int:
    """Count statements without docstrings and imports: the size of the code, whatever its format."""
    kinds: Counter[bool] = Counter()
    for tree in trees(package).values():
        for node in ast.walk(tree):
            if isinstance(node, ast.stmt):
                kinds[isinstance(node, ast.Import | ast.ImportFrom) or is_text(node)] += 1
    return kinds[False]


def code_lines(package: Path) -> int:
    """Count lines that hold code: no blank lines, no comments, no docstrings."""
    total = 0
    for module, tree in trees(package).items():
        strings = [n for n in ast.walk(tree) if isinstance(n, ast.stmt) and is_text(n)]
        texts = {line for n in strings for line in range(n.lineno, (n.end_lineno or n.lineno) + 1)}
        held = set()
        with (package / module).open("rb") as file:
            for token in tokenize.tokenize(file.readline):
                if token.type not in NO_CODE:
                    held |= set(range(token.start[0], token.end[0] + 1))
        total += len(held - texts)
    return total


def is_text(node: ast.stmt) -> bool:
    """Return whether a statement is a docstring or "..."."""
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)


NO_CODE = (tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT)
NO_CODE += (tokenize.ENDMARKER, tokenize.ENCODING)

READERS = ("runs/", "report/", "watching/", "publish/model_card.py", "evidence/comparison.py", "commands/")
# Functions that return the content of a run's file, and attributes and parameters that hold one.
RUN_FILES = words("read_json read_lines line_of read_manifest finished read_ended state_of read_task")
RUN_RECORDS = words("result results environment history manifest findings gallery suspects front frontier retention")
SCHEMA_FILES = words("runs/records.py runs/result.py runs/result_parts.py runs/side_files.py runs/model_files.py")


def look_ups(package: Path) -> Counter[str]:
    """Count look-ups of a run's records by a constant string key, by module.

    A record is the value of a function that reads a run's file, an attribute or parameter with a record's name, a
    value taken from a record by a subscript, an attribute or a loop, and every name that one of these is bound to.
    Where run files are read and nothing else is, a parameter that is a dict of any values is a record too.
    """
    counts: Counter[str] = Counter()
    for module, tree in trees(package).items():
        if module.startswith(READERS) and module not in SCHEMA_FILES:
            for scope in [tree, *(n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef))]:
                counts[module] += len(look_ups_in(scope, untyped=module.startswith(("runs/", "report/", "watching/"))))
    return +counts


def look_ups_in(scope: ast.AST, untyped: bool) -> set[int]:
    """Return the places in a function or module that look a key up in a run's record; inner functions excluded.

    With ``untyped``, every parameter that is a dict of any values holds a record too.
    """
    own = list(nodes_of(scope))
    named: set[str] = set()
    for arg in parameters(scope) if isinstance(scope, ast.FunctionDef) else []:
        kind = ast.unparse(arg.annotation) if arg.annotation is not None else ""
        if arg.arg in RUN_RECORDS or (untyped and re.search(r"(dict|Mapping)\[str, Any\]", kind)):
            named.add(arg.arg)

    def is_record(node: ast.AST) -> bool:
        if isinstance(node, ast.Name):
            return node.id in named
        if isinstance(node, ast.Call):
            called = node.func
            name = called.attr if isinstance(called, ast.Attribute) else getattr(called, "id", "")
            inner = isinstance(called, ast.Attribute) and name in ("get", "items", "values") and is_record(called.value)
            return name in RUN_FILES or inner
        if isinstance(node, ast.BoolOp):
            return any(map(is_record, node.values))
        if isinstance(node, ast.Attribute):
            return node.attr in RUN_RECORDS or is_record(node.value)
        return isinstance(node, ast.Subscript) and is_record(node.value)

    before = -1
    while len(named) > before:  # names that are bound to records, and names that are bound to those
        before = len(named)
        for node in own:
            pairs = []
            if isinstance(node, ast.Assign):
                pairs = [(target, node.value) for target in node.targets]
            elif isinstance(node, ast.For | ast.comprehension):
                pairs = [(node.target, node.iter)]
            elif isinstance(node, ast.NamedExpr):
                pairs = [(node.target, node.value)]
            for target, value in pairs:
                if isinstance(target, ast.Tuple) and isinstance(value, ast.Tuple):
                    parts = list(zip(target.elts, value.elts, strict=False))
                else:
                    parts = [(target, value)]
                for left, right in parts:
                    if is_record(right):
                        named |= {n.id for n in ast.walk(left) if isinstance(n, ast.Name)}
    return {node.lineno * 1000 + node.col_offset for node in own if is_look_up(node) and is_record(holder_of(node))}


def nodes_of(scope: ast.AST) -> Iterator[ast.AST]:
    """Yield the nodes of a function or module without those of the functions inside it."""
    waiting = list(ast.iter_child_nodes(scope))
    while waiting:
        node = waiting.pop()
        yield node
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            waiting += ast.iter_child_nodes(node)


def is_look_up(node: ast.AST) -> bool:
    """Return whether an expression is ``x["key"]`` that is read, or ``x.get("key")``."""
    if isinstance(node, ast.Subscript):
        return isinstance(node.slice, ast.Constant) and isinstance(node.slice.value, str)
    called = node.func if isinstance(node, ast.Call) else None
    if not isinstance(called, ast.Attribute) or called.attr != "get" or not isinstance(node, ast.Call):
        return False
    return bool(node.args) and isinstance(node.args[0], ast.Constant) and isinstance(node.args[0].value, str)


def holder_of(node: ast.AST) -> ast.expr:
    """Return the expression that a look-up looks into."""
    if isinstance(node, ast.Subscript):
        return node.value
    assert isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)
    return node.func.value


def main() -> int:
    folders = [a for a in sys.argv[1:] if a != "--list"]
    package = Path(folders[0]).resolve() if folders else PACKAGE
    by_room = rooms(package)
    print(f"entries at the top level: {entries(package)}")
    for room, (files, lines) in sorted(by_room.items()):
        print(f"  {room:14}{files:4} files {lines:6} lines")
    print(f"lines of code: {code_lines(package)}; statements: {statements(package)}")
    print(f"lines of text in all: {sum(n for _, n in by_room.values())}")
    print(f"files in circles: {circles(package)}")
    print(f"most parameters: {most_parameters(package)}")
    print(f"functions that take the whole job: {whole_job(package)}")
    keys = look_ups(package)
    print(f"look-ups of run records by string key: {keys.total()}")
    for module, count in sorted(keys.items()):
        print(f"  {module:32}{count:4}")
    by_task = task_names(package)
    print(f"branches on a task's name outside tasks/: {len(by_task)}")
    good, others = openings(package)
    total = len(good) + len(others)
    print(f"docstrings that open with a verb, or with a noun for classes and modules: {len(good)} of {total} ", end="")
    print(f"({len(good) / total:.0%})")
    print(f"# fmt: skip: {exempt_from_formatter(package)}")
    if "--list" in sys.argv:
        print(*by_task, *others, sep="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
