"""A run folder of a stranger, before every command: links, pipes, huge files and values of any kind.

Each command runs in this process. A trap sees what it opens, starts, connects to and imports.
"""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import socket
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import regraft
from regraft.errors import RegraftError, UsageError
from regraft.io import guarded
from regraft.model.types import SourceOptions
from regraft.publish import export as exporting
from regraft.report import plots
from regraft.report.render import report
from regraft.serving.model import open_run
from regraft.sources import load_source
from regraft.watching import tracking
from regraft.watching.following import look
from regraft.watching.pages import report_of
from regraft.watching.resources import ProcessMonitor
from regraft.watching.runs import Runs

pytestmark = pytest.mark.timeout(120)  # a pipe that is waited for would hold the suite up
SECRET = "the private key of somebody else"
TERABYTE = 1 << 40
EVIL = "import pathlib\npathlib.Path({!r}).write_text('executed')\n"


# ---------------------------------------------------------------- the run, and the trap


@pytest.fixture(scope="module")
def made(weights: Path, make_pictures: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run whose every file is there; not to be changed."""
    here = tmp_path_factory.mktemp("hostile")
    data = make_pictures(here / "data", train=8, test=4, noise=170)
    settings = {
        "source.weights": str(weights),
        "source.image_size": 32,
        "run.threads": 1,
        "fit.epochs": 1,
        "fit.batch_size": 12,
        "run.cache": "off",
    }
    return regraft.fit(data, source="timm:test_resnet", out=here / "run", settings=settings).path


@dataclass
class Trap:
    """What a command may not do, by Python's audit events."""

    run: Path | None = None
    sprung: list[str] = field(default_factory=list)

    def see(self, event: str, args: tuple[Any, ...]) -> None:
        if self.run is None:
            return
        if event in ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.fork"):
            self.sprung.append(f"{event} {args[0]}")
        elif event in ("socket.connect", "socket.bind"):
            if isinstance(args[0], socket.socket) and args[0].family != socket.AF_UNIX:
                self.sprung.append(f"{event} {args[1]}")
        elif event == "open" and isinstance(args[0], str) and not (args[2] or 0) & os.O_NOFOLLOW:
            path = Path(args[0])
            if self.run in path.parents and self.follows(path):
                self.sprung.append(f"open {path}")

    def follows(self, path: Path) -> bool:
        assert self.run is not None
        own = [path, *(p for p in path.parents if self.run in p.parents)]
        odd = path.exists() and not path.is_file() and not path.is_dir()
        return odd or any(p.is_symlink() for p in own)


TRAP = Trap()


@pytest.fixture(scope="module", autouse=True)
def audited() -> None:
    sys.addaudithook(TRAP.see)


@pytest.fixture
def run(made: Path, tmp_path: Path) -> Iterator[Path]:
    """A copy by hard links, with Python beside its files; the trap is set on it."""
    run = tmp_path / "runs" / "theirs"
    shutil.copytree(made, run, copy_function=os.link)
    for folder in (run, run / "model"):
        (folder / "evil.py").write_text(EVIL.format(str(tmp_path / "trace")))
    TRAP.run, TRAP.sprung = run, []
    try:
        yield run
    finally:
        TRAP.run = None
    assert TRAP.sprung == []
    assert not (tmp_path / "trace").exists() and "evil" not in sys.modules


def put(path: Path, data: str | bytes) -> None:
    """Write a file anew: the copy shares its files with the run it was made from."""
    path.unlink(missing_ok=True)
    path.write_bytes(data.encode() if isinstance(data, str) else data)


# ---------------------------------------------------------------- the commands


@dataclass
class Commands:
    run: Path
    made: Path
    cli: Callable[..., tuple[int, str, str]]
    tmp: Path

    def line(self, *args: object) -> tuple[int, str]:
        code, out, err = self.cli(*args)
        assert "unexpected" not in err and "Traceback" not in err, (args, err)
        return code, out + err

    def called(self, made: Callable[[], object]) -> tuple[int, str]:
        try:
            return 0, str(made())
        except RegraftError as error:
            return error.exit_code, str(error)

    def list(self) -> tuple[int, str]:
        code, text = self.line("list", self.run.parent)
        assert code == 0
        return (2 if "damaged" in text else 0), text

    def ui(self) -> tuple[int, str]:
        found = Runs(self.run.parent).all()
        text = json.dumps(found)
        return (2 if any(r["state"] == "broken" for r in found) else 0), text

    def page(self) -> tuple[int, str]:
        runs = Runs(self.run.parent)
        return self.called(lambda: report_of(runs.safe(self.run.name)))

    def watch(self) -> tuple[int, str]:
        found = look(self.run, ProcessMonitor())
        refused = found["state"] == "broken" or found.get("notes")
        return (2 if refused else 0), json.dumps(found)

    def report(self) -> tuple[int, str]:
        code, text = self.line("report", self.run)
        return code, text if code else (self.run / "report.html").read_text(encoding="utf-8")

    def compare(self) -> tuple[int, str]:
        return self.line("compare", self.made, self.run)

    def predict(self) -> tuple[int, str]:
        return self.line("predict", self.run, self.made.parent / "data/test/navy/000.png")

    def evaluate(self) -> tuple[int, str]:
        return self.line("evaluate", self.run, self.made.parent / "data")

    def serve(self) -> tuple[int, str]:
        return self.called(lambda: open_run(self.run).notes)

    def source(self) -> tuple[int, str]:
        return self.called(lambda: load_source(str(self.run), SourceOptions(offline=True)).name)

    def frontier(self) -> tuple[int, str]:
        return self.line("frontier", self.run)

    def track(self) -> tuple[int, str]:
        def tracked() -> object:
            return (tracking.params(self.run), [*tracking.epochs(self.run, 0.1)], tracking.end(self.run))

        code, text = self.called(tracked)
        return (2 if "'broken'" in text else code), text

    def export(self) -> tuple[int, str]:
        out = self.tmp / "out"
        shutil.rmtree(out, ignore_errors=True)
        code, text = self.line("export", self.run, "--to", "bundle", "--out", out, "-q")
        texts = [p.read_bytes().decode(errors="replace") for p in out.rglob("*") if p.is_file()]
        return code, "\n".join([text, *texts])


@pytest.fixture
def commands(run, made, cli, tmp_path, monkeypatch) -> Commands:
    monkeypatch.setattr(exporting, "fresh", in_this_process)
    return Commands(run, made, cli, tmp_path)


def in_this_process(folder: Path, code: str, with_regraft: bool, inputs: Any, scratch: Path) -> Any:
    """The scores of an export's folder: a process of its own takes seconds."""
    return np.array([[*p.scores.values()] for p in regraft.load(folder).predict(inputs)])


ALL = ["list", "ui", "watch", "report", "page", "compare", "frontier", "track", "export"]
OF_MODEL = ["predict", "evaluate", "serve", "source", "export"]
READS = {  # file → commands that must refuse one that is no file
    "result.json": [*ALL, "predict", "serve"],
    "plan.toml": ["watch", "report", "page", "track", "evaluate", "export"],
    "environment.json": ["report", "page", "export"],
    "manifest.jsonl": ["report", "page", "compare", "export"],
    "history.jsonl": ["watch", "report", "page", "track"],
    "predictions.csv": ["compare"],
    "check.json": ["report", "page"],
    "log.txt": ["watch", "page"],
    "gallery": ["report", "page"],
    "gallery/gallery.json": ["report", "page"],
    "gallery/suspects.json": ["report", "page"],
    "model": [*OF_MODEL, "compare"],
    "model/config.json": OF_MODEL,
    "model/labels.json": [*OF_MODEL, "compare"],
    "model/preprocess.json": OF_MODEL,
    "model/model.safetensors": OF_MODEL,
    "model/novelty.safetensors": OF_MODEL,
    "model/tokenizer": OF_MODEL,
    "model/tokenizer/bpe.codes": OF_MODEL,
}


def refused(commands: Commands, names: list[str], words: str) -> None:
    """Each command refuses in one line that says why, and shows nothing of what lies elsewhere."""
    for name in names:
        code, text = getattr(commands, name)()
        assert code in (2, 4), (name, code, text)
        assert re.search(words, text), (name, text)
        assert SECRET not in text, name
        if name not in ("ui", "watch", "list", "track"):
            assert len(text.strip().splitlines()) == 1, (name, text)
    written = [p for p in commands.tmp.rglob("*") if p.is_file() and not p.is_symlink()]
    small = [p for p in written if p.stat().st_size < TERABYTE]
    assert [p for p in small if SECRET.encode() in p.read_bytes()] == [commands.tmp / "secret"]


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    path = tmp_path / "secret"
    path.write_text(SECRET)
    return path


@pytest.mark.parametrize("name", READS)
def test_a_link_is_not_followed_by_any_command(commands, run, tmp_path, secret, name):
    place = run / name
    if place.is_dir():
        shutil.move(place, tmp_path / "elsewhere")
        place.symlink_to(tmp_path / "elsewhere")
    else:
        place.unlink(missing_ok=True)
        place.parent.mkdir(exist_ok=True)
        place.symlink_to(secret)
    refused(commands, READS[name], "link")


PIPES = [n for n in READS if n not in ("gallery", "model", "model/tokenizer")]


@pytest.mark.parametrize("name", PIPES)
def test_a_pipe_holds_no_command_up(commands, run, secret, name):
    (run / name).unlink(missing_ok=True)
    (run / name).parent.mkdir(exist_ok=True)
    os.mkfifo(run / name)
    refused(commands, READS[name], "no plain file|no files")


HUGE = [n for n in PIPES if n not in ("log.txt", "model/model.safetensors", "model/novelty.safetensors")]


@pytest.mark.parametrize("name", HUGE)
def test_a_huge_file_is_refused_with_its_size_and_the_limit(commands, run, secret, name):
    put(run / name, "") if (run / name).exists() else (run / "model/tokenizer").mkdir()
    with (run / name).open("wb") as file:
        file.truncate(TERABYTE)
    limit = f"has {TERABYTE:,} bytes, and at most {guarded.limit_of(name):,} are read"
    refused(commands, READS[name], limit)


# ---------------------------------------------------------------- one run and the others


def test_a_list_and_other_pages_survive_any_run(commands, run, made, cli):
    """A run of each kind of harm beside a good one: the good one is listed, and its page is as it was."""
    root = run.parent
    shutil.copytree(made, root / "good", copy_function=os.link)
    result = json.loads((made / "result.json").read_text(encoding="utf-8"))
    e = json.dumps(result["test"][result["primary"]])
    whole = json.dumps(result)
    for name, text in {
        "infinity": whole.replace(e, e.replace('"n": 12', '"n": Infinity')),
        "digits": whole.replace(e, e.replace('"n": 12', f'"n": {"9" * 5000}')),
        "float": whole.replace('"total":', f'"total": {"9" * 400}.0, "was":'),
        "nan": whole.replace('"total":', '"total": NaN, "was":'),
        "deep": '{"status": "finished", "test": ' + "[" * 100_000,
        "deep value": whole.replace('"notes": ', '"notes": ' + "[" * 500 + "]" * 500 + ', "were": '),
        "latin": "\xe9".encode("latin-1").decode("latin-1") * 3,
        "list": "[1, 2]",
        "null": "null",
        "empty": "",
        "status": '{"status": ["finished"]}',
    }.items():
        assert name in ("list", "null", "empty", "status", "latin", "deep") or text != whole
        (root / name).mkdir()
        (root / name / "result.json").write_text(text, encoding="utf-8")
        (root / name / "plan.toml").write_text("")
    os.mkfifo(root / "pipe")
    named = os.fsencode(root) + b"/bytes \xff\xfe"
    Path(os.fsdecode(named)).mkdir()
    shutil.copy(made / "result.json", Path(os.fsdecode(named)))
    found = {r["name"]: r for r in Runs(root).all()}
    json.dumps(found).encode()  # a page can be sent it
    broken = {name for name, r in found.items() if r["state"] == "broken"}
    finished = {name for name, r in found.items() if r["state"] == "finished"}
    assert finished == {"good", "theirs", r"bytes \udcff\udcfe"}
    assert len(broken) == 11 and all("damaged" in found[name]["words"] for name in broken)
    code, text = commands.line("list", root)
    assert code == 0 and sum(" damaged " in line for line in text.splitlines()) == 11
    assert look(root / "good", ProcessMonitor())["state"] == "finished"
    runs = Runs(root)
    for name in broken:
        assert look(runs.path(name), ProcessMonitor())["state"] == "broken"
    with pytest.raises(UsageError, match=r"manifest\.jsonl is missing"):  # a report of the folder named by bytes
        report_of(runs.safe(r"bytes \udcff\udcfe"))


def test_a_folder_named_by_bytes_has_a_report(made, tmp_path):
    named = Path(os.fsdecode(os.fsencode(tmp_path) + b"/bytes \xff"))
    shutil.copytree(made, named, copy_function=os.link)
    assert r"bytes \udcff" in report([named]).read_text(encoding="utf-8")


def test_a_running_run_that_is_hostile_still_has_a_page(run):
    """What a page reads of a run that is not finished: its plan, log and history."""
    put(run / "result.json", '{"status": "failed", "error": "\\u001b[31m"}')
    put(run / "plan.toml", "a." * 3000 + "a = 1")
    bad = {"seed": [1], "epoch": 1, "terms": {}, "rates": {}, "val": {"accuracy": 1}, "best": True}
    good = (run / "history.jsonl").read_text(encoding="utf-8")
    lines = [bad, bad | {"seed": 10**30}, bad | {"seed": 0, "val": {"accuracy": [1]}}, [], None, 7]
    put(run / "history.jsonl", good + "".join(json.dumps(line) + "\n" for line in lines))
    stamps = ("2026-99-99 99:99:99", "0000-00-00 00:00:00", "2026-01-01 00:00:00")
    log = [f"{at} seed {'9' * n}   epoch {'9' * n}/{'9' * n}" for at in stamps for n in (1, 9, 5000)]
    put(run / "log.txt", "\n".join(log))
    found = look(run, ProcessMonitor())
    assert found["state"] == "failed" and len(found["history"]["lines"]) == good.count("\n")
    assert any("6 lines" in n for n in found["notes"]) and any("too deep" in n for n in found["notes"])
    json.dumps(found, allow_nan=False)
    from regraft.watching.following import time_left

    assert time_left(log, {"run": {"seed": [], "seeds": "x"}}, now=0.0)["words"]


# ---------------------------------------------------------------- values of any kind

HOSTILE: list[Any] = [
    None,
    True,
    -1,
    7,
    10**19,
    1e300,
    -1e300,
    0.5,
    "",
    "x",
    "../../secret",
    "<script>alert(1)</script>",
    "a\nb\x1b[31m\x00",
    "\ud800",
    "9" * 5000,
    [],
    {},
    [[]],
    {"a": None},
    [1, "x"],
    "x" * 2_000_000,
]


def places(tree: Any, here: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Every place in a value; of a long list the first three entries."""
    items = tree.items() if isinstance(tree, dict) else enumerate(tree[:3])
    for key, child in items:
        yield (*here, key)
        if isinstance(child, dict | list):
            yield from places(child, (*here, key))


def with_value(tree: Any, place: tuple[Any, ...], value: Any) -> str:
    """The JSON of a tree with another value at a place."""
    copied = json.loads(json.dumps(tree))
    node = copied
    for key in place[:-1]:
        node = node[key]
    node[place[-1]] = value
    return json.dumps(copied)


VALUED = [
    "result.json",
    "environment.json",
    "check.json",
    "gallery/gallery.json",
    "gallery/suspects.json",
    "history.jsonl",
    "manifest.jsonl",
    "model/labels.json",
    "model/config.json",
]


@pytest.mark.parametrize("name", VALUED)
def test_any_value_anywhere_is_shown_or_refused_in_words(commands, run, made, tmp_path, monkeypatch, name):
    """A complete run with one value changed, many times: no command fails in a way of its own."""
    monkeypatch.setattr(plots, "figure", lambda draw, *args, **how: "")  # drawn in the next test
    text = (made / name).read_text(encoding="utf-8")
    first, *rest = text.split("\n", 1) if name.endswith("l") else [text]
    tree = json.loads(first)
    rng = random.Random(name)
    cases = [(place, value) for place in places(tree) for value in HOSTILE]
    some = rng.sample(cases, min(len(cases), 20))
    own = {
        "result.json": ["list", "ui", "watch", "compare", "frontier", "track"],
        "history.jsonl": ["watch", "track"],
        "manifest.jsonl": ["compare"],
        "model/labels.json": ["compare"],
        "model/config.json": ["source"],
    }.get(name, [])
    for place, value in some:
        put(run / name, "\n".join([with_value(tree, place, value), *rest]))
        for command in [*own, *(["report"] if not name.startswith("model") else [])]:
            code, text = getattr(commands, command)()
            assert code in (0, 2, 3, 4), (place, value, command, text)
            if command == "report" and not code:
                assert "<script" not in text, (place, value)


def test_a_report_draws_numbers_and_names_of_any_kind(run, made):
    result = json.loads((made / "result.json").read_text(encoding="utf-8"))
    e = result["test"][result["primary"]]
    e |= {"low": -1e100, "value": 5e-324, "high": 1e100}
    name = "\ud800\x00\x1b$_{<b>"
    result["controls"][name] = {result["primary"]: e}
    result["gain"][name] = e
    put(run / "result.json", json.dumps(result))
    lines = (made / "history.jsonl").read_text(encoding="utf-8").splitlines()
    odd = [json.loads(line) for line in lines]
    odd[-1] |= {"epoch": 10**15, "terms": {name: 1e100, "task": None}}
    put(run / "history.jsonl", "".join(json.dumps(line) + "\n" for line in odd))
    html = report([run]).read_text(encoding="utf-8")
    assert "<b>" not in html.split("<body")[1].replace("<b>", "", 0).split("<svg")[1].split("</svg>")[0]


# ---------------------------------------------------------------- what leaves, and what is written into


def test_a_bundle_holds_what_a_run_has_by_name_and_nothing_else(commands, run, made):
    (run / "model" / "id_rsa").write_text(SECRET)
    (run / "model" / "tokenizer").mkdir()
    (run / "model" / "tokenizer" / "notes.txt").write_text(SECRET)
    (run / "model" / "tokenizer" / "vocab.txt").write_text("a")
    code, text = commands.export()
    assert code == 0, text
    out = commands.tmp / "out"
    own = {p.name for p in (made / "model").iterdir()}
    assert {p.name for p in (out / "model").iterdir()} == own | {"tokenizer"}
    assert [p.name for p in (out / "model" / "tokenizer").iterdir()] == ["vocab.txt"]
    assert SECRET not in text and "evil" not in text
    assert {p.name for p in out.iterdir()} == {"model", "plan.toml", "result.json", "export.json", "README.md"}


def test_an_export_is_not_written_through_a_link(run, tmp_path, cli):
    (tmp_path / "elsewhere").mkdir()
    (run / "exports").symlink_to(tmp_path / "elsewhere")
    code, _, err = cli("export", run, "--to", "bundle")
    assert code == 2 and "exports is a link" in err and not list((tmp_path / "elsewhere").iterdir())


@pytest.mark.parametrize(
    "name",
    [
        "log.txt",
        "history.jsonl",
        ".result.json.part",
        "checkpoints",
        "checkpoints/step-00000003",
        "checkpoints/step-00000003/record.json",
    ],
)
@pytest.mark.parametrize("kind", ["link", "pipe"])
def test_a_run_is_not_resumed_through_a_link_or_a_pipe(run, secret, tmp_path, cli, name, kind):
    put(run / "result.json", '{"status": "interrupted", "error": ""}')
    place = run / name
    place.unlink(missing_ok=True)
    place.parent.mkdir(parents=True, exist_ok=True)
    if kind == "pipe":
        os.mkfifo(place)
    else:
        place.symlink_to(secret)
    code, _, err = cli("fit", "--resume", run)
    assert code == 2 and f"not followed or opened: {name};" in err, err
    assert secret.read_text() == SECRET


def test_a_fit_does_not_start_from_a_run_with_links(run, made, secret, tmp_path, cli):
    (run / "model" / "tokenizer").mkdir()
    (run / "model" / "tokenizer" / "bpe.codes").symlink_to(secret)
    args = ["--source", run, "--out", tmp_path / "new", "--set", "run.threads=1"]
    code, _, err = cli("fit", made.parent / "data", *args)
    assert code == 4 and "model/tokenizer/bpe.codes" in err and not (tmp_path / "new").exists()


def test_a_list_of_runs_does_not_wait_for_the_pipe_in_one(run, cli, tmp_path):
    """`doctor` and a new run at its place ask for its lock."""
    (run / "lock").unlink(missing_ok=True)
    os.mkfifo(run / "lock")
    put(run / "result.json", '{"status": "interrupted"}')
    code, out, _ = cli("doctor", run.parent)
    assert code in (0, 1) and "locked by nobody" in out
    code, _, err = cli("fit", tmp_path, "--source", "timm:test_resnet", "--out", run)
    assert code == 2 and "is never overwritten" in err
