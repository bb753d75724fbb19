"""Exports: each is the run again, checked by its own card's lines in a process without regraft."""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections import Counter
from functools import cache, partial
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import regraft
from regraft import plugins
from regraft.errors import ExportError, UsageError
from regraft.plan.read import check
from regraft.plan.write import write_plan
from regraft.publish import export as exporting
from regraft.publish.export import folded
from regraft.publish.model_card import card
from regraft.report.reading import RunFiles
from regraft.runs.estimates import Estimate
from result_json import abstention

pytestmark = pytest.mark.usefixtures("fast_processes")  # a card's lines run in one each

QUICK = {"fit.epochs": 1, "fit.batch_size": 16, "run.threads": 1}


def varied(folder: Path) -> None:
    """Pictures of many shapes, grey ones, see-through ones and ones that lie on their side, and of
    colours that are hard to tell: where every probability is 0 or 1, no difference would show."""
    rng = np.random.default_rng(0)
    for i, path in enumerate(sorted(folder.rglob("*.png"))):
        size = tuple(int(side) for side in rng.integers(20, 90, 2))
        picture = Image.open(path).resize(size, Image.Resampling.BICUBIC)
        veil = Image.new("RGB", size, tuple(int(c) for c in rng.integers(0, 256, 3)))
        picture = Image.blend(picture, veil, float(rng.uniform(0.4, 0.9)))
        exif = Image.Exif()
        exif[0x0112] = 6 if i % 5 == 1 else 1  # orientation
        if i % 5 == 2:
            picture = picture.convert("L")
        if i % 5 == 3:
            picture.putalpha(Image.linear_gradient("L").resize(size))
        picture.save(path, exif=exif)


@pytest.fixture(scope="module")
def runs(make_pictures, weights, bert, tmp_path_factory) -> dict[str, Path]:
    """Photos, numbers of photos, and texts on a plain BERT and on one with its own head."""
    import transformers

    folder = tmp_path_factory.mktemp("runs")
    threads = torch.get_num_threads()
    pictures = make_pictures(folder / "colours")
    varied(pictures)
    photo = QUICK | {"source.weights": str(weights), "source.image_size": 32}
    regraft.fit(pictures, source="timm:test_resnet", out=folder / "photo", settings=photo)

    numbers = pictures / "numbers.csv"
    with numbers.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["image", "split", "red"])
        for path in sorted(pictures.rglob("*.png")):
            value = 1000 + 7 * ["amber", "navy", "olive"].index(path.parent.name)
            writer.writerow([path, path.parent.parent.name, value + int(path.stem) % 3])
    regraft.fit(
        numbers,
        source="timm:test_resnet",
        out=folder / "number",
        task={"name": "regression"},
        settings=photo | {"data.image": "image", "data.label": ["red"]},
    )

    texts = folder / "texts.csv"
    with texts.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["text", "label", "split"])
        rng = np.random.default_rng(0)
        for i in range(80):
            words = rng.choice(["good", "bad", "day", "film"], int(rng.integers(1, 40)))
            good = (words == "good").sum() > (words == "bad").sum()
            label = "good" if good ^ (rng.random() < 0.3) else "bad"
            writer.writerow([" ".join(words), label, "test" if i > 59 else "train"])
    headed = folder / "bert-headed"
    shutil.copytree(bert, headed)
    torch.manual_seed(0)
    config = transformers.AutoConfig.from_pretrained(bert)
    transformers.BertForSequenceClassification(config).save_pretrained(headed)
    for name, source in (("plain", bert), ("headed", headed)):
        regraft.fit(texts, source=f"transformers:{source}", out=folder / name, settings=QUICK)
    torch.set_num_threads(threads)
    return {n: folder / n for n in ("photo", "number", "plain", "headed")}


