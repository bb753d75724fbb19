"""Readers for the fuzzer, each with a maker of its inputs."""

from __future__ import annotations

import csv
import io
import json
import os
import random
import struct
import tomllib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image
from safetensors.torch import save, save_file

import regraft
from fuzz_damage import altered, as_csv, as_json, as_lines, as_toml, flipped
from regraft.data import image_store as picture_cache
from regraft.data.images import facts_of, read_picture
from regraft.data.loading import load_data
from regraft.data.store import FeatureCache
from regraft.data.types import DataOptions
from regraft.errors import RegraftError
from regraft.evidence.comparison import read_judgement
from regraft.formats import image_folder
from regraft.io import locks
from regraft.io.hashing import file_digest
from regraft.model.types import SourceOptions
from regraft.plan.read import check, read_plan
from regraft.plan.write import write_plan
from regraft.runs import folder as runfiles
from regraft.sources import _weights, load_source
from regraft.tasks.classification import Classification
from regraft.training import checkpoints


@dataclass
class Reader:
    """A reader with its inputs: ``make`` writes an input into a folder, ``read`` reads it."""

    make: Callable[[Path, random.Random], None]
    read: Callable[[Path], object]


OUTSIDE = __file__  # target of links out of the input: a file that readers must not write
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
]


def file_of(name: str, seeds: list[bytes], made: Callable[[random.Random], bytes] | None) -> Any:
    """Return a maker of one file: a seed damaged by bits, by structure where it has one, or by both."""

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
    """Return a table with types that are no text."""
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
    names = rng.choice((["text", "label"], ["image", "label"], ["text", "label", "split"], ["text", "text"]))
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
        ("RGB", "PNG", {"exif": exif}),
        ("RGBA", "PNG", {}),
        ("P", "PNG", {"transparency": 3}),
        ("1", "PNG", {}),
        ("RGB", "JPEG", {"exif": exif}),
        ("CMYK", "JPEG", {}),
        ("L", "JPEG", {"progressive": True}),
        ("P", "GIF", {"save_all": True, "append_images": [Image.fromarray(pixels[..., 0])]}),
        ("RGB", "BMP", {}),
        ("RGB", "TIFF", {"compression": "tiff_lzw"}),
        ("L", "TIFF", {"compression": "tiff_deflate"}),
        ("F", "TIFF", {}),
        ("I;16", "TIFF", {}),
        ("I;16", "PNG", {}),
        ("YCbCr", "TIFF", {}),
        ("LAB", "TIFF", {}),
        ("RGBA", "WEBP", {"lossless": True}),
        ("RGB", "WEBP", {"exif": exif}),
        ("RGB", "PPM", {}),
        ("L", "PPM", {}),
        ("I", "PPM", {}),
    ):
        sink = io.BytesIO()
        Image.fromarray(pixels).convert("RGB").convert("L" if mode[0] in "IF" else mode).convert(mode).save(
            sink, format, **how
        )
        seeds.append(sink.getvalue())
    return seeds


def read_a_picture(folder: Path) -> None:
    path = folder / "picture"
    facts_of(path)
    for channels in (1, 3, 4):
        read_picture(path, channels)


def a_folder(pictures: list[bytes]) -> Callable[[Path, random.Random], None]:
    """Write a folder of pictures with links, pipes, odd names and damaged files."""
    names = [
        *(f"{i}.png" for i in range(5)),
        "train",
        "test",
        "val",
        "a",
        "é.jpg",
        "-rf.gif",
        "n\nl.png",
        "b",
        "x" * 250,
        "A.PNG",
        "a.png",
        ".hidden.png",
        "train.csv",
        "x.tar",
        os.fsdecode(b"\xff.png"),
        " ",
    ]

    def make(folder: Path, rng: random.Random) -> None:
        places = [folder / "data"]
        places[0].mkdir()
        for c in "ab":
            for i in range(3):
                path = folder / "data" / rng.choice((".", "train", "test")) / c / f"{i}{rng.random()}.png"
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
                path.symlink_to(rng.choice(["..", ".", path.name, "/", "/dev/zero", OUTSIDE, "nowhere", "a"]))
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
        STATE,
        {"state_dict": {f"module.{k}": v for k, v in STATE.items()}},
        {"a.weight": torch.zeros(1).expand(10**9)},
        {"a.weight": torch.ones(3, 4, dtype=torch.bfloat16), "a.bias": torch.eye(3).to_sparse()},
        {"a.weight": torch.empty(3, 4, device="meta")},
        [1, "a"],
        torch.nn.Linear(2, 2),
        {1: torch.ones(2)},
    ]
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


