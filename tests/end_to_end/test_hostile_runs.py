"""A run folder of a stranger, before every command: links, pipes, huge files and values of any kind.

Each command runs in this process. A trap sees what it opens, starts, connects to and imports.
"""

from __future__ import annotations

import json
import os
import random
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
from regraft import exporting, guarded, tracking
from regraft.errors import RegraftError, UsageError
from regraft.report import plots
from regraft.report.render import report
from regraft.serving.model import open_run
from regraft.sources import load_source
from regraft.types import DataOptions, SourceOptions
from regraft.watching.following import look
from regraft.watching.pages import report_of
from regraft.watching.resources import Meter
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
    settings = {"source.weights": str(weights), "source.image_size": 32, "run.threads": 1, "fit.epochs": 1,
                "fit.batch_size": 12, "run.cache": "off"}  # fmt: skip
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
        assert "unexpected" not in err and "Traceback" not in err, err
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
        found = look(self.run, Meter())
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
            return tracking.params(self.run), [*tracking.epochs(self.run, 0.1)], tracking.end(self.run)

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
    "plan.toml": ["watch", "report", "page", "track", "evaluate", "export", "serve"],
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
        assert words in text, (name, text)
        assert SECRET not in text, name
        if name not in ("ui", "watch", "list", "track"):
            assert len(text.strip().splitlines()) == 1, (name, text)
    written = [p for p in commands.tmp.rglob("*") if p.is_file() and not p.is_symlink()]
    assert [p for p in written if SECRET.encode() in p.read_bytes()] == [commands.tmp / "secret"]


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
    refused(commands, READS[name], "no plain file" if name == "log.txt" else "no ")


HUGE = [n for n in PIPES if n not in ("log.txt", "model/model.safetensors", "model/novelty.safetensors")]  # fmt: skip


@pytest.mark.parametrize("name", HUGE)
def test_a_huge_file_is_refused_with_its_size_and_the_limit(commands, run, secret, name):
    put(run / name, "") if (run / name).exists() else (run / "model/tokenizer").mkdir()
    with (run / name).open("wb") as file:
        file.truncate(TERABYTE)
    limit = f"has {TERABYTE:,} bytes, and at most {guarded.limit_of(name):,} are read"
    refused(commands, READS[name], limit)
