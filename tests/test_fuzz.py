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
    tmp_path, monkeypatch, what, outcome, words
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


def test_the_same_seed_gives_the_same_inputs_and_another_others():
    tree = {"a": [1, 2, {"b": "c"}], "d": 0.5}

    def inputs(seed):
        rng = random.Random(seed)
        return [
            (
                flipped(b"some bytes", rng, [b"other"]),
                repr(altered(tree, rng)),
                as_csv([["a", "b"]], rng),
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
        f"sys.path.insert(0, {str(Path(__file__).parent)!r})",
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