@pytest.fixture(scope="module")
def more_runs(make_pictures, weights, bert, tmp_path_factory) -> dict[str, Path]:
    """A ViT with and without a crop, grey pictures, pairs of texts with several labels, LoRA."""
    import transformers

    folder = tmp_path_factory.mktemp("more")
    threads = torch.get_num_threads()
    pictures = make_pictures(folder / "colours")
    varied(pictures)
    crop = {"size": {"shortest_edge": 37}, "do_center_crop": True, "crop_size": 32}
    for name, how in (("vit", {"size": {"height": 32, "width": 32}}), ("vit-crop", crop)):
        torch.manual_seed(0)
        config = transformers.ViTConfig(
            hidden_size=16,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=24,
            image_size=32,
            patch_size=8,
        )
        source = folder / f"{name}-source"
        transformers.ViTForImageClassification(config).save_pretrained(source)
        settings = how | {"image_mean": [0.5] * 3, "image_std": [0.4] * 3, "resample": 3}
        (source / "preprocessor_config.json").write_text(json.dumps(settings))
        regraft.fit(pictures, source=f"transformers:{source}", out=folder / name, settings=QUICK)
    grey = QUICK | {"source.weights": str(weights), "source.image_size": 32, "source.in_channels": 1}
    regraft.fit(pictures, source="timm:test_resnet", out=folder / "grey", settings=grey)

    pairs = folder / "pairs.csv"
    with pairs.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["a", "b", "tags", "split"])
        rng = np.random.default_rng(0)
        for i in range(80):
            a, b = (rng.choice(["good", "bad", "day"], int(rng.integers(1, 30))) for _ in range(2))
            tags = [w for w in ("good", "bad") if w in a[:3] and rng.random() < 0.7]
            writer.writerow([" ".join(a), " ".join(b), ";".join(tags), "test" if i > 59 else "train"])
    regraft.fit(
        pairs,
        source=f"transformers:{bert}",
        out=folder / "pair",
        task={"name": "multilabel"},
        settings=QUICK | {"data.text": ["a", "b"], "data.label": ["tags"]},
    )
    regraft.fit(
        pairs,
        source=f"transformers:{bert}",
        out=folder / "lora",
        task={"name": "multilabel"},
        freezing={"name": "lora"},
        settings=QUICK | {"data.text": ["a", "b"], "data.label": ["tags"]},
    )
    torch.set_num_threads(threads)
    return {n: folder / n for n in ("vit", "vit-crop", "grey", "pair", "lora")}


ONCE = [  # every format
    ("photo", "timm"),
    ("photo", "torch"),
    ("number", "bundle"),
    ("number", "onnx"),
    ("plain", "transformers-features"),
    ("headed", "transformers"),
]
WAYS = [
    *ONCE,
    *(
        pytest.param(run, to, marks=pytest.mark.slow)
        for run, to in (
            ("photo", "bundle"),
            ("photo", "onnx"),
            ("number", "timm"),
            ("number", "torch"),
            ("plain", "bundle"),
            ("plain", "onnx"),
            ("plain", "torch"),
            ("headed", "bundle"),
            ("headed", "onnx"),
            ("headed", "torch"),
        )
    ),
]


def code_in(card: Path) -> list[str]:
    """Every block of code of a card, as a reader of Markdown sees them."""
    from markdown_it import MarkdownIt

    return [t.content for t in MarkdownIt().parse(card.read_text()) if t.type == "fence"]


def written(run: Path) -> dict[str, np.ndarray]:
    with (run / "predictions.csv").open(newline="") as file:
        return {r[0]: np.array(r[4:], dtype=float) for r in list(csv.reader(file))[1:]}


@pytest.mark.parametrize("run", ["photo", "plain", "headed"])
def test_probabilities_are_such_that_a_difference_would_show(runs, run):
    likeliest = [row.max() for row in written(runs[run]).values()]
    assert np.median(likeliest) < 0.95