RUN: dict[str, bytes] = {}  # file → bytes of a finished run and of checkpoints


def make_run(work: Path) -> None:
    """Make a run on tiny pictures, and the files of an unfinished run."""
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

    save_file(timm.create_model("test_resnet", pretrained=False).state_dict(), work / "w.safetensors")
    settings = {
        "source.weights": str(work / "w.safetensors"),
        "source.image_size": 32,
        "fit.epochs": 1,
        "fit.batch_size": 8,
        "run.threads": 1,
        "run.workers": 0,
        "run.cache": "off",
    }
    run = regraft.fit(data, source="timm:test_resnet", out=work / "run", settings=settings).path
    record = {"count": 1, "arm": "seed 0", "at": {"step": 3, "epoch": 1}, "about": {"history": 0, "seconds": {}}}
    checkpoints.write(run / "checkpoints" / "step-00000003", record, STATE)
    checkpoints.write(run / "checkpoints" / "done-probe", {"count": 0, "part": "probe", "about": {}}, STATE)
    locks.take(run / "lock")
    (run / "resumes.jsonl").write_text('{"time": "now", "changes": []}\n', encoding="utf-8")
    for path in sorted(run.rglob("*")):
        if path.is_file():
            RUN[path.relative_to(run).as_posix()] = path.read_bytes()


def damaged(data: bytes, name: str, rng: random.Random) -> bytes:
    """Return a run's file, damaged as its kind allows."""
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
    """Write the files. Broken ones are damaged or, one time in twenty, left out."""
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
        if rng.random() < 0.7:  # correct the checksums, so that only the content is wrong
            for place in places:
                at = folder / "run" / place
                names = [n for n in (checkpoints.TENSORS, checkpoints.RECORD) if (at / n).exists()]
                lines = [f"{file_digest(at / n)}  {n}\n" for n in names]
                (at / checkpoints.MANIFEST).write_text("".join(lines), encoding="utf-8")

    return make


def read_a_run(folder: Path) -> None:
    """Read a run as predict, evaluate, compare, list and a source do."""
    run = folder / "run"
    with Passing():
        found = regraft.Run.read(run)
        str(found), found.test, found.val, found.gain, found.verdict
    with Passing():
        regraft.pipeline.predictor.plan_of(run)
    with Passing():
        read_judgement(run)
    with Passing():
        from regraft.commands.listing import listing

        listing(str(folder), False)
    with Passing():
        locks.find_holder(run / "lock")
        runfiles.can_resume(run)
        list(runfiles.RunFolder(run).resumes())


def read_for_a_report(folder: Path) -> None:
    from regraft.report.render import report

    report([folder / "run"], folder / "report.html")


def read_a_model(folder: Path) -> None:
    regraft.load(folder / "run")


def read_checkpoints(folder: Path) -> None:
    keeper = checkpoints.CheckpointManager(folder / "run" / "checkpoints")
    keeper.scan()
    keeper.latest("seed 0")
    keeper.done("probe")


CACHED = {f"{i:064x}": torch.full((2, 3), float(i)) for i in range(6)}  # sha256 of the content → features
SHOWN = {name: torch.full((3, 4, 5 + i), i, dtype=torch.uint8) for i, name in enumerate(CACHED)}
ENTRIES: dict[str, bytes] = {}  # file → bytes of an entry of each kind


