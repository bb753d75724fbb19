"""``regraft check`` from the command line and from Python, and what a fit keeps of it."""

from __future__ import annotations

import json
import os
import re
import resource
import shutil
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import regraft
from regraft.data.splitting import read_manifest


@pytest.fixture
def planted(pictures, tmp_path) -> Path:
    """The three colours with a leak, two flipped labels, a conflict and a file that does not read."""
    root = tmp_path / "colours"
    shutil.copytree(pictures, root)
    shutil.copy(root / "train/amber/000.png", root / "test/amber/leak.png")
    shutil.copy(root / "train/amber/001.png", root / "train/navy/conflict.png")
    for name in ("002.png", "003.png"):
        (root / "train/amber" / name).rename(root / "train/olive" / f"flipped-{name}")
    (root / "train/olive/empty.jpg").touch()
    return root


def by_check(record):
    found = {}
    for f in record["findings"]:
        found.setdefault(f["check"], []).append(f)
    return found


def test_problems_exit_with_3_and_are_printed_and_saved(planted, cli, tmp_path):
    code, out, err = cli("check", planted, "--out", tmp_path / "found.json")
    assert code == 3 and err == ""
    assert "PROBLEM  unreadable: 1 of 87 pictures cannot be used" in out
    assert "train/olive/empty.jpg (it is empty)" in out
    assert "test/amber/leak.png = train/amber/000.png" in out
    assert "not looked at: label_errors needs a source" in out
    assert "note: 3 seeds and 25 test rows show a gain of" in out and "over scratch four times in five, assuming" in out
    record = json.loads((tmp_path / "found.json").read_text())
    assert {"unreadable", "exact_duplicates", "conflicting_labels"} <= set(by_check(record))
    assert record["rows"] == {"train": 49, "val": 12, "test": 25}
    code, out, _ = cli("check", planted, "--json")
    assert code == 3 and json.loads(out) == record
    code, _, err = cli("check", planted, "--out", tmp_path / "found.json")
    assert code == 2 and "not overwritten" in err


def test_cautions_alone_exit_with_0(pictures, cli, tmp_path):
    code, out, _ = cli("check", pictures)
    assert code == 0 and "nothing found" in out
    shutil.copytree(pictures, tmp_path / "c")
    shutil.copy(tmp_path / "c/train/amber/000.png", tmp_path / "c/train/amber/twice.png")
    code, out, _ = cli("check", tmp_path / "c")
    assert code == 0 and "1 caution" in out and "0 problems" in out


def test_a_source_adds_label_errors_and_caches_its_features(planted, weights, cli, tmp_path):
    args = [
        "--source",
        "timm:test_resnet",
        "--weights",
        weights,
        "--set",
        "source.image_size=32",
        "--set",
        "run.threads=1",
        "--set",
        "run.layout=contiguous",
    ]
    code, out, _ = cli("check", planted, *args, "--json")
    assert code == 3
    found = by_check(json.loads(out))
    assert "source_classes" not in json.loads(out)["not_run"]
    named = " ".join(found["label_errors"][0]["examples"])
    assert "flipped-002.png" in named and "flipped-003.png" in named
    assert found["label_errors"][0]["count"] <= 8
    # the same features: nothing is computed anew
    (planted / "train/olive/empty.jpg").unlink()
    code, _, err = cli("fit", planted, *args, "--epochs", 1, "--out", tmp_path / "run")
    assert code == 0, err
    assert "features of train: 49 rows from the feature cache" in err


def test_a_fit_keeps_what_the_cheap_checks_found(planted, weights, cli, tmp_path):
    args = ["--source", "timm:test_resnet", "--weights", weights, "--set", "source.image_size=32"]
    args += ["--epochs", 1, "--on-bad", "skip"]
    code, _, err = cli("fit", planted, *args, "--out", tmp_path / "run")
    assert code == 0
    # its twin may be drawn for val
    assert re.search(r"problem: exact_duplicates: 1 of 25 rows of test that are also in (train|val)", err)
    record = json.loads((tmp_path / "run/check.json").read_text())
    assert {"unreadable", "exact_duplicates", "conflicting_labels"} <= set(by_check(record))
    assert record["settled"] == []
    code, out, _ = cli("report", tmp_path / "run")
    page = (tmp_path / "run/report.html").read_text()
    assert "Findings in the data" in page and "rows of test that are also in" in page
    out = tmp_path / "clean"
    code, _, err = cli("fit", planted, *args, "--set", "data.leaks=drop", "--out", out)
    assert code == 0 and "are also in" not in err
    record = json.loads((out / "check.json").read_text())
    assert all(f["severity"] != "problem" for f in by_check(record).get("exact_duplicates", []))
    what = "left out of train: it is in test too"
    assert record["settled"] == [{"where": "train/amber/000.png", "what": what}]
    assert all(row.where != "train/amber/000.png" for row in read_manifest(out / "manifest.jsonl"))


