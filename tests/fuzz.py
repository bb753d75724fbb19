"""``make fuzz SECONDS=120``: what regraft reads, broken at random.

python tests/fuzz.py --seconds 120 [--seed 0] [--out FOLDER] [--only plan,csv]
python tests/fuzz.py --replay plan FILE      one kept input again, with its traceback

Valid files are damaged, by bits and by structure, and read. What comes of it is a result or one of
regraft's own errors. Anything else is a crash: another exception, a hang, a dead process, more than
MEMORY bytes, a file written outside of the work folder, a process or a connection begun. Crashes are
kept with their input in FOLDER/crashes, counts in FOLDER/counts.json, which is rewritten all the time.
The same seed gives the same inputs, reader by reader.
"""

from __future__ import annotations

import argparse
import csv
import faulthandler
import io
import json
import os
import random
import resource
import shutil
import signal
import struct
import sys
import tempfile
import time
import tomllib
import traceback
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image
from safetensors.torch import save, save_file

import regraft
from regraft import checkpoints, locks, picture_cache, runfiles
from regraft.comparison import read_judgement
from regraft.data import load_data
from regraft.errors import RegraftError
from regraft.feature_cache import FeatureCache
from regraft.formats import image_folder
from regraft.pictures import facts_of, read_picture
from regraft.plan import check, read_plan, toml_value, write_plan
from regraft.sources import _weights, load_source
from regraft.tasks.classification import Classification
from regraft.types import DataOptions, SourceOptions

HANG = 20  # seconds that one input may take
DEAD = 90  # seconds after which a process that does not even notice the alarm is ended
MEMORY = 4_000_000_000  # bytes of addresses beyond those of the start
KEPT = 5  # inputs of one and the same crash


class Hang(BaseException):
    """Not an Exception: nothing on the way may take it for a bad file."""


class Escape(BaseException):
    """The input reached beyond the work folder."""


# ---------------------------------------------------------------- damage

TEXTS = ["", " ", "x", "-1", "NaN", "1e999", "../../etc/passwd", "/dev/zero", "a\0b", "\ud800", "é" * 300,
         "x" * 5000, "=1+1", "null", "true", "auto", "{", "[[", '"', "'", "\\", "\n", "\r\n", "\ufeff", "own",
         "timm:resnet18", "os:system", "classification", "regression", "everything"]  # fmt: skip
VALUES = [None, True, False, 0, -1, 1, 3, 2**31, 2**63, 2**64, -(2**70), 10**400, 0.5, -0.0, 1e308, float("nan"),
          float("inf"), [], {}, [[]], [None], [1, 2], {"a": 1}, [1.5, "x"], ["a"] * 300]  # fmt: skip


def hostile(rng: random.Random) -> Any:
    return rng.choice(TEXTS) if rng.random() < 0.5 else rng.choice(VALUES)


def flipped(data: bytes, rng: random.Random, others: list[bytes]) -> bytes:
    """Bits, bytes and blocks of a file changed, cut, doubled, or taken from another one."""
    out = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 4, 16))):
        size = len(out)
        at, length = rng.randrange(size + 1), rng.choice((1, 2, 4, 8, 64, 512))
        how = rng.randrange(8)
        if how == 0 and at < size:
            out[at] ^= 1 << rng.randrange(8)
        elif how == 1 and at < size:
            out[at] = rng.choice((0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)))
        elif how == 2:
            out = out[:at]
        elif how == 3:
            del out[at : at + length]
        elif how == 4:
            out[at:at] = out[at : at + length]
        elif how == 5:
            out[at:at] = rng.randbytes(length)
        elif how == 6:
            number = rng.choice((0, 1, 2**15, 2**16, 2**31 - 1, 2**31, 2**32 - 1))
            out[at : at + 4] = struct.pack(rng.choice("<>") + "I", number)
        else:
            other = rng.choice(others)
            start = rng.randrange(len(other) + 1)
            out[at : at + length] = other[start : start + length]
    return bytes(out)