@pytest.fixture(scope="module")
def exported(runs, tmp_path_factory):
    """regraft.export of a run, made once for the tests that look at it."""

    @cache
    def make(run: str, to: str, **how) -> exporting.Exported:
        return regraft.export(runs[run], to, tmp_path_factory.mktemp("exports") / "out", **how)

    return make


@pytest.mark.parametrize(("run", "to"), WAYS)
def test_an_export_is_the_run(runs, exported, run, to):
    if to == "onnx":
        pytest.importorskip("onnxscript")
        pytest.importorskip("onnxruntime")
    done = exported(run, to)
    assert done.parity.rows == "test rows"
    assert done.parity.n == len(written(runs[run]))
    if run == "number":
        assert done.parity.same is None  # a number has no answer beside itself
    else:
        assert done.parity.same + done.parity.ties == done.parity.n
    # independent of what was compared inside: the run's own file
    assert done.parity.from_file is not None
    assert done.parity.from_file < 1e-4
    assert code_in(done.path / "README.md") == [done.code.strip() + "\n"]
    assert [p.name for p in done.path.parent.iterdir()] == ["out"]  # nothing beside it
    for path in done.path.rglob("*"):  # no folder above a file is told
        if path.suffix in (".md", ".json", ".toml"):
            assert str(runs[run].parent) not in path.read_text(), path


@pytest.mark.slow
@pytest.mark.fresh_process
@pytest.mark.parametrize(("run", "to"), ONCE)
def test_a_cards_lines_run_in_a_process_from_nothing(runs, run, to, tmp_path):
    assert regraft.export(runs[run], to, tmp_path / "out").parity.from_file < 1e-4


MORE = [
    ("vit", "transformers"),
    ("vit", "onnx"),
    ("vit", "torch"),
    ("vit-crop", "transformers"),
    ("grey", "timm"),
    ("grey", "onnx"),
    ("grey", "torch"),
    ("pair", "transformers-features"),
    ("pair", "onnx"),
    ("pair", "bundle"),
    ("lora", "transformers-features"),
    ("lora", "torch"),
]


@pytest.mark.slow
@pytest.mark.parametrize(("run", "to"), MORE)
def test_other_networks_and_tasks_leave_as_they_are(more_runs, run, to, tmp_path):
    if to == "onnx":
        pytest.importorskip("onnxscript")
        pytest.importorskip("onnxruntime")
    done = regraft.export(more_runs[run], to, tmp_path / "out")
    assert done.parity.rows == "test rows"
    assert done.parity.n == len(written(more_runs[run]))
    assert done.parity.from_file < 1e-4


def test_the_card_has_the_evidence(runs, exported):
    from huggingface_hub import ModelCard

    card = ModelCard.load(exported("photo", "timm").path / "README.md")
    result = json.loads((runs["photo"] / "result.json").read_text())
    figures = {e.metric_type: e.metric_value for e in card.data.eval_results}
    assert figures == {k: e["value"] for k, e in result["test"].items() if e["value"] is not None}
    e = Estimate(**result["test"]["accuracy"])
    for words in (str(e), "TRANSFER not measured", "amber, navy, olive", "24 of test", "a proxy"):
        assert words in card.content, words


def test_a_bundle_is_a_run_without_its_data(runs, exported):
    out = exported("number", "bundle").path
    names = {str(p.relative_to(out)) for p in out.rglob("*") if p.is_file()}
    own = {"README.md", "export.json", "plan.toml", "result.json", "model/model.safetensors"}
    assert own <= names
    assert "predictions.csv" not in names
    before, after = (f / "model" / "model.safetensors" for f in (runs["number"], out))
    assert before.read_bytes() == after.read_bytes()


