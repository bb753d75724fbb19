"""A run that takes frozen blocks from the cache ends where one that computes them does."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from builders import tiny_source
from regraft.data import store as feature_cache
from regraft.data.store import FeatureCache, place_of
from regraft.pipeline import feature_cache as reuse
from regraft.pipeline import job

AS_IT_STANDS = ("--set", "augment.random_resized_crop=false", "--set", "augment.flip=false")
VIEWS = ("--set", "fit.views=3")


@pytest.fixture
def fit(cli, tmp_path):
    def call(data: Any, *args: object) -> tuple[dict[str, torch.Tensor], str]:
        """(weights at the end of the fit, what was said)"""
        out = tmp_path / f"run{len(list(tmp_path.iterdir()))}"
        moving = ("--set", "fit.start=random", "--head-lr", 0.03, "--epochs", 3)
        code, _, err = cli("fit", data, *args, *moving, "--out", out)
        assert code == 0, err
        fits = json.loads((out / "result.json").read_text())["seeds"]
        assert any(f["best_epoch"] > 0 for f in fits)  # else the weights are those of the start
        return load_file(out / "model" / "model.safetensors"), err

    return call


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> None:
    assert list(a) == list(b)
    for name in a:
        torch.testing.assert_close(a[name], b[name], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("given", [AS_IT_STANDS, VIEWS], ids=["plain", "views"])
@pytest.mark.parametrize("freezing", ["head_only", "last_blocks", pytest.param("gradual", marks=pytest.mark.slow)])
def test_pictures(fit, pictures, weights, freezing, given, monkeypatch):
    """As many views as epochs are what live training sees, and gain nothing: so leave is given."""
    monkeypatch.setattr(reuse, "no_gain", lambda *given: "")
    how = (*tiny_source(weights), "--set", f"freezing.name={freezing}", "--seeds", 2, *given)
    live, said = fit(pictures, *how, "--set", "run.cache=off")
    assert "cache" not in said
    first, said = fit(pictures, *how)
    assert "differs" not in said
    if freezing != "head_only":  # whose rows are the probe's features, which are there already
        assert "train below" in said and "val below" in said
    same(first, live)
    again, said = fit(pictures, *how)
    assert "features of train: 48 rows from the feature cache" in said and "kept for" not in said
    assert ("48 rows x 3 views from the feature cache" in said) == (given is VIEWS)
    assert all(torch.equal(again[n], first[n]) for n in first)


def test_texts(fit, bert, tmp_path):
    draw = random.Random(0)
    rows = [
        (f"the {w} {' '.join(draw.choices(['day', 'film', 'was'], k=1 + i % 5))}", label)
        for i in range(40)
        for w, label in (("good", "yes"), ("bad", "no"))
    ]
    table = tmp_path / "t.csv"
    table.write_text("text,label\n" + "".join(f"{t},{label}\n" for t, label in rows))
    how = ("--source", f"transformers:{bert}", "--set", "freezing.name=last_blocks")
    how = (*how, "--set", "freezing.blocks=1")
    live, _ = fit(table, *how, "--set", "run.cache=off")
    kept, said = fit(table, *how)
    assert "differs" not in said and "computed live" not in said
    same(kept, live)
    _, said = fit(table, *how)
    assert "train below" in said and "val below" in said


@pytest.mark.slow
def test_what_is_random_or_looked_at_is_computed_live(fit, pictures, weights):
    how = (*tiny_source(weights), "--set", "freezing.name=last_blocks")
    _, said = fit(pictures, *how, "--seeds", 2)
    assert said.count("computed at every step: each epoch augments anew") == 1
    _, said = fit(pictures, *how, *AS_IT_STANDS, "--set", "regularizers.lwf.strength=1")
    assert "computed at every step: lwf looks at the inputs" in said
    _, said = fit(pictures, *how, *AS_IT_STANDS, "--set", "augment.mixup=0.2")
    assert "computed at every step: MixUp" in said


@pytest.mark.slow
def test_an_entry_that_is_not_what_live_gives_is_not_used(fit, pictures, weights, monkeypatch):
    how = (*tiny_source(weights), "--set", "freezing.name=last_blocks", *AS_IT_STANDS, "--seeds", 2)
    live, _ = fit(pictures, *how, "--set", "run.cache=off")
    fit(pictures, *how)
    right = feature_cache.Entry.batch

    def wrong(self, ids):
        return right(self, ids) * 1.01

    monkeypatch.setattr(feature_cache.Entry, "batch", wrong)
    found, said = fit(pictures, *how)
    assert said.count("what the feature cache holds differs from it") >= 3
    assert all(torch.equal(found[n], live[n]) for n in live)


def test_a_folder_that_cannot_be_written_costs_time_alone(fit, pictures, weights, tmp_path):
    (tmp_path / "file").write_text("no folder")
    live, _ = fit(pictures, *tiny_source(weights), "--set", "run.cache=off")
    found, said = fit(pictures, *tiny_source(weights), "--set", f"run.cache={tmp_path / 'file' / 'x'}")
    assert "computed live, the feature cache cannot hold it" in said
    assert all(torch.equal(found[n], live[n]) for n in live)


def test_as_many_views_as_epochs_are_not_worth_it(fit, pictures, weights):
    how = (*tiny_source(weights), "--set", "freezing.name=last_blocks")
    _, said = fit(pictures, *how, *VIEWS)
    assert "computed live, since to keep it takes 3 passes and saves 3" in said


def test_a_limit_that_is_too_small(fit, pictures, weights):
    _, said = fit(pictures, *tiny_source(weights), "--set", "run.cache_gb=1e-6")
    assert "are more than the 0 there are" in said
    assert not FeatureCache(place_of("shared"), 0).entries()


def test_the_command(fit, cli, pictures, weights):
    fit(pictures, *tiny_source(weights))
    assert "2 entries" in cli("cache")[1]
    assert "2 entries removed" in cli("cache", "--clear")[1]
    assert "0 entries, 0.0 MB" in cli("cache")[1]


def test_a_backbone_that_stays_is_run_once_over_each_split(fit, pictures, weights, monkeypatch):
    """The model's figures and the probe's take its features."""
    seen: list[int] = []
    plain = job.outputs

    def counting(module, batches, *rest):
        seen.append(len(batches))
        return plain(module, batches, *rest)

    monkeypatch.setattr(job, "outputs", counting)
    how = (*tiny_source(weights), "--set", "freezing.name=head_only", "--set", "run.cache=off")
    fit(pictures, *how, *AS_IT_STANDS)
    assert sorted(seen) == [12, 24, 48]  # val, test, train