def altered(tree: Any, rng: random.Random) -> Any:
    """A tree of values with a few of its nodes replaced, left out, doubled or renamed."""
    tree = json.loads(json.dumps(tree))
    for _ in range(rng.choice((1, 1, 1, 2, 5))):
        inner: list[Any] = [node for node in nodes(tree) if node]
        if not inner:
            return hostile(rng)
        node = rng.choice(inner)
        key = rng.choice(list(node)) if isinstance(node, dict) else rng.randrange(len(node))
        how = rng.randrange(8)
        if how == 0:
            del node[key]
        elif how == 1 and isinstance(node, dict):
            node[rng.choice(TEXTS)] = node.pop(key)
        elif how == 1:
            node.append(node[key])
        elif how == 2:
            node[key] = rng.choice([n for n in nodes(tree) if n is not node] or [None])
            tree = json.loads(json.dumps(tree, check_circular=False)) if not looped(tree) else None
        elif how == 3 and isinstance(node[key], str):
            node[key] = flipped(node[key].encode(), rng, [b"auto"]).decode(errors="replace")
        elif how == 4 and isinstance(node[key], int | float):
            node[key] = node[key] * rng.choice((-1, 0, 2, 1000, 0.5))
        else:
            node[key] = hostile(rng)
    return tree


def nodes(tree: Any) -> list[Any]:
    found, stack = [], [tree]
    while stack:
        node = stack.pop()
        if isinstance(node, dict | list):
            found.append(node)
            stack += node.values() if isinstance(node, dict) else node
            if len(found) > 10_000:
                break
    return found


def looped(tree: Any) -> bool:
    return len(nodes(tree)) > 10_000


def as_json(tree: Any, rng: random.Random) -> bytes:
    if rng.random() < 0.01:  # deeper than any stack
        return rng.choice((b"[", b'{"a":')) * 100_000
    return json.dumps(tree, ensure_ascii=rng.random() < 0.7).encode(errors="surrogatepass")


def as_toml(tree: Any, rng: random.Random) -> bytes:
    if rng.random() < 0.01:
        return b"a = " + b"[" * 100_000
    lines = []
    for key, value in tree.items() if isinstance(tree, dict) else [("x", tree)]:
        if isinstance(value, dict) and rng.random() < 0.9:
            lines += [f"[{json.dumps(key)}]"]
            lines += [f"{json.dumps(k)} = {toml(v)}" for k, v in value.items()]
        else:
            lines.insert(0, f"{json.dumps(key)} = {toml(value)}")
    if rng.random() < 0.3:
        rng.shuffle(lines)
    return "\n".join(lines).encode(errors="surrogatepass")


def toml(value: Any) -> str:
    return '""' if value is None else str(toml_value(value))


def as_lines(rows: list[Any], rng: random.Random) -> bytes:
    rows = list(rows)
    for _ in range(rng.choice((1, 1, 3))):
        i = rng.randrange(len(rows))
        rows[i] = altered(rows[i], rng)
    return b"\n".join(as_json(row, rng) for row in rows)


def as_csv(rows: list[list[str]], rng: random.Random) -> bytes:
    rows = [list(row) for row in rows]
    for _ in range(rng.choice((1, 1, 3, 8))):
        row = rng.choice(rows)
        how, at = rng.randrange(4), rng.randrange(len(row) or 1)
        if how == 0:
            row[at:at] = [rng.choice(TEXTS)]
        elif how == 1:
            row[at : at + 1] = []
        elif how == 2:
            rows.append(list(row))
        elif row:
            row[at % len(row)] = rng.choice(TEXTS)
    text = io.StringIO()
    quoting = rng.choice((csv.QUOTE_MINIMAL, csv.QUOTE_ALL))
    end = rng.choice(("\n", "\r\n", "\r"))
    csv.writer(text, lineterminator=end, quoting=quoting).writerows(rows)
    return text.getvalue().encode(rng.choice(("utf-8", "utf-8-sig", "utf-8")), "surrogatepass")


# ---------------------------------------------------------------- readers


@dataclass
class Reader:
    """``make`` writes an input into a folder; ``read`` reads it."""

    make: Callable[[Path, random.Random], None]
    read: Callable[[Path], object]