def test_a_difference_aborts_and_leaves_nothing(runs, tmp_path, monkeypatch):
    """A patched op: what is written has one bias that the run has not."""
    timm = plugins.module("exports", "timm")
    right = timm.write

    def wrong(package, folder):
        with torch.no_grad():
            package.model.get_submodule("head").bias[1] += 0.01
        return right(package, folder)

    monkeypatch.setattr(timm, "write", wrong)
    with pytest.raises(ExportError, match=r"(?s)not the run.*largest difference.*by the export") as e:
        regraft.export(runs["photo"], to="timm", out=tmp_path / "out")
    assert e.value.exit_code == 7
    assert list(tmp_path.iterdir()) == []


def test_a_fault_of_an_exporter_is_a_sentence(runs, tmp_path, monkeypatch, cli):
    def broken(package, folder):
        (folder / "model.pt2").write_text("half")
        raise TypeError("an op that is not supported\nand a page of advice")

    monkeypatch.setattr(plugins.module("exports", "torch"), "write", broken)
    code, _, said = cli("export", runs["photo"], "--to", "torch", "--out", tmp_path / "out")
    assert code == 7
    assert said.count("\n") == 1
    assert "an op that is not supported" in said
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_is_refused_with_the_way_that_can(runs, tmp_path, cli):
    code, _, said = cli("export", runs["plain"], "--to", "transformers", "--out", tmp_path / "out")
    assert code == 2
    assert "--to transformers-features" in said
    for run, to in (("photo", "transformers"), ("plain", "timm")):
        code, _, said = cli("export", runs[run], "--to", to, "--out", tmp_path / "out")
        assert code == 2
        assert "onnx" in said
    code, _, said = cli("export", runs["photo"], "--to", "timn")
    assert code == 2
    assert 'did you mean "timm"?' in said
    code, _, said = cli("export", runs["photo"], "--to", "bundle", "--calibrated")
    assert code == 2
    code, _, said = cli("export", runs["photo"], "--to", "timm", "--int8")
    assert code == 2
    assert not (tmp_path / "out").exists()


