"""LoRA: nothing at the start, a change of low rank at the end, and the source's weights beside it."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn

import regraft
from regraft.data.types import CallableSpec
from regraft.errors import PlanError
from regraft.freezing.lora import LoRA
from regraft.model.grafting import graft
from regraft.model.trainable import set_trainable
from regraft.model.types import Source


def source_of(net):
    return Source.from_module(
        net.eval(),
        head="head",
        preprocess=CallableSpec(lambda i: torch.zeros(3, 6, 6)),
        example=torch.zeros(2, 3, 6, 6),
        name="net",
    )


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.full = nn.Conv2d(3, 8, 3)
        self.depthwise = nn.Conv2d(8, 8, 3, groups=8)
        self.norm = nn.BatchNorm2d(8)
        self.line = nn.Linear(8, 6)
        self.head = nn.Linear(6, 4)

    def forward(self, x):
        x = torch.relu(self.norm(self.depthwise(self.full(x)))).mean((2, 3))
        return self.head(self.line(x).relu())


@pytest.fixture
def target():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return graft(source_of(Net()), 2)


def images(n=7):
    return torch.randn(n, 3, 6, 6, generator=torch.Generator().manual_seed(1))


class Reads(nn.Module):
    """A layer whose weight its parent reads, as BEiT's attention does."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(8, 8)

    def forward(self, x):
        return nn.functional.linear(x, self.inner.weight, self.inner.bias)


class Doubled(nn.Linear):
    def forward(self, x):
        return nn.functional.linear(x, self.weight / self.weight.norm(), self.bias)


def odd_layers():
    from timm.layers import ScaledStdConv2d, StdConv2d

    return {
        "standardised": StdConv2d(8, 8, 3, padding=1),
        "scaled": ScaledStdConv2d(8, 8, 3, padding=1),
        "weight norm": nn.utils.parametrizations.weight_norm(nn.Conv2d(8, 8, 1)),
        "spectral norm": nn.utils.parametrizations.spectral_norm(nn.Conv2d(8, 8, 1)),
        "dilated": nn.Conv2d(8, 8, 3, padding=2, dilation=2),
        "reflecting": nn.Conv2d(8, 8, 3, padding=1, padding_mode="reflect"),
        "reads": Reads(),
        "rescales": Doubled(8, 8),
    }


class Odd(nn.Module):
    def __init__(self, layer):
        super().__init__()
        self.odd = layer
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.head = nn.Linear(8, 4)

    def forward(self, x):
        x = self.stem(x).relu()
        linear = isinstance(self.odd, nn.Linear | Reads)
        x = self.odd(x.mean((2, 3))) if linear else self.odd(x).mean((2, 3))
        return self.head(x.relu())


@pytest.mark.parametrize("variant", ["plain", "dora"])
@pytest.mark.parametrize("kind", odd_layers())
def test_merged_layers_of_every_kind_are_those_that_were_trained(kind, variant):
    torch.manual_seed(0)
    target = graft(source_of(Odd(odd_layers()[kind])), 2)
    lora = LoRA(rank=2, variant=variant)
    with lora.adapted(target, seed=0) as adapted:
        set_trainable(adapted, lora([b.name for b in adapted.blocks], 1), "frozen")
        train = [p for p in adapted.model.parameters() if p.requires_grad]
        for _ in range(5):
            adapted.model.eval()(images()).square().sum().backward()
            with torch.no_grad():
                for p in train:
                    assert p.grad is not None
                    p -= 0.05 * p.grad / (p.grad.norm() + 1e-12)
                    p.grad = None
        said = adapted.model.eval()(images()).detach()
    torch.testing.assert_close(target.model.eval()(images()), said, rtol=1e-4, atol=1e-5)
    assert any("lora leaves out 1 of 2 layers" in n for n in target.source.notes)


def test_layers_that_cannot_merge_are_named_and_none_is_refused():
    target = graft(source_of(Odd(odd_layers()["standardised"])), 2)
    with (
        pytest.raises(PlanError, match=r'"odd" matches no layer whose change merges exactly.*odd'),
        LoRA(layers=("odd",)).adapted(target, seed=0),
    ):
        pass


@pytest.mark.parametrize("variant", ["plain", "rank_stabilised", "dora"])
def test_the_start_is_the_source_and_no_step_changes_nothing(target, variant):
    before = {n: t.clone() for n, t in target.model.state_dict().items()}
    features = target.model.eval()(images())
    with LoRA(rank=2, variant=variant).adapted(target, seed=0) as adapted:
        torch.testing.assert_close(adapted.model(images()), features, rtol=1e-5, atol=1e-6)
    after = target.model.state_dict()
    assert list(after) == list(before)
    for name, tensor in before.items():
        torch.testing.assert_close(after[name], tensor, rtol=1e-6, atol=1e-7)