PLAN = """
[source]
ref = "timm:resnet18"
allow_fresh = ["a.*"]
[data]
path = "flowers"
text = ["a", "b"]
val = 0.1
[task]
name = "classification"
label_smoothing = 0.1
[augment]
scale = [0.5, 1.0]
mixup = 0.2
[fit]
epochs = 3
lr = 1e-4
optimizer_options = { momentum = 0.9, betas = [0.9, 0.99] }
block_lr = { "a.*" = 1e-5 }
[freezing]
name = "gradual"
epochs_per_stage = 2
[regularizers.l2_sp]
alpha = 0.1
[regularizers.ewc]
strength = 10.0
[evaluate]
controls = ["scratch"]
[run]
out = "runs/a"
checkpoint_every = "5 min"
threads = 1
"""
ROWS = [["text", "label", "split", "who"]] + [
    [f"text {i} of words, with a comma", "abc"[i % 3], ("train", "train", "test")[i // 3 % 3], f"w{i % 5}"]
    for i in range(60)
]  # fmt: skip


def file_of(name: str, seeds: list[bytes], made: Callable[[random.Random], bytes] | None) -> Any:
    """An input of one file: a seed damaged by bits or, where it can be, by structure, or by both."""

    def make(folder: Path, rng: random.Random) -> None:
        data = made(rng) if made is not None and rng.random() < 0.6 else rng.choice(seeds)
        if made is None or rng.random() < 0.5:
            data = flipped(data, rng, seeds)
        (folder / name).write_bytes(data)

    return make


def read_a_plan(folder: Path) -> None:
    plan = read_plan(folder / "plan.toml", {})
    assert check(tomllib.loads(write_plan(plan))) == plan, "a written plan reads back otherwise"


def rows_in(name: str) -> Callable[[Path], object]:
    def read(folder: Path) -> object:
        task, path = Classification(), folder / name
        with Passing():
            load_data(DataOptions(path, on_bad="fail", group="who"), task.make, task.strata)
        return load_data(DataOptions(path, on_bad="skip"), task.make, task.strata)

    return read


def parquet(rng: random.Random) -> bytes:
    """A table of some types that no text is made of."""
    n = rng.choice((0, 1, 30))
    kinds: list[Callable[[], Any]] = [
        lambda: pa.array([f"t{i}" for i in range(n)]),
        lambda: pa.array(range(n)),
        lambda: pa.array([rng.choice((0.5, float("nan"), None)) for _ in range(n)], pa.float32()),
        lambda: pa.array([["a", "b"][: i % 3] for i in range(n)], pa.list_(pa.string())),
        lambda: pa.array([{"a": i} for i in range(n)], pa.struct([("a", pa.int64())])),
        lambda: pa.array([rng.randbytes(3) for _ in range(n)], pa.binary()),
        lambda: pa.array([None] * n, pa.null()),
        lambda: pa.array([i % 2 == 0 for i in range(n)]),
        lambda: pa.array([rng.choice((0, 2**62)) for _ in range(n)], pa.timestamp("ns")),
        lambda: pa.array([rng.choice((0, 2**52)) for _ in range(n)], pa.timestamp("ms")),
        lambda: pa.array([i % 100 for i in range(n)], pa.date64()),
        lambda: pa.array([i % 100 for i in range(n)], pa.duration("ns")),
        lambda: pa.array(["abc"[i % 3] for i in range(n)]).dictionary_encode(),
        lambda: pa.array([[[i]] for i in range(n)], pa.list_(pa.list_(pa.int32()))),
        lambda: pa.array([[("k", i)] for i in range(n)], pa.map_(pa.string(), pa.int64())),
    ]
    names = rng.choice(
        (["text", "label"], ["image", "label"], ["text", "label", "split"], ["text", "text"])
    )
    table = pa.Table.from_arrays([rng.choice(kinds)() for _ in names], names=names)
    sink = io.BytesIO()
    pq.write_table(table, sink, compression=rng.choice(("none", "snappy", "zstd")))
    return sink.getvalue()


def picture_seeds() -> list[bytes]:
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 255, (20, 24, 4), dtype=np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6
    seeds = []
    for mode, format, how in (
        ("RGB", "PNG", {"exif": exif}), ("RGBA", "PNG", {}), ("P", "PNG", {"transparency": 3}), ("1", "PNG", {}),
        ("RGB", "JPEG", {"exif": exif}), ("CMYK", "JPEG", {}), ("L", "JPEG", {"progressive": True}),
        ("P", "GIF", {"save_all": True, "append_images": [Image.fromarray(pixels[..., 0])]}), ("RGB", "BMP", {}),
        ("RGB", "TIFF", {"compression": "tiff_lzw"}), ("L", "TIFF", {"compression": "tiff_deflate"}),
        ("F", "TIFF", {}), ("I;16", "TIFF", {}), ("I;16", "PNG", {}), ("YCbCr", "TIFF", {}), ("LAB", "TIFF", {}),
        ("RGBA", "WEBP", {"lossless": True}), ("RGB", "WEBP", {"exif": exif}), ("RGB", "PPM", {}), ("L", "PPM", {}),
        ("I", "PPM", {}),
    ):  # fmt: skip
        sink = io.BytesIO()
        Image.fromarray(pixels).convert("RGB").convert("L" if mode[0] in "IF" else mode).convert(
            mode
        ).save(sink, format, **how)
        seeds.append(sink.getvalue())
    return seeds


def read_a_picture(folder: Path) -> None:
    path = folder / "picture"
    facts_of(path)
    for channels in (1, 3, 4):
        read_picture(path, channels)


def a_folder(pictures: list[bytes]) -> Callable[[Path, random.Random], None]:
    """A folder of pictures, with links, pipes, odd names and damaged files in it."""
    names = [*(f"{i}.png" for i in range(5)), "train", "test", "val", "a", "é.jpg", "-rf.gif", "n\nl.png", "b",
             "x" * 250, "A.PNG", "a.png", ".hidden.png", "train.csv", "x.tar",
             os.fsdecode(b"\xff.png"), " "]  # fmt: skip

    def make(folder: Path, rng: random.Random) -> None:
        places = [folder / "data"]
        places[0].mkdir()
        for c in "ab":
            for i in range(3):
                path = (
                    folder
                    / "data"
                    / rng.choice((".", "train", "test"))
                    / c
                    / f"{i}{rng.random()}.png"
                )
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(rng.choice(pictures))
                places += [path.parent]
        for _ in range(rng.choice((0, 1, 3, 10))):
            path = rng.choice(places) / rng.choice(names)
            if path.exists() or path.is_symlink():
                continue
            how = rng.randrange(7)
            if how == 0:
                path.mkdir()
                places.append(path)
            elif how == 1:
                path.symlink_to(
                    rng.choice(
                        ["..", ".", path.name, "/", "/dev/zero", "/etc/passwd", "nowhere", "a"]
                    )
                )
            elif how == 2:
                os.mkfifo(path)
            elif how == 3:
                path.write_bytes(b"")
            else:
                path.write_bytes(flipped(rng.choice(pictures), rng, pictures))

    return make


def read_a_folder(folder: Path) -> None:
    with Passing():
        image_folder.list_images(folder / "data")
    rows_in("data")(folder)


class Passing:
    """Goes on after one of regraft's own errors: several readers of one input."""

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: Any, error: Any, tb: Any) -> bool:
        return isinstance(error, RegraftError)


STATE = {
    "a.weight": torch.ones(3, 4),
    "a.bias": torch.zeros(3),
    "n": torch.tensor(7),
    "b.weight": torch.ones(2, 2, 3, 3),
}


def safetensors(rng: random.Random) -> bytes:
    data = save(STATE)
    (length,) = struct.unpack("<Q", data[:8])
    header = as_json(altered(json.loads(data[8 : 8 + length]), rng), rng)
    size = rng.choice((len(header), len(header), len(header), 0, 2**63, len(header) + 8))
    return struct.pack("<Q", size) + header + data[8 + length :]


def torch_seeds() -> list[bytes]:
    states: list[Any] = [
        STATE, {"state_dict": {f"module.{k}": v for k, v in STATE.items()}}, {"a.weight": torch.zeros(1).expand(10**9)},
        {"a.weight": torch.ones(3, 4, dtype=torch.bfloat16), "a.bias": torch.eye(3).to_sparse()},
        {"a.weight": torch.empty(3, 4, device="meta")}, [1, "a"], torch.nn.Linear(2, 2), {1: torch.ones(2)},
    ]  # fmt: skip
    found = []
    for state in states:
        for zipped in (True, False):
            sink = io.BytesIO()
            torch.save(state, sink, _use_new_zipfile_serialization=zipped)
            found.append(sink.getvalue())
    return found


def read_weights(folder: Path) -> None:
    found = _weights.read(folder / "weights")
    tensors, _ = _weights.strip_prefixes(found.tensors, STATE)
    _weights.match(STATE, tensors, where="w", head="b")


RUN: dict[str, bytes] = {}  # file → its bytes, of a finished run and of checkpoints


def make_run(work: Path) -> None:
    """A run on tiny pictures, and what an unfinished one keeps."""
    rng = np.random.default_rng(0)
    data = work / "pictures"
    for split, n in (("train", 6), ("test", 4)):
        for c in range(3):
            (data / split / "abc"[c]).mkdir(parents=True)
            for i in range(n):
                pixels = rng.integers(0, 120, (16, 16, 3), dtype=np.uint8)
                pixels[..., c] += 100
                Image.fromarray(pixels).save(data / split / "abc"[c] / f"{i}.png")
    torch.manual_seed(0)
    import timm

    save_file(
        timm.create_model("test_resnet", pretrained=False).state_dict(), work / "w.safetensors"
    )
    settings = {"source.weights": str(work / "w.safetensors"), "source.image_size": 32, "fit.epochs": 1,
                "fit.batch_size": 8, "run.threads": 1, "run.workers": 0, "run.cache": "off"}  # fmt: skip
    run = regraft.fit(data, source="timm:test_resnet", out=work / "run", settings=settings).path
    record = {
        "count": 1,
        "arm": "seed 0",
        "at": {"step": 3, "epoch": 1},
        "about": {"history": 0, "seconds": {}},
    }
    checkpoints.write(run / "checkpoints" / "step-00000003", record, STATE)
    checkpoints.write(
        run / "checkpoints" / "done-probe", {"count": 0, "part": "probe", "about": {}}, STATE
    )
    locks.take(run / "lock")
    (run / "resumes.jsonl").write_text('{"time": "now", "changes": []}\n', encoding="utf-8")
    for path in sorted(run.rglob("*")):
        if path.is_file():
            RUN[path.relative_to(run).as_posix()] = path.read_bytes()


def damaged(data: bytes, name: str, rng: random.Random) -> bytes:
    """A file of a run, damaged after its kind."""
    kind = name.rpartition(".")[2] if rng.random() < 0.75 else ""
    if kind in ("json",) or name == "lock":
        return as_json(altered(json.loads(data), rng), rng)
    if kind == "jsonl":
        return as_lines([json.loads(line) for line in data.splitlines()], rng)
    if kind == "toml":
        return as_toml(altered(tomllib.loads(data.decode()), rng), rng)
    if kind == "csv":
        return as_csv(list(csv.reader(io.StringIO(data.decode()))), rng)
    return flipped(data, rng, list(RUN.values()))


def put(folder: Path, files: dict[str, bytes], broken: set[str], rng: random.Random) -> None:
    """The files, the broken ones damaged or, one time in twenty, left out."""
    for name, data in files.items():
        path = folder / name
        if name in broken and rng.random() < 0.05:
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(damaged(data, name, rng) if name in broken else data)


def a_run(wanted: Callable[[str], bool]) -> Callable[[Path, random.Random], None]:
    def make(folder: Path, rng: random.Random) -> None:
        names = [n for n in RUN if wanted(n)]
        broken = set(rng.sample(names, rng.choice((1, 1, 1, 2))))
        put(folder / "run", RUN, broken, rng)
        places = {Path(n).parent for n in broken if "checkpoints" in n}
        if rng.random() < 0.7:  # the sums are right, and yet it is not what a run wrote
            for place in places:
                at = folder / "run" / place
                names = [n for n in (checkpoints.TENSORS, checkpoints.RECORD) if (at / n).exists()]
                lines = [f"{checkpoints.digest_of(at / n)}  {n}\n" for n in names]
                (at / checkpoints.MANIFEST).write_text("".join(lines), encoding="utf-8")

    return make


def read_a_run(folder: Path) -> None:
    """As predict, evaluate, compare, list and a source do."""
    run = folder / "run"
    with Passing():
        found = regraft.Run.read(run)
        str(found), found.test, found.val, found.gain, found.verdict
    with Passing():
        regraft.api.plan_of(run)
    with Passing():
        read_judgement(run)
    with Passing():
        from regraft.listing import listing

        listing(str(folder), False)
    with Passing():
        locks.held(run / "lock")
        runfiles.can_go_on(run)
        list(runfiles.RunFolder(run).lines("resumes.jsonl"))


def read_for_a_report(folder: Path) -> None:
    from regraft.report.render import report

    report([folder / "run"], folder / "report.html")


def read_a_model(folder: Path) -> None:
    regraft.load(folder / "run")


def read_checkpoints(folder: Path) -> None:
    said: list[str] = []
    keeper = checkpoints.Keeper(folder / "run" / "checkpoints", say=said.append)
    keeper.look()
    keeper.since("seed 0")
    keeper.done("probe")


CACHED = {f"{i:064x}": torch.full((2, 3), float(i)) for i in range(6)}  # content → rows of features
SHOWN = {name: torch.full((3, 4, 5 + i), i, dtype=torch.uint8) for i, name in enumerate(CACHED)}
ENTRIES: dict[str, bytes] = {}  # file → its bytes, of an entry of each kind


def make_entries(work: Path) -> None:
    cache = FeatureCache(work / "cache", 10**9)
    cache.write("features", [([name], rows[None]) for name, rows in CACHED.items()])
    picture_cache.write(cache, "pictures", iter(SHOWN.items()))
    for path in sorted(cache.root.rglob("*.*")):
        ENTRIES[path.relative_to(cache.root).as_posix()] = path.read_bytes()


def a_cache(folder: Path, rng: random.Random) -> None:
    """Entries of the cache with a file or two damaged or gone."""
    broken = set(rng.sample(list(ENTRIES), rng.choice((1, 1, 2))))
    put(folder, ENTRIES, broken, rng)


def read_a_cache(folder: Path) -> None:
    """What is there is what was written, or it is not there."""
    entry = FeatureCache(folder, 10**9).open("features")
    for name, rows in CACHED.items() if entry else ():
        assert entry is not None and torch.equal(entry.batch([name])[0], rows), "other features"
    try:
        kept = picture_cache.Kept.open(folder / "pictures")
    except (OSError, ValueError):
        return
    for name, picture in SHOWN.items():
        found = kept.get(name)
        assert found is None or torch.equal(found, picture), "another picture"


FOLDERS: dict[str, dict[str, bytes]] = {}  # "bert", "vit" → file → its bytes


def make_folders(work: Path) -> None:
    import transformers
    from transformers.utils import logging

    logging.disable_progress_bar()
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "good", "bad", "day"]
    sides: dict[str, Any] = {"hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2,
                             "intermediate_size": 8}  # fmt: skip
    text = transformers.BertConfig(vocab_size=len(words), max_position_embeddings=16, **sides)
    transformers.BertForSequenceClassification(text).save_pretrained(work / "bert")
    (work / "bert" / "vocab.txt").write_text("\n".join(words), encoding="utf-8")
    settings = {"tokenizer_class": "BertTokenizer", "model_max_length": 16}
    (work / "bert" / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    transformers.ViTForImageClassification(
        transformers.ViTConfig(image_size=8, patch_size=4, num_labels=3, **sides)
    ).save_pretrained(work / "vit")
    settings = {"size": {"height": 8, "width": 8}, "image_mean": [0.5] * 3, "image_std": [0.5] * 3,
                "resample": 3, "do_rescale": True, "rescale_factor": 1 / 255}  # fmt: skip
    (work / "vit" / "preprocessor_config.json").write_text(json.dumps(settings), encoding="utf-8")
    for name in ("bert", "vit"):
        files = sorted((work / name).iterdir())
        FOLDERS[name] = {f.name: f.read_bytes() for f in files}


def a_transformers_folder(folder: Path, rng: random.Random) -> None:
    files = FOLDERS[rng.choice(("bert", "vit"))]
    broken = set(rng.sample([n for n in files if n != "model.safetensors"], rng.choice((1, 1, 2))))
    put(folder, files, broken, rng)


def read_a_transformers_folder(folder: Path) -> None:
    load_source(f"transformers:{folder}", SourceOptions(offline=True))


def readers(work: Path) -> dict[str, Reader]:
    make_run(work)
    make_entries(work)
    make_folders(work)
    pictures = picture_seeds()
    plan = tomllib.loads(PLAN)
    plans = [PLAN.encode(), write_plan(check(plan)).encode()]
    csv_seed = as_csv(ROWS, random.Random(0))
    lines = [dict(zip(ROWS[0], row, strict=True)) for row in ROWS[1:]]
    json_seed = "\n".join(map(json.dumps, lines)).encode()
    tables = [parquet(random.Random(i)) for i in range(40)]
    return {
        "plan": Reader(
            file_of("plan.toml", plans, lambda r: as_toml(altered(plan, r), r)),
            read_a_plan,
        ),
        "csv": Reader(file_of("t.csv", [csv_seed], lambda r: as_csv(ROWS, r)), rows_in("t.csv")),
        "jsonl": Reader(
            file_of("t.jsonl", [json_seed], lambda r: as_lines(lines, r)), rows_in("t.jsonl")
        ),
        "parquet": Reader(file_of("t.parquet", tables, parquet), rows_in("t.parquet")),
        "picture": Reader(file_of("picture", pictures, None), read_a_picture),
        "folder": Reader(a_folder(pictures), read_a_folder),
        "safetensors": Reader(file_of("weights", [save(STATE)], safetensors), read_weights),
        "torch weights": Reader(file_of("weights", torch_seeds(), None), read_weights),
        "run files": Reader(
            a_run(lambda n: not n.startswith(("model/m", "frontier", "checkpoints"))), read_a_run
        ),
        "report": Reader(
            a_run(lambda n: not n.startswith(("model/m", "frontier", "checkpoints"))),
            read_for_a_report,
        ),
        "run model": Reader(a_run(lambda n: n.startswith("model/")), read_a_model),
        "checkpoints": Reader(a_run(lambda n: n.startswith("checkpoints/")), read_checkpoints),
        "cache": Reader(a_cache, read_a_cache),
        "transformers": Reader(a_transformers_folder, read_a_transformers_folder),
    }  # fmt: skip


# ---------------------------------------------------------------- the loop


@dataclass
class Count:
    inputs: int = 0
    results: int = 0
    refused: int = 0
    seconds: float = 0.0
    crashes: dict[str, int] = field(default_factory=dict)  # what and where → how often


def guard(work: Path) -> None:
    """From here on nothing is written outside of ``work``, no process is begun and nobody called."""
    sys.dont_write_bytecode = True
    inside = str(work.resolve())
    allowed = (inside, "/dev/null")

    def look(event: str, args: tuple[Any, ...]) -> None:
        if (
            event == "open"
            and isinstance(args[2], int)
            and args[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
        ):
            path = os.path.abspath(os.fsdecode(args[0])) if not isinstance(args[0], int) else inside  # noqa: PTH100
            if not path.startswith(allowed):
                raise Escape(f"{path} opened to be written")
        elif event in (
            "os.system",
            "subprocess.Popen",
            "os.exec",
            "os.posix_spawn",
            "socket.connect",
            "socket.getaddrinfo",
        ):
            raise Escape(f"{event} {args}")

    sys.addaudithook(look)


def alarm(*_: Any) -> None:
    raise Hang(f"no end after {HANG} s")


def one(reader: Reader, folder: Path) -> tuple[str, str, str]:
    """("result" | "refused" | "crash", what and where, traceback)"""
    signal.setitimer(signal.ITIMER_REAL, HANG)
    try:
        reader.read(folder)
        return "result", "", ""
    except RegraftError as error:
        return "refused", type(error).__name__, ""
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt | SystemExit):
            raise
        signal.setitimer(signal.ITIMER_REAL, 0)
        frames = [f for f in traceback.extract_tb(error.__traceback__) if "regraft" in f.filename]
        at = f"{Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else "?"
        return "crash", f"{type(error).__name__} at {at}", traceback.format_exc()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def keep(out: Path, name: str, what: str, count: int, folder: Path, text: str) -> None:
    if count <= KEPT:
        words = "".join(c if c.isalnum() else "-" for c in f"{name}-{what}-{count}")
        place = out / "crashes" / words
        shutil.rmtree(place, ignore_errors=True)
        if folder.is_dir():  # not where it was stopped before it had an input
            shutil.copytree(folder, place, symlinks=True, ignore=pipes)
        place.mkdir(parents=True, exist_ok=True)
        (place / "traceback.txt").write_text(text, encoding="utf-8", errors="backslashreplace")


def pipes(folder: str, names: list[str]) -> list[str]:
    return [n for n in names if (Path(folder) / n).is_fifo()]


def emptied(folder: Path) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder


def work_through(out: Path, work: Path, all_of: dict[str, Reader], seed: int, end: float) -> None:
    """In a child: inputs until the end, counts written as they come."""
    warnings.simplefilter("ignore")
    signal.signal(signal.SIGALRM, alarm)
    import matplotlib.font_manager  # noqa: F401  (where no list of fonts is kept it makes one, by fc-list)

    used = (
        int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
        * resource.getpagesize()
    )
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, used + MEMORY))
    guard(out)
    counts = read_counts(out)
    for name in all_of:
        counts.setdefault(name, Count())
    saved = 0.0
    while time.monotonic() < end:
        name = min(all_of, key=lambda n: counts[n].seconds)  # an equal share of the time
        count, folder = counts[name], emptied(work / "input")
        begun = time.monotonic()
        try:
            all_of[name].make(folder, random.Random(f"{seed} {name} {count.inputs}"))
        except (
            ValueError,
            UnicodeError,
            RecursionError,
            OSError,
            OverflowError,
            TypeError,
            AttributeError,
            KeyError,
        ):
            count.inputs += 1  # the damage itself went wrong: no input
            continue
        (out / "now.txt").write_text(f"{name}\n{count.inputs}\n", encoding="utf-8")
        count.inputs += 1
        outcome, what, text = one(all_of[name], folder)
        count.seconds += time.monotonic() - begun
        if outcome == "crash":
            count.crashes[what] = count.crashes.get(what, 0) + 1
            keep(out, name, what, count.crashes[what], folder, text)
        else:
            count.results += outcome == "result"
            count.refused += outcome == "refused"
        if outcome == "crash" or time.monotonic() - saved > 2:
            write_counts(out, counts)
            saved = time.monotonic()
    write_counts(out, counts)


