"""Reports of real runs: pictures, texts, several side by side, and a point chosen without training."""

from __future__ import annotations

import base64
import csv
import io
import json
import re
from html import unescape
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import regraft
from regraft.runs.folder import read_json


@pytest.fixture(scope="module")
def run(weights: Path, make_pictures: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    here = tmp_path_factory.mktemp("report")
    data = make_pictures(here / "noisy", noise=170)
    names = sorted(p.name for p in (data / "test").iterdir())
    for name, other in zip(names, [*names[1:], names[0]], strict=True):  # so that some are wrong
        (data / "test" / name / "000.png").rename(data / "test" / other / "moved.png")
    plan = {
        "source.weights": str(weights),
        "source.image_size": 32,
        "run.threads": 1,
        "fit.epochs": 4,
        "fit.batch_size": 16,
        "fit.lr": 1e-3,
        "fit.head_lr": 1e-3,
        "fit.allow_large_lr": True,
    }
    regraft.fit(data, source="timm:test_resnet", out=here / "run", settings=plan)
    return here / "run"


def section(html: str, name: str) -> str:
    found = re.search(rf'<section id="{name}".*?</section>', html, re.S)
    assert found is not None, name
    return " ".join(unescape(found[0]).split())


def test_the_gallery_is_of_the_surest_wrong_answers(run: Path, cli: Any) -> None:
    code, out, err = cli("report", run)
    assert code == 0 and out.strip() == str(run / "report.html"), err
    html = (run / "report.html").read_text(encoding="utf-8")
    with (run / "predictions.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    wrong = [r for r in rows if r["label"] != r["predicted"]]
    assert wrong, "no row is wrong, so nothing is tested"
    wrong.sort(key=lambda r: -float(r[f"p({r['predicted']})"]))
    gallery = read_json(run, "gallery/gallery.json", Any)
    assert [e["id"] for e in gallery] == [r["id"] for r in wrong][:24]
    shown = section(html, "errors")
    places = [shown.index(e["where"]) for e in gallery]
    assert places == sorted(places)
    pictures = re.findall(r'src="data:image/jpeg;base64,([^"]+)"', shown)
    assert len(pictures) == len(gallery)
    with Image.open(io.BytesIO(base64.b64decode(pictures[0]))) as made:
        assert made.size == (32, 32)
    assert str(run.parent) not in html


@pytest.fixture
def fit(weights: Path, make_pictures: Any, tmp_path: Path) -> Any:
    """A fit of pictures by colour, one of train and one of test under a wrong name."""

    def call(**more: Any) -> Any:
        data = make_pictures(tmp_path / "data")
        for split in ("train", "test"):
            (data / split / "amber" / "000.png").rename(data / split / "navy" / "wrong.png")
        plan = {"source.weights": str(weights), "source.image_size": 32, "run.threads": 1, "fit.epochs": 1}
        return regraft.fit(data, source="timm:test_resnet", out=tmp_path / "run", settings=plan | more)

    return call


def test_labels_that_are_probably_wrong_are_shown(fit: Any) -> None:
    run = fit()
    found = read_json(run.path, "gallery/suspects.json", Any)
    assert found["why not"] == "" and found["count"] == len(found["rows"]) >= 2
    assert found["of"] == sum(count for _, count in run.result.rows)
    first = {r["where"]: r for r in found["rows"][:2]}
    assert sorted(first) == ["test/navy/wrong.png", "train/navy/wrong.png"]
    for where, row in first.items():
        assert (row["truth"], row["predicted"]) == ("navy", "amber")
        assert row["probability of truth"] < 0.5 < row["probability"]
        assert row["split"] in ("val" if where.startswith("train") else "", where.split("/")[0])
    words = section(run.report().read_text(encoding="utf-8"), "suspects")
    assert f"{found['count']} of {found['of']} rows" in words
    assert "train/navy/wrong.png" in words and words.count("data:image/jpeg") == found["count"]


def test_the_probe_that_judges_a_row_did_not_see_it(fit: Any, monkeypatch: Any) -> None:
    """Nor one of equal content; every row is judged once, at the run's own strength."""
    from regraft.pipeline import gallery as suspects

    parts: list[tuple[set[str], set[str]]] = []
    fit_probe = suspects.fit_probe

    def watched(rows: Any, task: Any, strengths: Any) -> Any:
        probe = fit_probe(rows, task, strengths)
        parts.append((set(rows.ids), set(strengths)))
        return probe

    monkeypatch.setattr(suspects, "fit_probe", watched)
    run = fit()
    with (run.path / "manifest.jsonl").open(encoding="utf-8") as file:
        every = {json.loads(line)["id"] for line in file}
    left = [every - ids for ids, _ in parts]
    assert len(parts) == 5 and all(left) and sorted(i for p in left for i in p) == sorted(every)
    assert {s for _, used in parts for s in used} == {run.result.probe.strength}


def test_where_nobody_looks_for_wrong_labels_it_is_said(fit: Any, monkeypatch: Any) -> None:
    from regraft.pipeline import gallery as suspects

    monkeypatch.setattr(suspects, "MOST", 10)
    run = fit()
    assert "more than the 10 that a fit looks at" in section(run.report().read_text(encoding="utf-8"), "suspects")


@pytest.mark.parametrize("where", ["ranked", "shown"])
def test_a_fit_is_not_lost_where_its_labels_cannot_be_judged(fit: Any, monkeypatch: Any, where: str) -> None:
    from regraft.pipeline import gallery as suspects

    def fails(*_: Any) -> None:
        raise ValueError("a class is missing")

    monkeypatch.setattr(suspects, where, fails)
    run = fit()
    found = read_json(run.path, "gallery/suspects.json", Any)
    assert (found["count"], found["of"], found["rows"]) == (0, 0, [])
    assert run.result.status == "finished"
    assert "a class is missing" in (run.path / "log.txt").read_text(encoding="utf-8")
    words = section(run.report().read_text(encoding="utf-8"), "suspects")
    assert "could not be judged (ValueError: a class is missing)" in words


def test_a_class_that_is_one_group_is_not_taken_for_mislabelled() -> None:
    """The fold that judges it has nothing to learn it from."""
    from types import SimpleNamespace

    import torch

    from regraft.data.types import Example
    from regraft.model.forward import Outputs
    from regraft.pipeline.gallery import out_of_fold
    from regraft.tasks.classification import Classification

    names = [c for c in "abc" for _ in range(20)]
    rows = [
        Example(f"{i:016x}-0", (f"{i}",), (c,), f"row {i}", group="one" if c == "a" else f"g{i}")
        for i, c in enumerate(names)
    ]
    task = Classification().make([(c,) for c in names], ("label",))
    noise = torch.randn(60, 5, generator=torch.Generator().manual_seed(0)) / 10
    values = torch.eye(3).repeat_interleave(20, 0) @ torch.eye(3, 5) + noise
    every = Outputs(tuple(e.id for e in rows), values, task.encode([e.cells for e in rows]))
    p: Any = SimpleNamespace(task=task, splits=SimpleNamespace(train=rows, val=(), test=()))
    found = out_of_fold(p, every, 1e-3)
    assert found is not None and set(found) == {e.id for e in rows if e.cells != ("a",)}
    label = {e.id: task.classes.index(e.cells[0]) for e in rows}
    assert all(said[label[name]] > 0.5 for name, said in found.items())
    rows[:] = [Example(e.id, e.inputs, e.cells, e.where, group="all") for e in rows]
    assert out_of_fold(p, every, 1e-3) is None
    rows[:] = [Example(e.id, e.inputs, e.cells, e.where, group=f"site {i % 3}") for i, e in enumerate(rows)]
    found = out_of_fold(p, every, 1e-3)  # three folds, not five
    assert found is not None and len(found) == 60
    for i, e in enumerate(rows):  # one content twenty times over, as one group is
        rows[i] = Example(f"{0:016x}-{i}" if e.cells == ("a",) else e.id, e.inputs, e.cells, e.where)
    every = Outputs(tuple(e.id for e in rows), values, every.targets)
    found = out_of_fold(p, every, 1e-3)
    assert found is not None and set(found) == {e.id for e in rows if e.cells != ("a",)}


def test_blocks_tell_how_far_they_moved(run: Path) -> None:
    import torch
    from safetensors.torch import load_file

    result = read_json(run, "result.json", Any)
    alpha = result["seeds"][0]["alpha"]
    blocks = {b["name"]: b for b in result["blocks"]}
    assert list(blocks)[-1] == "head" and blocks["head"]["drift"] is None  # fresh: no anchor
    start = load_file(run / "frontier" / "start.safetensors")
    now = load_file(run / "model" / "model.safetensors")
    names = [n for n in start if n.startswith(("backbone.conv1.", "backbone.bn1."))]
    kept = [n for n in names if "running" not in n and "num_batches" not in n]
    size = torch.stack([start[n].square().sum() for n in kept]).sum().sqrt()
    moved = torch.stack([(now[n] - start[n]).square().sum() for n in kept]).sum().sqrt()
    first = blocks[next(iter(blocks))]
    assert alpha > 0 and first["drift"] == pytest.approx(float(moved / size), rel=1e-4)


def test_a_point_chosen_without_training_has_a_report_too(run: Path, cli: Any, tmp_path: Path) -> None:
    assert cli("frontier", run, "--out", tmp_path / "other")[0] == 0
    code, _, err = cli("report", tmp_path / "other", "--out", tmp_path / "page.html")
    assert code == 0, err
    html = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "there are no epochs" in section(html, "curves")
    assert not (tmp_path / "other" / "report.html").exists()


def test_several_runs_are_compared_on_one_page(run: Path, cli: Any, tmp_path: Path) -> None:
    assert cli("frontier", run, "--out", tmp_path / "other")[0] == 0
    code, _, err = cli("report", run, tmp_path / "other")
    assert code == 2 and "say which with --out" in err
    code, _, err = cli("report", run, tmp_path / "other", "--out", tmp_path / "page.html")
    assert code == 0, err
    html = (tmp_path / "page.html").read_text(encoding="utf-8")
    first, second = regraft.compare([run, tmp_path / "other"])
    assert second.gain is not None
    words = section(html, "comparison")
    assert str(first.test) in words and f"{second.gain.value:+.3f}" in words
    assert "other: Verdict" in html and "run: Verdict" in html


def test_texts_are_quoted(bert: Path, cli: Any, tmp_path: Path) -> None:
    words = {"good": "good day", "bad": "bad day"}
    for split, n in (("train", 24), ("test", 12)):
        lines = ["text,label"]
        for i in range(n):
            label = ("good", "bad")[i % 2]
            # half of test is labelled against its words, so that it is wrong whatever is learnt
            said = words[label] if split == "train" or i % 4 < 2 else words[("bad", "good")[i % 2]]
            lines.append(f"{said} {i} <b>,{label}")
        (tmp_path / "data").mkdir(exist_ok=True)
        (tmp_path / "data" / f"{split}.csv").write_text("\n".join(lines) + "\n")
    run = regraft.fit(
        tmp_path / "data",
        source=f"transformers:{bert}",
        out=tmp_path / "run",
        settings={"fit.epochs": 1, "run.threads": 1},
    )
    gallery = json.loads((run.path / "gallery" / "gallery.json").read_text(encoding="utf-8"))
    html = run.report(tmp_path / "page.html").read_text(encoding="utf-8")
    assert gallery and all(e["picture"] is None and e["text"].endswith("<b>") for e in gallery)
    assert f"<blockquote>{gallery[0]['text']}</blockquote>" in section(html, "errors")  # unescaped
    assert "<b>,"[:3] not in re.sub(r"<b>\w+</b>", "", html.split('id="errors"')[1].split("</section>")[0])