def test_a_plan_is_checked_as_its_fit_would_read_it(planted, cli, tmp_path):
    plan = tmp_path / "plan.toml"
    plan.write_text(f'[source]\nref = ""\n[data]\npath = "{planted}"\nfolds = 3\n')
    code, out, _ = cli("check", plan, "--json")
    assert code == 3 and json.loads(out)["rows"]["val"] == 0


def test_data_that_stop_a_fit_are_still_looked_at(planted, cli):
    rose = planted / "test/rose"
    rose.mkdir()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (9, 9, 3), np.uint8)).save(rose / "a.png")
    code, out, _ = cli("check", planted, "--json")
    found = by_check(json.loads(out))
    assert code == 3
    assert '"rose" is not a class of the training rows' in found["fit"][0]["examples"][0]
    assert "exact_duplicates" in found and found["classes"][0]["examples"] == ["rose (1 in test)"]


def test_python_gives_the_same_list_as_the_command_line(planted, cli):
    found = regraft.check(planted)
    assert found.problems == 3
    assert json.loads(cli("check", planted, "--json")[1]) == json.loads(json.dumps(found.record()))


def test_texts_with_a_source_are_measured_in_tokens(bert, cli, tmp_path):
    words = ("good", "bad", "day", "film", "was", "the")
    rng = np.random.default_rng(0)
    lines = ["text,label,split"]
    for i in range(60):
        text = " ".join(rng.choice(words, 50 if i == 0 else 9))
        lines.append(f"{text},{'pos' if i % 2 else 'neg'},{'test' if i > 48 else 'train'}")
    (tmp_path / "t.csv").write_text("\n".join(lines))
    _, out, _ = cli("check", tmp_path / "t.csv", "--source", f"transformers:{bert}", "--json")
    (cut,) = by_check(json.loads(out))["truncated_texts"]
    assert (cut["count"], cut["of"]) == (1, 60)
    assert cut["examples"][0].startswith("t.csv row 2 (") and "(52 tokens)" in cut["examples"][0]


def test_source_data_are_compared_with_the_target(planted, cli, tmp_path):
    source = tmp_path / "source"
    (source / "amber").mkdir(parents=True)
    shutil.copy(planted / "test/navy/001.png", source / "amber/a.png")
    shutil.copy(planted / "test/navy/002.png", source / "amber/b.png")
    _, out, _ = cli("check", planted, "--source-data", source, "--json")
    found = by_check(json.loads(out))
    assert found["source_overlap"][0]["count"] == 2
    assert found["source_classes"][0]["examples"] == ['amber (27 rows): the source has "amber"']


@pytest.mark.fault(53)
def test_a_bomb_is_refused_in_bounded_memory(pictures, cli, tmp_path):
    shutil.copytree(pictures, tmp_path / "c")
    bomb = tmp_path / "c/train/amber/bomb.png"  # kilobytes on disk, 3.6 GB of pixels
    size = struct.pack(">IIBBBBB", 20_000, 60_000, 8, 2, 0, 0, 0)
    chunks = ((b"IHDR", size), (b"IDAT", zlib.compress(bytes(9_000_000))), (b"IEND", b""))
    parts = [struct.pack(">I", len(d)) + n + d + struct.pack(">I", zlib.crc32(n + d)) for n, d in chunks]
    bomb.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(parts))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    code, out, _ = cli("check", tmp_path / "c")
    assert code == 3 and "bomb.png (it claims more than 50 megapixels)" in out
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300_000  # KiB


@pytest.mark.fault(58)
@pytest.mark.fault(59)
def test_names_of_any_kind_are_read_and_written(pictures, weights, cli, tmp_path):
    root = tmp_path / "c"
    shutil.copytree(pictures, root)
    odd = [
        "new\nline.png",
        'quo"te.png',
        "<script>alert(1)</script>.png".replace("/", "_"),
        "-rf.png",
        "é" * 120 + ".png",
        "A.png",
        "a.png",
        os.fsdecode(b"not\xffutf8.png"),
    ]
    rng = np.random.default_rng(5)
    for name in odd:
        pixels = rng.integers(0, 255, (32, 32, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(root / "train/amber" / name)
    code, out, _ = cli("check", root, "--json")
    assert code == 0 and json.loads(out)["rows"]["train"] + json.loads(out)["rows"]["val"] == 68
    (root / "train/amber" / os.fsdecode(b"bad\xff.jpg")).touch()
    code, out, _ = cli("check", root, "--out", tmp_path / "x.json")
    assert code == 3 and "bad\\udcff.jpg" in out
    args = ["--source", "timm:test_resnet", "--weights", weights, "--set", "source.image_size=32"]
    code, _, err = cli("fit", root, *args, "--epochs", 1, "--on-bad", "skip", "--out", tmp_path / "run", "-q")
    assert code == 0, err
    where = {row.where for row in read_manifest(tmp_path / "run/manifest.jsonl")}
    assert {f"train/amber/{name}" for name in odd} <= where


def test_help_says_what_the_exit_code_means(cli):
    code, out, _ = cli("check", "--help")
    assert code == 0 and "exits with 3" in " ".join(out.split())