def write_counts(out: Path, counts: dict[str, Count]) -> None:
    part = out / "counts.part"
    part.write_text(
        json.dumps({n: asdict(c) for n, c in counts.items()}, indent=1), encoding="utf-8"
    )
    part.replace(out / "counts.json")


def read_counts(out: Path) -> dict[str, Count]:
    path = out / "counts.json"
    return {n: Count(**c) for n, c in json.loads(path.read_text()).items()} if path.exists() else {}


def table(counts: dict[str, Count]) -> str:
    lines = [
        f"{'reader':<14} {'inputs':>9} {'results':>9} {'refused':>9} {'crashes':>8} {'seconds':>8}"
    ]
    total = Count()
    for name, c in counts.items():
        crashes = sum(c.crashes.values())
        lines.append(
            f"{name:<14} {c.inputs:>9,} {c.results:>9,} {c.refused:>9,} {crashes:>8,} {c.seconds:>8,.0f}"
        )
        lines += [f"    {n} × {what}" for what, n in c.crashes.items()]
        total.inputs += c.inputs
        total.results += c.results
        total.refused += c.refused
        total.seconds += c.seconds
        total.crashes[name] = crashes
    crashes = sum(total.crashes.values())
    lines.append(
        f"{'all':<14} {total.inputs:>9,} {total.results:>9,} {total.refused:>9,} {crashes:>8,} {total.seconds:>8,.0f}"
    )
    return "\n".join(lines)


