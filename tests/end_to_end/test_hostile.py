"""Input that means harm, through the command line: refused, no file touched, little memory taken."""

from __future__ import annotations

import io
import json
import os
import pickle
import resource
import shutil
import struct
import tarfile
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from builders import tiny_source

MEMORY = 300_000  # KiB that a refusal may take


def state_of(folder: Path) -> dict[str, Any]:
    """Every name below, with what it is, when it was written and what it holds."""
    found: dict[str, Any] = {}
    for path in sorted(folder.rglob("*")):
        entry = path.lstat()
        content = path.read_bytes() if path.is_file() and not path.is_symlink() else None
        target = path.readlink() if path.is_symlink() else None
        found[str(path.relative_to(folder))] = (entry.st_mode, entry.st_mtime_ns, content, target)
    return found


@pytest.fixture
def harmless(cli, tmp_path):
    """Run a command that must be refused; → what it said. Nothing below tmp_path may change."""

    def run(code: int, *args: object) -> str:
        before, used = state_of(tmp_path), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        found, out, err = cli(*args)
        assert found == code, (out, err)
        assert "Traceback" not in err and "unexpected" not in err
        assert state_of(tmp_path) == before
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - used < MEMORY
        return str(out + err)

    return run


@pytest.fixture
def data(pictures, tmp_path) -> Path:
    return Path(shutil.copytree(pictures, tmp_path / "data"))


# ---------------------------------------------------------------- a malicious pickle


class Evil:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.write_text, (self.path, "executed")


@pytest.fixture(params=["zip", "bare", "in a run"])
def evil(request, tmp_path) -> Path:
    path = tmp_path / "weights.safetensors"  # its name lies
    if request.param == "bare":
        path.write_bytes(pickle.dumps({"conv1.weight": Evil(tmp_path / "trace")}))
    else:
        torch.save({"conv1.weight": Evil(tmp_path / "trace")}, path)
    return path


@pytest.mark.fault(68)
@pytest.mark.parametrize("command", ["fit", "plan", "check"])
def test_a_malicious_pickle_as_weights(harmless, evil, data, tmp_path, command):
    more = ["--out", tmp_path / "run"] if command == "fit" else []
    said = harmless(4, command, data, *tiny_source(evil), *more)
    assert "refused, nothing executed" in said and "save_file" in said


@pytest.mark.fault(68)
def test_a_malicious_pickle_in_a_run_and_in_a_folder(harmless, evil, data, bert, tmp_path):
    run = tmp_path / "theirs"
    (run / "model").mkdir(parents=True)
    recipe = {
        "source": "timm",
        "architecture": "test_resnet",
        "num_classes": 0,
        "licence": "",
        "image": {"size": [32, 32], "resize": 32, "interpolation": "bilinear", "mean": [0.5] * 3, "std": [0.5] * 3},
    }
    task = {"task": "classification", "classes": ["a", "b"], "primary": "accuracy"}
    config = {"schema": 1, "recipe": recipe, "features": 1, "task": task}
    (run / "model/config.json").write_text(json.dumps(config))
    (run / "model/labels.json").write_text(json.dumps(task))
    shutil.copy(evil, run / "model/model.safetensors")
    picture = data / "test/amber/000.png"
    assert "refused, nothing executed" in harmless(4, "predict", run, picture)
    args = ["fit", data, "--source", run, "--out", tmp_path / "run"]
    assert "refused, nothing executed" in harmless(4, *args)
    folder = tmp_path / "bert"
    shutil.copytree(bert, folder)
    (folder / "model.safetensors").unlink()
    shutil.copy(evil, folder / "pytorch_model.bin")
    texts = tmp_path / "t.csv"
    texts.write_text("text,label\n" + "".join(f"the film {i},{'ab'[i % 2]}\n" for i in range(60)))
    args = ["fit", texts, "--source", f"transformers:{folder}", "--out", tmp_path / "run"]
    assert "refused, nothing executed" in harmless(4, *args)
    for recipe in ({"source": "os:system"}, {"source": "transformers", "auto": "pipeline", "config": {}}):
        (run / "model/config.json").write_text(json.dumps(config | {"recipe": recipe}))
        harmless(4, "predict", run, picture)