def test_an_existing_folder_is_never_overwritten(runs, tmp_path):
    (tmp_path / "out").mkdir()
    with pytest.raises(UsageError, match="exists"):
        regraft.export(runs["photo"], to="bundle", out=tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []


def test_a_missing_extra_names_the_command(runs, tmp_path, monkeypatch):
    monkeypatch.setattr(plugins, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match=re.escape('pip install "regraft[export]"')):
        regraft.export(runs["photo"], to="onnx", out=tmp_path / "out")


def test_calibrated_outputs_are_the_calibrated_probabilities(runs, tmp_path):
    run, temperature = tmp_path / "run", 1.7  # the run's own is 1, which would say nothing
    shutil.copytree(runs["photo"], run, ignore=shutil.ignore_patterns("exports"))
    record = json.loads((run / "result.json").read_text())
    record["calibration"]["temperature"] = temperature
    record["abstention"] = abstention()
    (run / "result.json").write_text(json.dumps(record))
    done = regraft.export(run, to="timm", out=tmp_path / "out", calibrated=True)
    assert done.parity.from_file < 1e-4  # the run's file, cooled independently
    assert f"divided by {temperature:.4g}" in (tmp_path / "out" / "README.md").read_text()
    exported = json.loads((tmp_path / "out" / "export.json").read_text())
    told = exported["sets"]
    accepts = {"max_error": 0.05, "temperature": 1.5 / temperature, "threshold": 0.875}
    assert exported["abstention"] == accepts and "is above 0.875" in (tmp_path / "out" / "README.md").read_text()
    assert told["temperature"] == record["sets"]["temperature"] / temperature  # of the outputs as they are there
    plain, cool = regraft.load(run), regraft.load(run).calibrated()
    pictures = sorted((runs["photo"].parent / "colours" / "test").rglob("*.png"))
    sets = [[(p.classes, p.accepted) for p in model.predict(pictures, sets=True)] for model in (plain, cool)]
    assert sets[0] == sets[1]


def test_the_bound_of_the_sets_travels_with_an_export(runs, exported):
    rule = json.loads((runs["photo"] / "result.json").read_text())["sets"]
    told = json.loads((exported("photo", "torch").path / "labels.json").read_text())["sets"]
    assert told == {name: rule[name] for name in ("coverage", "temperature", "least_probability")}
    assert "## Sets with a guarantee" in (exported("photo", "torch").path / "README.md").read_text()
    for p in regraft.load(runs["photo"]).predict(sorted(runs["photo"].parent.rglob("test/*/*.png")), sets=True):
        powers = {c: v ** (1 / told["temperature"]) for c, v in p.scores.items()}
        inside = {c for c, v in powers.items() if v / sum(powers.values()) >= told["least_probability"]}
        assert set(p.classes) == inside and list(p.classes) == sorted(p.classes, key=lambda c: -p.scores[c])
    numbers = json.loads((runs["number"] / "result.json").read_text())["sets"]
    model = regraft.load(runs["number"])
    for p in model.predict(sorted(runs["photo"].parent.rglob("test/*/0*.png"))[:3], sets=True):
        (value,), (ends,) = p.scores.values(), p.intervals.values()
        assert ends == pytest.approx((value - numbers["half_widths"][0], value + numbers["half_widths"][0]))


def test_without_the_data_inputs_are_generated(runs, tmp_path):
    run = tmp_path / "moved"
    shutil.copytree(runs["headed"], run, ignore=shutil.ignore_patterns("exports"))
    plan = (run / "plan.toml").read_text().replace("texts.csv", "gone.csv")
    (run / "plan.toml").write_text(plan)
    lines = []
    done = regraft.Run.read(run).export("transformers", tmp_path / "out", say=lines.append)
    assert done.parity.rows == "generated inputs"
    assert len(lines) == 3 and "the run's rows are not where they were" in lines[0]
    assert done.parity.from_file is None


def test_int8_is_measured_on_test(exported):
    pytest.importorskip("onnxscript")
    pytest.importorskip("onnxruntime")
    done = exported("headed", "onnx", int8=True)
    assert done.int8 is not None
    assert (done.path / done.int8["file"]).is_file()
    assert done.int8["gain"].n == done.parity.n
    assert done.int8["difference"] > done.parity.difference  # 8 bits are not 32


@pytest.mark.parametrize(
    "head", [nn.Linear(5, 3), nn.Linear(5, 3, bias=False), nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3))]
)
def test_folding_is_the_affine_map(head):
    x = torch.randn(7, 5)
    scale, shift = [2.0, -3.0, 0.5], [100.0, 0.0, -1.0]
    with torch.no_grad():
        wanted = head(x) * torch.tensor(scale) + torch.tensor(shift)
        torch.testing.assert_close(folded(head, scale, shift)(x), wanted, rtol=1e-5, atol=1e-5)


# ---------------------------------------------------------------- a run that means harm


def marked(sentinel: Path, what: str) -> str:
    """A string that is code, YAML, Markdown, HTML or a command wherever it is not escaped."""
    code = f"open({str(sentinel)!r}, 'w').close()"
    return (
        f"{what} \"'`\n\n```python\n{code}\n```\n---\nlicense: mit\n---\n# head | cell [a](b) <script>"
        f"\r\u2028$(touch {sentinel})\x1b[2J\x00\u202e"
    )