def watch(out: Path, work: Path, all_of: dict[str, Reader], seed: int, seconds: float) -> None:
    """Children, one after another: one that dies or does not notice its alarm is a crash of its input."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        child = os.fork()
        if not child:
            code = 1
            try:
                work_through(out, work, all_of, seed, end)
                code = 0
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(code)
        status = None
        while status is None:
            time.sleep(0.2)
            done, found = os.waitpid(child, os.WNOHANG)
            now = out / "now.txt"
            if done:
                status = found
            elif now.exists() and time.time() - now.stat().st_mtime > DEAD:
                os.kill(child, signal.SIGKILL)
        if status:
            if not (out / "now.txt").exists():
                raise SystemExit("the fuzzer itself does not run")
            name, _, number = (out / "now.txt").read_text().partition("\n")
            counts = read_counts(out)
            count = counts.setdefault(name, Count())
            what = f"process ended with status {status}"
            count.inputs = max(count.inputs, int(number) + 1)
            count.crashes[what] = count.crashes.get(what, 0) + 1
            keep(out, name, what, count.crashes[what], work / "input", what)
            write_counts(out, counts)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=120)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="a new folder for counts and crashes")
    parser.add_argument("--only", help="readers, separated by commas")
    parser.add_argument("--replay", nargs=2, metavar=("READER", "FOLDER"))
    given = parser.parse_args()
    faulthandler.enable()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        out = given.out or Path(scratch) / "out"
        work = out / "work"
        for name in ("STATE", "CACHE"):
            os.environ[f"REGRAFT_{name}"] = str(work / name.lower())
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir(parents=True)
        all_of = readers(work)
        if given.replay:
            with Passing():
                all_of[given.replay[0]].read(Path(given.replay[1]))
            return 0
        chosen = given.only.split(",") if given.only else list(all_of)
        watch(out, work, {n: all_of[n] for n in chosen}, given.seed, given.seconds)
        counts = read_counts(out)
        print(table(counts))
        crashed = any(c.crashes for c in counts.values())
        if crashed and given.out is None:
            kept = Path(tempfile.mkdtemp(prefix="fuzz-"))
            shutil.copytree(out / "crashes", kept / "crashes", symlinks=True)
            print(f"the inputs of the crashes are in {kept}")
        shutil.rmtree(work, ignore_errors=True)
    return 1 if crashed else 0


if __name__ == "__main__":
    sys.exit(main())