@pytest.mark.fault(74)
def test_weights_that_claim_a_billion_values(harmless, data, weights, tmp_path):
    state = dict(load_file(weights))
    name = next(n for n, t in state.items() if t.ndim == 4)
    torch.save(state | {name: torch.zeros(1).expand(10**5, 3, 100, 100)}, tmp_path / "w.pt")
    said = harmless(4, "fit", data, *tiny_source(tmp_path / "w.pt"), "--out", tmp_path / "run")
    assert f"{name} claims 3,000,000,000 values where the file holds 1" in said


# ---------------------------------------------------------------- pictures that unpack to gigabytes


def png(width: int, height: int, pixels: int) -> bytes:
    """A PNG that claims so many pixels and brings some of them: kilobytes that unpack to gigabytes."""
    size = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = ((b"IHDR", size), (b"IDAT", zlib.compress(bytes(pixels), 9)), (b"IEND", b""))
    parts = [struct.pack(">I", len(d)) + n + d + struct.pack(">I", zlib.crc32(n + d)) for n, d in chunks]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def text_bomb(size: int) -> bytes:
    """A small picture with a compressed text that unpacks to so many bytes."""
    sink = io.BytesIO()
    Image.new("RGB", (32, 32)).save(sink, "PNG")
    whole = sink.getvalue()
    text = b"zTXt" + b"bomb\0\0" + zlib.compress(bytes(size), 9)
    chunk = struct.pack(">I", len(text) - 4) + text + struct.pack(">I", zlib.crc32(text))
    return whole[:33] + chunk + whole[33:]


@pytest.mark.fault(53)
@pytest.mark.parametrize(
    ("bomb", "why"),
    [
        (png(20_000, 60_000, 9_000_000), "it claims more than 50 megapixels"),
        (png(8_000, 8_000, 9_000_000), "8000 × 8000 pixels are more than 50 megapixels"),
        (text_bomb(500_000_000), "Decompressed data too large"),
    ],
    ids=["1200 MP", "64 MP", "text"],
)
def test_a_picture_that_unpacks_to_gigabytes(harmless, data, weights, tmp_path, bomb, why):
    assert len(bomb) < 1_000_000
    (data / "train/amber/bomb.png").write_bytes(bomb)
    said = harmless(3, "fit", data, *tiny_source(weights), "--out", tmp_path / "run")
    assert "1 of 85 pictures cannot be used: train/amber/bomb.png" in said and why in said
    assert why in harmless(3, "check", data)


# ---------------------------------------------------------------- links and paths out of the data


@pytest.mark.fault(55)
def test_links_that_go_round_or_out(cli, harmless, data, weights, tmp_path):
    """They are not followed, said, and not read: the run is that of the folder without them."""
    secret = tmp_path / "secret"
    secret.mkdir()
    Image.fromarray(np.full((9, 9, 3), 77, np.uint8)).save(secret / "a.png")
    for split in ("train", "test"):
        (data / split / "amber/round").symlink_to(data / split, target_is_directory=True)
        (data / split / "amber/self.png").symlink_to("self.png")
        (data / split / "amber/out").symlink_to(secret, target_is_directory=True)
        (data / split / "amber/out.png").symlink_to(secret / "a.png")
        (data / split / "amber/devices").symlink_to("/dev", target_is_directory=True)
    os.mkfifo(data / "train/amber/pipe.png")  # opened, it would never end
    said = harmless(0, "check", data, "--json")
    assert all(name in said for name in ("out.png", "self.png", "pipe.png", "devices", "round"))
    before = state_of(data) | state_of(secret)
    args = [*tiny_source(weights), "--epochs", 1, "--set", "run.threads=1", "-q"]
    code, _, err = cli("fit", data, *args, "--out", tmp_path / "run")
    assert code == 0, err
    assert state_of(data) | state_of(secret) == before
    rows = (tmp_path / "run/manifest.jsonl").read_text().splitlines()
    assert len(rows) == 84 and not [r for r in rows if "out" in json.loads(r)["where"]]
    log = (tmp_path / "run/log.txt").read_text()
    assert "8 links out of" in log and "3 files of" in log
    (data / "train/devices").symlink_to("/dev", target_is_directory=True)  # it would be a class
    refused = cli("fit", data, *args, "--out", tmp_path / "other")
    assert refused[0] == 3 and "train/devices (a link to a folder)" in refused[2]