@pytest.fixture
def hostile(runs, tmp_path) -> Path:
    """The photo run, with such a string wherever its files may hold one."""
    run = tmp_path / "run `x` \n```python"
    shutil.copytree(runs["photo"], run, ignore=shutil.ignore_patterns("exports"))
    evil = partial(marked, tmp_path / "sentinel")

    def change(name: str, alter) -> None:
        tree = json.loads((run / name).read_text())
        alter(tree)
        (run / name).write_text(json.dumps(tree))

    def of_result(r) -> None:
        r["classes"] = [evil(c) for c in r["classes"]]
        r["test"][evil("metric")] = r["test"]["accuracy"]
        r["controls"][evil("control")] = r["controls"]["majority"]
        r["gain"][evil("control")] = r["gain"]["majority"]
        r["source"] |= {"name": evil("source"), "digest": evil("digest")}
        r["notes"] = [evil("note")]
        r["verdict"]["why"] = evil("why")

    def of_config(c) -> None:
        c["task"]["classes"] = [evil(n) for n in c["task"]["classes"]]
        c["recipe"]["licence"] = evil("licence")

    change("result.json", of_result)
    change(
        "environment.json",
        lambda e: e.update(
            regraft=evil("version"), data_digest=evil("data"), test_digest=evil("test"), versions={evil("a"): evil("b")}
        ),
    )
    change("model/labels.json", lambda t: t.update(classes=[evil(c) for c in t["classes"]]))
    change("model/config.json", of_config)
    plan = tomllib.loads((run / "plan.toml").read_text())
    plan["data"]["path"] = str(tmp_path / "da`ta\n\n```python\n1 / 0\n```\n")
    (run / "plan.toml").write_text(write_plan(check(plan)))
    return run


def test_nothing_of_a_run_is_run_by_its_export(hostile, tmp_path, runs, exported):
    import yaml

    done = regraft.export(hostile, "timm", tmp_path / "out")
    assert not (tmp_path / "sentinel").exists()
    assert done.code == exported("photo", "timm").code
    card = done.path / "README.md"
    assert code_in(card) == [done.code.strip() + "\n"]
    whole = card.read_text()
    body = whole.split("---\n", 2)[2]
    found, usual = (
        yaml.safe_load(t.read_text().split("---\n", 2)[1]) for t in (card, exported("photo", "timm").path / "README.md")
    )
    assert found.keys() == usual.keys()
    assert found["license"] == "other"
    assert all(c.isprintable() or c == "\n" for c in whole)
    kinds = [t.type for t in markdown(body)]
    assert not {"html_block", "html_inline", "link_open", "hr"} & set(kinds)
    usual_kinds = [
        t.type for t in markdown((exported("photo", "timm").path / "README.md").read_text().split("---\n", 2)[2])
    ]
    assert kinds.count("heading_open") == usual_kinds.count("heading_open")
    assert str(tmp_path) + "/run" not in whole


def test_strings_of_a_run_are_no_markup_in_its_report(hostile, runs, tmp_path):
    def tags(run: Path) -> Counter[str]:
        found: Counter[str] = Counter()
        parser = HTMLParser()
        parser.handle_starttag = lambda tag, attributes: found.update(  # type: ignore[method-assign]
            [tag, *(name for name, _ in attributes if name.startswith("on"))]
        )
        parser.feed(regraft.Run.read(run).report(tmp_path / f"{len(run.name)}.html").read_text())
        return found

    mine, usual = tags(hostile), tags(runs["photo"])
    assert mine.keys() <= usual.keys()
    assert (mine["script"], mine["a"]) == (usual["script"], usual["a"])
    assert not (tmp_path / "sentinel").exists()


def markdown(text: str) -> list[Any]:
    """The tokens of a text, inner ones too."""
    from markdown_it import MarkdownIt

    found = MarkdownIt().enable("table").parse(text)
    return [inner for token in found for inner in [token, *(token.children or [])]]