def make_entries(work: Path) -> None:
    cache = FeatureCache(work / "cache", 10**9)
    cache.write("features", [([name], rows[None]) for name, rows in CACHED.items()])
    picture_cache.write(cache, "pictures", iter(SHOWN.items()))
    for path in sorted(cache.root.rglob("*.*")):
        ENTRIES[path.relative_to(cache.root).as_posix()] = path.read_bytes()


def a_cache(folder: Path, rng: random.Random) -> None:
    """Write entries of the cache with a file or two damaged or gone."""
    broken = set(rng.sample(list(ENTRIES), rng.choice((1, 1, 2))))
    put(folder, ENTRIES, broken, rng)


def read_a_cache(folder: Path) -> None:
    """Check that an entry holds the values that were written, or is absent."""
    cache = FeatureCache(folder, 10**9)
    try:
        entry = cache.open("features")
    except OSError:  # no regular file
        entry = None
    for name, rows in CACHED.items() if entry else ():
        assert entry is not None and torch.equal(entry.batch([name])[0], rows), "other features"
    try:
        kept = cache.read("pictures", picture_cache.DecodedImages.of)
    except OSError:
        kept = None
    for name, picture in SHOWN.items() if kept else ():
        assert kept is not None
        found = kept.get(name)
        assert found is None or torch.equal(found, picture), "another picture"


FOLDERS: dict[str, dict[str, bytes]] = {}  # "bert" or "vit" → file → bytes


def make_folders(work: Path) -> None:
    import transformers
    from transformers.utils import logging

    logging.disable_progress_bar()
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "good", "bad", "day"]
    sides: dict[str, Any] = {"hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 8}
    text = transformers.BertConfig(vocab_size=len(words), max_position_embeddings=16, **sides)
    transformers.BertForSequenceClassification(text).save_pretrained(work / "bert")
    (work / "bert" / "vocab.txt").write_text("\n".join(words), encoding="utf-8")
    settings = {"tokenizer_class": "BertTokenizer", "model_max_length": 16}
    (work / "bert" / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    transformers.ViTForImageClassification(
        transformers.ViTConfig(image_size=8, patch_size=4, num_labels=3, **sides)
    ).save_pretrained(work / "vit")
    settings = {
        "size": {"height": 8, "width": 8},
        "image_mean": [0.5] * 3,
        "image_std": [0.5] * 3,
        "resample": 3,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
    }
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
        "plan": Reader(file_of("plan.toml", plans, lambda r: as_toml(altered(plan, r), r)), read_a_plan),
        "csv": Reader(file_of("t.csv", [csv_seed], lambda r: as_csv(ROWS, r)), rows_in("t.csv")),
        "jsonl": Reader(file_of("t.jsonl", [json_seed], lambda r: as_lines(lines, r)), rows_in("t.jsonl")),
        "parquet": Reader(file_of("t.parquet", tables, parquet), rows_in("t.parquet")),
        "picture": Reader(file_of("picture", pictures, None), read_a_picture),
        "folder": Reader(a_folder(pictures), read_a_folder),
        "safetensors": Reader(file_of("weights", [save(STATE)], safetensors), read_weights),
        "torch weights": Reader(file_of("weights", torch_seeds(), None), read_weights),
        "run files": Reader(a_run(lambda n: not n.startswith(("model/m", "frontier", "checkpoints"))), read_a_run),
        "report": Reader(a_run(lambda n: not n.startswith(("model/m", "frontier", "checkpoints"))), read_for_a_report),
        "run model": Reader(a_run(lambda n: n.startswith("model/")), read_a_model),
        "checkpoints": Reader(a_run(lambda n: n.startswith("checkpoints/")), read_checkpoints),
        "cache": Reader(a_cache, read_a_cache),
        "transformers": Reader(a_transformers_folder, read_a_transformers_folder),
    }
