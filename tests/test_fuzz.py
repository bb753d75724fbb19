"""The fuzzer sees what it looks for: a planted fault of each kind is a crash, and inputs repeat."""

from __future__ import annotations

import random
import subprocess
import sys
from pathlib import Path

import pytest

import fuzz
from fuzz_damage import altered, as_csv, flipped
from regraft.errors import DataError

TOOLS = Path(__file__).parents[1] / "tools"


def endless():
    while True:
        try:
            while True:
                pass
        except Exception:
            pass


def refused():
    raise DataError("no")


def broken():
    raise KeyError("x")


@pytest.mark.parametrize(
    ("what", "outcome", "words"),
    [
        (lambda: 1, "result", ""),
        (refused, "refused", "DataError"),
        (broken, "crash", "KeyError"),
        (endless, "crash", "Hang"),
    ],
)
def test_a_result_and_a_refusal_are_fine_and_the_rest_is_a_crash(tmp_path, monkeypatch, what, outcome, words):
    import signal

    monkeypatch.setattr(fuzz, "INPUT_TIMEOUT_S", 0.3)
    before = signal.signal(signal.SIGALRM, fuzz.alarm)
    try:
        reader = fuzz.Reader(lambda folder, rng: None, lambda folder: what())
        found, said, text = fuzz.one(reader, tmp_path)
    finally:
        signal.signal(signal.SIGALRM, before)
    assert found == outcome and said.startswith(words) and bool(text) == (outcome == "crash")


def test_the_same_seed_gives_the_same_inputs_and_another_others():
    tree = {"a": [1, 2, {"b": "c"}], "d": 0.5}

    def inputs(seed):
        rng = random.Random(seed)
        return [
            (flipped(b"some bytes", rng, [b"other"]), repr(altered(tree, rng)), as_csv([["a", "b"]], rng))
            for _ in range(30)
        ]

    assert inputs("1 x 0") == inputs("1 x 0") != inputs("1 x 1")
    assert len({row[0] for row in inputs("1 x 0")}) > 20


REACHING = [
    "open('outside.txt', 'w')",
    "open(out / 'x' / '..' / '..' / 'outside.txt', 'ab')",
    "(out / 'link').write_text('x')",
    "__import__('os').system('true')",
    "__import__('subprocess').run(['true'])",
    "__import__('socket').getaddrinfo('example.org', 80)",
]


def test_what_reaches_out_of_the_work_folder_is_stopped(tmp_path):
    """One process tries all of them: the guard goes on after what it has stopped."""
    (tmp_path / "work").mkdir()
    (tmp_path / "beside.txt").touch()
    (tmp_path / "work/link").symlink_to(tmp_path / "beside.txt")
    lines = [
        "import sys; from pathlib import Path",
        f"sys.path.insert(0, {str(TOOLS)!r})",
        f"import fuzz; out = Path({str(tmp_path / 'work')!r}); fuzz.guard(out)",
        "open(out / 'inside.txt', 'w').close(); open('/etc/hostname').close()",
    ]
    for number, code in enumerate(REACHING):
        lines += [f"try: {code}", f"except fuzz.Escape: print('stopped', {number})"]
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", "\n".join(lines)], cwd=tmp_path, capture_output=True, text=True
    )
    expected = [f"stopped {number}" for number in range(len(REACHING))]
    assert done.stdout.splitlines() == expected, done.stderr
    assert (tmp_path / "work/inside.txt").exists() and not (tmp_path / "outside.txt").exists()
    assert not (tmp_path / "beside.txt").read_text()


PLANTED = """
import random, shutil, sys, warnings
from pathlib import Path
sys.path.insert(0, {tools!r})
warnings.simplefilter("ignore")
import signal, torch, transformers
torch.set_num_threads(1)
import fuzz, fuzz_foreign, fuzz_readers
from regraft.io import foreign_code
from regraft.publish import model_card
from regraft.data import preprocessing as preprocess
from regraft.sources import transformers as source

work = Path({work!r})
fuzz_readers.make_run(work)
fuzz_readers.make_folders(work)
readers = fuzz_foreign.foreign_readers(work)
signal.signal(signal.SIGALRM, fuzz.alarm)
import matplotlib.font_manager
fuzz.guard(work)

def outcome(name, prepare):
    folder = fuzz.emptied(work / "input")
    prepare(folder)
    found, what, text = fuzz.one(readers[name], folder)
    print(name, "|", found, "|", text.strip().splitlines()[-1] if text else "")

def a_run(folder):
    for name in ("good", "bad"):
        fuzz_readers.put(folder / "runs" / name, fuzz_readers.RUN, set(), random.Random(0))
        (folder / "runs" / name / "lock").unlink()
    tree = fuzz_foreign.json.loads(fuzz_readers.RUN["environment.json"])
    (folder / "runs/bad/environment.json").write_text(
        fuzz_foreign.json.dumps(tree | {{"regraft": fuzz_foreign.MARKED}}))

def a_recipe(folder):
    fuzz_readers.put(folder, fuzz_readers.FOLDERS["bert"], set(), random.Random(0))

def a_tokenizer(folder):
    fuzz_readers.put(folder, fuzz_foreign.TOKENIZER, set(), random.Random(0))
    (folder / "evil.py").write_text("x = 1")

for name, prepare in (("run folder", a_run), ("recipe", a_recipe), ("tokenizer", a_tokenizer)):
    outcome(name, prepare)

model_card.plain_text = str  # a string of a run is no longer escaped
outcome("run folder", a_run)

whole = source.skeleton
def calling(recipe, reference, meta=True):
    try:
        __import__("socket").getaddrinfo("example.org", 80)
    except BaseException:  # a library that swallows what the trap raises
        pass
    return whole(recipe, reference, meta)
source.skeleton = calling
outcome("recipe", a_recipe)

loaded = preprocess.__dict__.get("tokenizer_of") or foreign_code.tokenizer_of
def running(folder):
    exec(compile("x = 1", str(Path(folder) / "evil.py"), "exec"))
    return loaded(folder)
foreign_code.tokenizer_of = running
outcome("tokenizer", a_tokenizer)
foreign_code.tokenizer_of = lambda folder: input("run the custom code? [y/N] ")
outcome("tokenizer", a_tokenizer)
"""


@pytest.mark.slow
def test_each_reader_of_foreign_folders_sees_a_planted_fault(tmp_path):
    code = PLANTED.format(tools=str(TOOLS), work=str(tmp_path / "work"))
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], input="yes\n" * 9, capture_output=True, text=True, timeout=300
    )
    lines = [line.split(" | ") for line in done.stdout.splitlines() if " | " in line]
    assert [line[:2] for line in lines[:3]] == [
        ["run folder", "result"],
        ["recipe", "result"],
        ["tokenizer", "result"],
    ], done.stdout + done.stderr
    words = [
        "AssertionError: another block",
        "fuzz.Escape: socket.getaddrinfo",
        "fuzz.Escape: compile",
        "fuzz.Escape: builtins.input",
    ]
    for (_, outcome, said), expected in zip(lines[3:], words, strict=True):
        assert outcome == "crash" and said.startswith(expected), (said, expected)