OUTSIDE = ["../secret.png", "/etc/passwd", "amber/../../secret.png", "link.png", "round.png", "links/secret.png"]


@pytest.mark.fault(55)
@pytest.mark.parametrize("name", OUTSIDE)
@pytest.mark.parametrize("root", [True, False])
def test_a_plan_with_a_path_outside_the_data_root(harmless, data, weights, tmp_path, name, root):
    Image.fromarray(np.full((9, 9, 3), 77, np.uint8)).save(tmp_path / "secret.png")
    place = data / "train"
    (place / "link.png").symlink_to(tmp_path / "secret.png")
    (place / "round.png").symlink_to("round.png")
    (place / "links").symlink_to(tmp_path, target_is_directory=True)
    table = (tmp_path if root else place) / "labels.csv"
    good = [f"{c}/{i:03d}.png,{c}" for c in ("amber", "navy") for i in range(20)]
    table.write_text("\n".join(["image,label", *good, f"{name},amber"]) + "\n")
    plan = tmp_path / "plan.toml"
    lines = [
        "[source]",
        'ref = "timm:test_resnet"',
        f'weights = "{weights}"',
        "image_size = 32",
        "[data]",
        f'path = "{table}"',
        f'image_root = "{place}"' if root else "",
        "[run]",
        f'out = "{tmp_path / "run"}"',
    ]
    plan.write_text("\n".join(lines))
    for command in ("fit", "plan", "check"):
        said = harmless(3, command, plan)
        assert "labels.csv row 42" in said
        words = {"round.png": "leads nowhere", "link.png": "is a link out of"}
        words["links/secret.png"] = words["link.png"]
        assert words.get(name, "lies outside") in said


# ---------------------------------------------------------------- archives


def archive(folder: Path, kind: str) -> Path:
    """With members that climb out, link out, and unpack to more than they are."""
    path = folder / f"flowers.{kind}"
    if kind == "zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
            file.writestr("../../climbed.txt", "out")
            file.writestr("train/a/bomb.png", bytes(50_000_000))
        return path
    with tarfile.open(path, "w:" + kind.partition(".")[2]) as file:
        link = tarfile.TarInfo("train/a/link.png")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        file.addfile(link)
        member = tarfile.TarInfo("/tmp/climbed.txt")
        member.size = 3
        file.addfile(member, io.BytesIO(b"out"))
    return path


@pytest.mark.fault(61)
@pytest.mark.parametrize("kind", ["zip", "tar", "tar.gz", "tar.bz2", "tar.xz"])
@pytest.mark.parametrize("named", [True, False])
def test_an_archive_is_not_opened_and_the_remedy_said(harmless, weights, tmp_path, kind, named):
    path = archive(tmp_path, kind)
    if not named:
        path = path.rename(tmp_path / "flowers.csv")  # what it is decides, not what it is called
    for command, more in (("fit", ["--out", tmp_path / "run"]), ("check", [])):
        said = harmless(3, command, path, *tiny_source(weights), *more)
        word = kind if "." not in kind else {"gz": "gzip", "bz2": "bzip2", "xz": "xz"}[kind[4:]]
        assert f"is an archive ({word})" in said and "unpack it" in said


@pytest.mark.fault(61)
def test_an_archive_inside_of_a_folder_is_left_out_and_said(harmless, data, tmp_path):
    shutil.move(archive(tmp_path, "zip"), data / "train/amber/more.zip")
    assert "more.zip" in harmless(0, "check", data)
