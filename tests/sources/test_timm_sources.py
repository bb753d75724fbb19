"""timm's models: heads of every form, coarser blocks, sizes, and folders that timm wrote."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from regraft.data.types import ImageSpec
from regraft.errors import SourceError
from regraft.model.types import Source, SourceOptions
from regraft.sources import _blocks, _budget, _timm, load_source
from regraft.sources import timm as timm_source


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


def weights(name: str, folder: Path, **how: Any) -> tuple[Any, Path]:
    torch.manual_seed(0)
    net = timm.create_model(name, **how).eval()
    with torch.no_grad():
        for tensor in net.parameters():
            if not tensor.any():
                tensor.normal_(std=0.02)
    file = folder / f"{name}.safetensors"
    save_file({k: v.contiguous().clone() for k, v in net.state_dict().items()}, file)
    return net, file


class Heads(nn.Module):
    """Pooled features and heads of a form."""

    def __init__(self, form: str) -> None:
        super().__init__()
        self.form = form
        self.stem = nn.Conv2d(3, 6, 3)
        self.drop = nn.Dropout()
        if form == "convolution":
            self.head: nn.Module = nn.Conv2d(6, 4, 1)
        else:
            self.head = nn.Linear(6 if form == "shared" else 2, 4)
            self.head_dist = nn.Linear(6 if form == "shared" else 4, 4)

    def get_classifier(self) -> Any:
        return self.head if self.form == "convolution" else (self.head, self.head_dist)

    def forward(self, x: Tensor) -> Tensor:
        x = self.drop(self.stem(x).mean((2, 3)))
        if self.form == "convolution":
            y: Tensor = self.head(x[:, :, None, None]).flatten(1)
        elif self.form == "shared":
            y = (self.head(x) + self.head_dist(x)) / 2
        else:
            y = 0.25 * self.head(x[:, :2]) + 0.75 * self.head_dist(x[:, 2:])
        return y


@pytest.mark.parametrize(("form", "width"), [("convolution", 6), ("shared", 6), ("apart", 6)])
def test_heads_of_every_form_are_a_function_of_the_features(form: str, width: int) -> None:
    torch.manual_seed(0)
    net, x = Heads(form).eval(), torch.randn(5, 3, 8, 8)
    whole = copy.deepcopy(net)
    with torch.no_grad():
        expected = net(x)
        head = _timm.take_off(net, _timm.classifier_names(net), x)
        assert head is not None
        features = net(x)
        other = torch.randn(3, 3, 8, 8)
        assert features.shape == (5, width)
        torch.testing.assert_close(head(features), expected, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(head(net(other)), whole(other), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["dla46x_c", "pit_ti_distilled_224", "levit_128s"])
def test_a_timm_model_of_unusual_head_or_no_groups_loads(name: str, tmp_path: Path) -> None:
    net, file = weights(name, tmp_path)
    source = load_source(f"timm:{name}", SourceOptions(weights=file))
    assert isinstance(source.preprocess, ImageSpec) and source.head is not None
    x = torch.randn(2, 3, *source.preprocess.size)
    with torch.no_grad():
        found = source.head(source.backbone(x))
        torch.testing.assert_close(found, net(x), rtol=1e-4, atol=1e-5)
    again = timm_source.build(json.loads(json.dumps(source.recipe)), tmp_path)
    again.backbone.load_state_dict(source.backbone.state_dict())
    with torch.no_grad():
        assert torch.equal(again.backbone(x), source.backbone(x))
    names = [*dict(source.backbone.named_parameters()), *dict(source.backbone.named_buffers())]
    assert sorted(t for b in source.blocks for t in b.tensors) == sorted(names)
    assert len(source.blocks) > 2


class Unordered(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))
        self.late = nn.Linear(4, 4)
        self.layers = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
        self.early = nn.Linear(4, 4)
        self.never = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.late(self.layers(self.early(x * self.scale)))
        return y


def test_coarser_blocks_are_in_the_order_of_the_forward_pass() -> None:
    groups = _blocks.by_children(Unordered(), torch.zeros(2, 4))
    assert [n for n, _ in groups] == ["early", "layers.0", "layers.1", "late", "never"]
    assert groups[0][1] == ["scale", "early.weight", "early.bias"]


class Draws(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(4, 4)
        self.head = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.head(self.body(x) * (torch.rand(x.shape) > 0.5))
        return y


def test_a_source_that_draws_in_eval_mode_is_refused() -> None:
    with pytest.raises(SourceError, match="two passes over one input differ"):
        Source.from_module(Draws(), head="head", preprocess=lambda row: row, example=torch.ones(2, 4))


@pytest.mark.filterwarnings("ignore::UserWarning")  # of timm itself
@pytest.mark.parametrize("name", ["test_vit", "test_vit_relpos", "test_maxvit"])
def test_tensors_of_another_image_size_are_those_that_timm_makes(name: str, tmp_path: Path) -> None:
    _, file = weights(name, tmp_path)
    source = load_source(f"timm:{name}", SourceOptions(weights=file, image_size=96))
    overlay = {"file": str(file)}
    theirs = timm.create_model(name, pretrained=True, img_size=96, pretrained_cfg_overlay=overlay)
    state = source.backbone.state_dict()
    mine = {n for n, t in theirs.state_dict().items() if n in state and torch.equal(state[n], t)}
    assert mine == set(state)
    own = timm.create_model(name).state_dict()
    resized = {n for n, t in state.items() if own[n].shape != t.shape}
    told = {t.name: t.note for t in source.report if t.state == "resized"}
    assert told.keys() == resized and (name == "test_vit_relpos" or resized)
    for name_of_tensor in resized:
        assert told[name_of_tensor].startswith(str(tuple(own[name_of_tensor].shape)))
    with torch.no_grad():
        x = torch.randn(2, 3, 96, 96)
        assert source.head is not None
        torch.testing.assert_close(source.head(source.backbone(x)), theirs.eval()(x), rtol=1e-4, atol=1e-5)


def test_a_size_that_an_architecture_does_not_take_is_refused(tmp_path: Path) -> None:
    _, file = weights("efficientformerv2_s0", tmp_path)
    with pytest.raises(SourceError, match=r"5 shapes .*attention_biases .*source\.image_size 96"):
        load_source("timm:efficientformerv2_s0", SourceOptions(weights=file, image_size=96))
    _, file = weights("test_vit", tmp_path)
    with pytest.raises(SourceError, match=r"source\.image_size .*7"):
        load_source("timm:test_vit", SourceOptions(weights=file, image_size=7))


def test_weights_of_other_channels_or_size_name_the_setting(tmp_path: Path) -> None:
    _, file = weights("test_resnet", tmp_path, in_chans=1)
    with pytest.raises(SourceError, match=r"1 shapes differ: .*source\.in_channels=1"):
        load_source("timm:test_resnet", SourceOptions(weights=file))


def saved(folder: Path, **config: Any) -> Any:
    torch.manual_seed(0)
    net = timm.create_model("test_vit", num_classes=3, img_size=96).eval()
    timm.models.save_for_hf(net, folder, model_config=config, safe_serialization=True)
    return net


def test_a_folder_that_timm_wrote_loads_with_head_and_names(tmp_path: Path) -> None:
    net = saved(tmp_path, label_names=["elm", "oak", "yew"])
    source = load_source(f"timm:local-dir:{tmp_path}", SourceOptions(offline=True))
    assert source.labels == ("elm", "oak", "yew")
    assert isinstance(source.preprocess, ImageSpec) and source.head is not None
    x = torch.randn(2, 3, *source.preprocess.size)
    with torch.no_grad():
        assert torch.equal(source.head(source.backbone(x)), net(x))
        again = timm_source.build(json.loads(json.dumps(source.recipe)), tmp_path)
        again.backbone.load_state_dict(source.backbone.state_dict())
        assert torch.equal(again.backbone(x), source.backbone(x))
    assert str(tmp_path) not in json.dumps(source.recipe)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"architecture": "test_vitt"}, 'architecture "test_vitt" .*did you mean "test_vit'),
        ({"architecture": 7}, 'architecture "7" is not one of timm'),
        ({"model_args": {"features_only": True}}, "local-dir"),
        ({"model_args": {"depth": "many"}}, "cannot be built"),
        ({"label_names": ["elm"]}, ""),
    ],
)
def test_a_damaged_folder_of_timms_is_refused_in_words(tmp_path: Path, change: dict[str, Any], words: str) -> None:
    saved(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | change))
    if not words:
        source = load_source(f"timm:local-dir:{tmp_path}", SourceOptions())
        assert source.labels is None and "1 names for 3 classes" in " ".join(source.notes)
        return
    with pytest.raises(SourceError, match=words):
        load_source(f"timm:local-dir:{tmp_path}", SourceOptions())


def hostile_run(folder: Path, **arguments: Any) -> tuple[dict[str, Any], Path]:
    """Return the recipe of a small run with other arguments for timm, and its model folder."""
    _, file = weights("test_resnet", folder)
    recipe = load_source("timm:test_resnet", SourceOptions(weights=file, offline=True)).recipe
    file.rename(folder / "model.safetensors")
    return {**recipe, "arguments": arguments}, folder


@pytest.mark.parametrize("option", ["checkpoint_path", "cache_dir", "pretrained_cfg_overlay"])
def test_a_recipe_gives_timm_no_files_to_open(option, tmp_path, monkeypatch):
    recipe, folder = hostile_run(tmp_path, **{option: str(tmp_path / "evil.pth")})
    monkeypatch.setattr(timm, "create_model", lambda *_, **__: pytest.fail("timm was asked"))
    with pytest.raises(SourceError, match=f"refused, its recipe passes timm {option}"):
        timm_source.build(recipe, folder)


@pytest.mark.parametrize(
    ("arguments", "words"), [({"layers": [900, 900, 900, 900]}, "tensors"), ({"stem_width": 9_000}, "values")]
)
def test_a_recipe_far_larger_than_its_weights_is_refused(arguments, words, tmp_path):
    recipe, folder = hostile_run(tmp_path, **arguments)
    with pytest.raises(SourceError, match=rf"network of more than [\d,]+ {words}"):
        timm_source.build(recipe, folder)


@pytest.mark.parametrize("size", [10**6, 0, "224", True, 64.0])
def test_a_recipe_asks_for_a_size_that_pictures_have(size, tmp_path):
    recipe, folder = hostile_run(tmp_path)
    with pytest.raises(SourceError, match="its recipe asks for pictures of"):
        timm_source.build({**recipe, "image_size": size}, folder)


def test_a_module_with_a_shape_counts_as_a_module():
    """timm's MetaFormer scales have one; a saved run of theirs could not be loaded."""

    class Scale(nn.Module):
        def __init__(self):
            super().__init__()
            self.shape = (3, 1, 1)
            self.scale = nn.Parameter(torch.ones(3))

    with _budget.bounded(_budget.Size(1, 3), "timm:scales", memory=True):
        assert len(list(nn.Sequential(Scale()).parameters())) == 1
    with (
        pytest.raises(SourceError, match="network of more than"),
        _budget.bounded(_budget.Size(1, 3), "timm:scales", memory=True),
    ):
        nn.Sequential(*(Scale() for _ in range(3000)))