@pytest.mark.parametrize(
    ("file", "keys", "value"),
    [
        ("result.json", ["rows", "test"], {"a": 1}),
        ("result.json", ["test", "accuracy", "n"], "```"),
        ("environment.json", ["regraft"], {"a": ["```"]}),
        ("environment.json", ["data_digest"], 3),
        ("result.json", ["test", "accuracy", "value"], {}),
        ("result.json", ["source", "name"], None),
    ],
)
def test_a_value_of_another_kind_is_a_damaged_run(runs, tmp_path, file, keys, value):
    run = tmp_path / "run"
    shutil.copytree(runs["photo"], run, ignore=shutil.ignore_patterns("exports"))
    tree = json.loads((run / file).read_text())
    node = tree
    for key in keys[:-1]:
        node = node[key]
    node[keys[-1]] = value
    (run / file).write_text(json.dumps(tree))
    with pytest.raises(UsageError, match="damaged"):
        files = RunFiles.read(run)
        predictor = regraft.load(run)
        rows = exporting.rows_for(files, predictor, 2, tmp_path)[0]
        package = exporting.packed(files, predictor, rows, timm_format())
        card(
            files,
            package,
            "timm",
            "pass",
            (),
            {
                "calibrated": False,
                "numbers": False,
                "int8": None,
                "parity": {"n": 1, "rows": "x", "difference": 0.0, "same": 1, "ties": 0},
            },
        )


def timm_format() -> Any:
    return plugins.module("exports", "timm")


def test_class_names_and_escapes_survive_where_paths_are_cut():
    values = {"classes": ["/a\nb/c"], "note": "read /home/me/data/x\n/b", "n": [1, None, "/home/me/y"]}
    found = exporting.brief_values(values)
    assert found["classes"] == ["/a\nb/c"]
    assert "me" not in json.dumps(found) and found["n"][:2] == [1, None]


@pytest.fixture
def asking(runs, tmp_path) -> Path:
    """The plain text run, whose tokenizer asks for code that leaves a trace."""
    run = tmp_path / "asking"
    shutil.copytree(runs["plain"], run, ignore=shutil.ignore_patterns("exports"))
    tokenizer = run / "model" / "tokenizer"
    (tokenizer / "evil.py").write_text(f"open({str(tmp_path / 'sentinel')!r}, 'w').close()\n")
    (tokenizer / "config.json").write_text('{"model_type": "unknown"}')
    asks = {"auto_map": {"AutoTokenizer": ["evil.Evil", None]}}
    (tokenizer / "tokenizer_config.json").write_text(json.dumps(asks))
    return run


def test_a_tokenizer_that_asks_for_code_is_refused(asking, runs, tmp_path, cli, monkeypatch):
    """By every command; standard input, which says yes, is left as it is."""
    lines = tmp_path / "lines.txt"
    lines.write_text("yes\n" * 50)
    table = runs["plain"].parent / "texts.csv"
    commands = [
        ("predict", asking, lines),
        ("evaluate", asking, table),
        ("serve", asking, "--port", 0),
        ("export", asking, "--to", "bundle", "--out", tmp_path / "out"),
        ("fit", table, "--source", asking, "--out", tmp_path / "new"),
        ("plan", table, "--source", asking),
        ("check", table, "--source", asking),
    ]
    with lines.open() as answers:
        monkeypatch.setattr(sys, "stdin", answers)
        for command in commands:
            code, _, said = cli(*command)
            assert code == 4, (command, said)
            assert 'tokenizer_config.json: refused, nothing executed: its "auto_map"' in said, command
        assert answers.buffer.raw.tell() == 0
    with lines.open() as answers:
        done = subprocess.run(
            [sys.executable, "-m", "regraft", "predict", asking, "-"],
            stdin=answers,
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert os.lseek(answers.fileno(), 0, os.SEEK_CUR) == 0, "lines were read"
    assert done.returncode == 4 and "[y/N]" not in done.stdout + done.stderr
    assert not (tmp_path / "sentinel").exists()
    assert not list(tmp_path.rglob("__pycache__")) and not (tmp_path / "new").exists()


def test_lines_of_standard_input_are_predicted_each(runs, cli, tmp_path, monkeypatch):
    lines = tmp_path / "lines.txt"
    lines.write_text("yes\ngood day\nbad film\n")
    with lines.open() as given:
        monkeypatch.setattr(sys, "stdin", given)
        code, out, said = cli("predict", runs["plain"], "-")
    assert code == 0, said
    assert [line.split(",")[0] for line in out.splitlines()] == ["input", "line 1", "line 2", "line 3"]