def test_the_change_is_alpha_over_r_times_b_a_and_all_else_stays(target):
    before = {n: t.clone() for n, t in target.model.state_dict().items()}
    lora = LoRA(rank=2, alpha=6.0)
    with lora.adapted(target, seed=0) as adapted:
        blocks = {b.name for b in adapted.blocks}
        set_trainable(adapted, lora(sorted(blocks), 1), "frozen")
        train = {n: p for n, p in adapted.model.named_parameters() if p.requires_grad}
        optimizer = torch.optim.SGD(train.values(), lr=0.5)
        for _ in range(5):
            adapted.model(images()).square().sum().backward()
            optimizer.step()
            optimizer.zero_grad()
        trained = {n: p.detach().clone() for n, p in train.items()}
        said = adapted.model.eval()(images()).detach()
    assert set(trained) == {
        "backbone.full.lora_A.default.weight",
        "backbone.full.lora_B.default.weight",
        "backbone.line.lora_A.default.weight",
        "backbone.line.lora_B.default.weight",
        "head.weight",
        "head.bias",
    }
    after = target.model.state_dict()
    assert list(after) == list(before)
    for layer in ("full", "line"):
        b = trained[f"backbone.{layer}.lora_B.default.weight"].flatten(1)
        a = trained[f"backbone.{layer}.lora_A.default.weight"].flatten(1)
        change = (after[f"backbone.{layer}.weight"] - before[f"backbone.{layer}.weight"]).flatten(1)
        assert change.abs().max() > 1e-4
        torch.testing.assert_close(change, 6.0 / 2 * b @ a, rtol=1e-4, atol=1e-6)
    moved = {n for n in before if not torch.equal(before[n], after[n])}
    assert moved == {"backbone.full.weight", "backbone.line.weight", "head.weight", "head.bias"}
    torch.testing.assert_close(target.model.eval()(images()), said, rtol=1e-4, atol=1e-5)


def test_the_seed_decides_and_the_callers_generator_stays(target):
    def first(seed):
        with LoRA(rank=2).adapted(target, seed) as adapted:
            return adapted.model.state_dict()["backbone.line.lora_A.default.weight"].clone()

    state = torch.get_rng_state()
    assert torch.equal(first(0), first(0)) and not torch.equal(first(0), first(1))
    assert torch.equal(state, torch.get_rng_state())


def test_patterns_choose_the_layers(target):
    backbone = target.model.backbone
    assert LoRA().changed(backbone) == ["full", "line"]
    assert LoRA(layers=("li*",)).changed(backbone) == ["line"]
    with pytest.raises(PlanError, match=r'"depth\*" matches no linear layer.*full, line'):
        LoRA(layers=("depth*",)).changed(backbone)


def test_a_layer_that_would_pass_the_change_by_is_refused():
    class Encoder(nn.Module):
        def __init__(self):
            super().__init__()
            self.encoder = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)

    with pytest.raises(PlanError, match=r"encoder is torch's TransformerEncoderLayer"):
        LoRA().changed(Encoder())


@pytest.mark.parametrize("values", [{"rank": 0}, {"alpha": 0.0}, {"dropout": 1.0}])
def test_values_out_of_range_are_refused(values):
    with pytest.raises(ValueError, match="takes"):
        LoRA(**values)


def low_rank(run, before, rank):
    """Matrices that moved, each by at most this rank."""
    from safetensors.torch import load_file

    moved = []
    for name, now in load_file(run / "model" / "model.safetensors").items():
        if name.startswith("head.") or torch.equal(now, before[name]):
            continue
        change = (now - before[name]).flatten(1).double()
        singular = torch.linalg.svdvals(change)
        assert singular[rank] < 1e-4 * singular[0], name  # rounding alone
        moved.append(name)
    return moved


@pytest.mark.slow
def test_a_run_saves_the_sources_own_shape(tmp_path):
    from PIL import Image

    rng = torch.Generator().manual_seed(0)
    for c, (name, colour) in enumerate({"red": (200, 40, 40), "blue": (40, 40, 200)}.items()):
        for split, n in (("train", 14), ("test", 6)):
            for i in range(n):
                noise = torch.randint(-30, 31, (32, 32, 3), generator=rng)
                pixels = (torch.tensor(colour) + noise).clamp(0, 255).byte().numpy()
                path = tmp_path / "data" / split / name / f"{c}{i}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(pixels).save(path)
    import timm
    from safetensors.torch import save_file

    torch.manual_seed(0)
    net = timm.create_model("test_resnet", pretrained=False)
    save_file(net.state_dict(), tmp_path / "w.safetensors")
    settings = {
        "source.weights": str(tmp_path / "w.safetensors"),
        "source.image_size": 32,
        "run.threads": 1,
        "fit.epochs": 3,
        "fit.lr": 9e-4,
        "fit.head_lr": 9e-4,
        "fit.alpha": 1.0,
        "freezing.name": "lora",
        "freezing.rank": 2,
        "fit.batch_size": 7,
    }
    run = regraft.fit(tmp_path / "data", source="timm:test_resnet", out=tmp_path / "run", settings=settings)
    before = {f"backbone.{n}": t for n, t in net.state_dict().items()}
    moved = low_rank(tmp_path / "run", before, 2)
    if run.result.fit.best_epoch:
        assert len(moved) > 3
    lines = (tmp_path / "run" / "history.jsonl").read_text().splitlines()
    assert len([json.loads(x) for x in lines]) == 4
    assert regraft.load(tmp_path / "run").predict([tmp_path / "data/test/red/00.png"])
    with pytest.raises(PlanError, match=r"regularizers\.l2_sp pulls .*freezing lora"):
        regraft.fit(
            tmp_path / "data",
            source="timm:test_resnet",
            out=tmp_path / "no",
            settings=settings | {"regularizers.l2_sp.alpha": 0.1},
        )
    with pytest.raises(PlanError, match="by_block is about the source's weights"):
        regraft.fit(
            tmp_path / "data",
            source="timm:test_resnet",
            out=tmp_path / "no",
            settings=settings | {"regularizers.l2.by_block": {"head": 2.0}},
        )
