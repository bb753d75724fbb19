"""The fuzzer sees what it looks for: a planted fault of each kind is a crash, and inputs repeat."""

from __future__ import annotations

import importlib.util
import random
import subprocess
import sys
from pathlib import Path

import pytest

from regraft.errors import DataError

FUZZ = Path(__file__).with_name("fuzz.py")


@pytest.fixture(scope="module")
def fuzz():
    spec = importlib.util.spec_from_file_location("fuzz", FUZZ)
    module = importlib.util.module_from_spec(spec)
    sys.modules["fuzz"] = module  # its records look themselves up
    spec.loader.exec_module(module)
    yield module
    del sys.modules["fuzz"]


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
    [(lambda: 1, "result", ""), (refused, "refused", "DataError"), (broken, "crash", "KeyError"),
     (endless, "crash", "Hang")],
)  # fmt: skip
def test_a_result_and_a_refusal_are_fine_and_the_rest_is_a_crash(
    fuzz, tmp_path, monkeypatch, what, outcome, words
):
    import signal

    monkeypatch.setattr(fuzz, "HANG", 0.3)
    before = signal.signal(signal.SIGALRM, fuzz.alarm)
    try:
        reader = fuzz.Reader(lambda folder, rng: None, lambda folder: what())
        found, said, text = fuzz.one(reader, tmp_path)
    finally:
        signal.signal(signal.SIGALRM, before)
    assert found == outcome and said.startswith(words) and bool(text) == (outcome == "crash")


def test_the_same_seed_gives_the_same_inputs_and_another_others(fuzz):
    tree = {"a": [1, 2, {"b": "c"}], "d": 0.5}

    def inputs(seed):
        rng = random.Random(seed)
        return [
            (
                fuzz.flipped(b"some bytes", rng, [b"other"]),
                repr(fuzz.altered(tree, rng)),
                fuzz.as_csv([["a", "b"]], rng),
            )
            for _ in range(30)
        ]

    assert inputs("1 x 0") == inputs("1 x 0") != inputs("1 x 1")
    assert len({row[0] for row in inputs("1 x 0")}) > 20


@pytest.mark.parametrize(
    "code",
    [
        "open('outside.txt', 'w')",
        "open(out / 'x' / '..' / '..' / 'outside.txt', 'ab')",
        "__import__('os').system('true')",
        "__import__('subprocess').run(['true'])",
        "__import__('socket').getaddrinfo('example.org', 80)",
    ],
)
def test_what_reaches_out_of_the_work_folder_is_stopped(tmp_path, code):
    (tmp_path / "work").mkdir()
    lines = [
        "import sys; from pathlib import Path",
        f"sys.path.insert(0, {str(FUZZ.parent)!r})",
        f"import fuzz; out = Path({str(tmp_path / 'work')!r}); fuzz.guard(out)",
        "open(out / 'inside.txt', 'w').close(); open('/etc/hostname').close()",
        f"try: {code}",
        "except fuzz.Escape: print('stopped')",
    ]
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", "\n".join(lines)], cwd=tmp_path, capture_output=True, text=True
    )  # fmt: skip
    assert done.stdout == "stopped\n", done.stderr
    assert (tmp_path / "work/inside.txt").exists() and not (tmp_path / "outside.txt").exists()
