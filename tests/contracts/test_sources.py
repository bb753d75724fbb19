"""What every source keeps: the split is the original model, blocks partition it, runs chain."""

from __future__ import annotations

import copy
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import transformers
from safetensors.torch import save_file
from torch import Tensor, nn

from regraft.data.types import ImageSpec
from regraft.freezing.lora import LoRA
from regraft.model.grafting import graft
from regraft.model.trainable import set_trainable
from regraft.model.types import Source, SourceOptions
from regraft.plugins import module
from regraft.sources import load_source

TIMM = ("resnet18", "convnext_atto", "test_vit", "tf_efficientnet_lite0", "mobilenetv3_small_050")
TINY = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24, "num_labels": 5}
TEXT = {**TINY, "vocab_size": 40, "max_position_embeddings": 34}
PICTURE = {**TINY, "image_size": 32, "patch_size": 8}
CHAINED = {*TIMM, "bert", "roberta", "vit", "plain-bert"}


@dataclass
class Case:
    name: str
    source: Source
    inputs: Any
    expected: Tensor  # the original model's output, or its features where it has no head


def spread(net: nn.Module) -> None:
    """Random statistics and weights everywhere, so that no layer is an identity by accident."""
    torch.manual_seed(1)
    with torch.no_grad():
        for name, t in net.state_dict().items():
            if name.endswith("running_var"):
                t.uniform_(0.5, 1.5)
            elif name.endswith("running_mean") or (t.is_floating_point() and t.abs().max() == 0):
                t.normal_(std=0.02)


def tokenizer(folder: Path) -> None:
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "good", "bad", "day"]
    (folder / "vocab.txt").write_text("\n".join(words))
    config = {"tokenizer_class": "BertTokenizer", "model_max_length": 512}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))


def timm_case(name: str, folder: Path) -> Case:
    torch.manual_seed(0)
    net = timm.create_model(name).eval()
    spread(net)
    file = folder / f"{name}.safetensors"
    save_file(net.state_dict(), file)
    source = load_source(f"timm:{name}", SourceOptions(weights=file, offline=True))
    assert isinstance(source.preprocess, ImageSpec)
    x = torch.randn(2, 3, *source.preprocess.size)
    with torch.no_grad():
        return Case(name, source, x, net(x))


def transformers_case(name: str, folder: Path) -> Case:
    torch.manual_seed(0)
    net: Any = {
        "bert": lambda: transformers.BertForSequenceClassification(transformers.BertConfig(**TEXT)),
        "roberta": lambda: transformers.RobertaForSequenceClassification(
            transformers.RobertaConfig(**TEXT, pad_token_id=1)
        ),
        "vit": lambda: transformers.ViTForImageClassification(transformers.ViTConfig(**PICTURE)),
        "plain-bert": lambda: transformers.BertModel(transformers.BertConfig(**TEXT)),
        "distilbert": lambda: transformers.DistilBertForSequenceClassification(
            transformers.DistilBertConfig(vocab_size=40, dim=16, hidden_dim=24, n_layers=2, n_heads=2, num_labels=5)
        ),
    }[name]()
    net.eval()
    spread(net)
    net.save_pretrained(folder)
    if name == "vit":
        settings = {"size": 32, "image_mean": [0.5] * 3, "image_std": [0.5] * 3, "resample": 3}
        (folder / "preprocessor_config.json").write_text(json.dumps(settings))
        inputs: Any = torch.randn(2, 3, 32, 32)
        call = {"pixel_values": inputs}
    else:
        tokenizer(folder)
        ids = torch.randint(5, 40, (3, 7))
        mask = torch.ones_like(ids)
        ids[0, 4:], mask[0, 4:] = net.config.pad_token_id, 0
        inputs = call = {"input_ids": ids, "attention_mask": mask}
    source = load_source(f"transformers:{folder}", SourceOptions(offline=True))
    with torch.no_grad():
        out = net(**call)
    if name == "plain-bert":
        weight = inputs["attention_mask"].unsqueeze(-1)
        return Case(name, source, inputs, (out.last_hidden_state * weight).sum(1) / weight.sum(1))
    return Case(name, source, inputs, out.logits)


@pytest.fixture(scope="module", params=[*TIMM, "bert", "roberta", "vit", "plain-bert", "distilbert"])
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HUB_OFFLINE", "1")
        folder = tmp_path_factory.mktemp(request.param)
        make = timm_case if request.param in TIMM else transformers_case
        return make(request.param, folder)


def logits(source: Source, inputs: Any) -> Tensor:
    with torch.no_grad():
        features = source.backbone(inputs)
        assert features.shape[1] == source.features  # D is measured
        return source.head(features) if source.head is not None else features


def test_split_is_the_original_model(case: Case) -> None:
    torch.testing.assert_close(logits(case.source, case.inputs), case.expected, rtol=0, atol=1e-5)


def test_blocks_partition_tensors_and_modules(case: Case) -> None:
    backbone, blocks = case.source.backbone, case.source.blocks
    tensors = [*dict(backbone.named_parameters()), *dict(backbone.named_buffers())]
    assert sorted(t for b in blocks for t in b.tensors) == sorted(tensors)
    assert sorted(m for b in blocks for m in b.modules) == sorted(dict(backbone.named_modules()))
    assert len({b.name for b in blocks}) == len(blocks) > 2
    owner = {t: b.name for b in blocks for t in b.tensors}
    for block in blocks[:-1]:  # eval() of a block's modules must not leak into another block
        for m in block.modules:
            assert {o for t, o in owner.items() if t.startswith(f"{m}.")} <= {block.name}


def test_runs_chain_to_the_backbone_and_cut_where_they_say(case: Case) -> None:
    source = case.source
    if case.name not in CHAINED:
        assert all(b.run is None for b in source.blocks)
        return
    with torch.no_grad():
        x, cuts = case.inputs, []
        for block in source.blocks:
            assert block.run is not None
            x = block.run(source.backbone, x)
            cuts.append(x)
        torch.testing.assert_close(x, source.backbone(case.inputs), rtol=0, atol=1e-5)
        # What lies below a cut does not depend on what lies above it.
        backbone = copy.deepcopy(source.backbone)
        state = {**dict(backbone.named_parameters()), **dict(backbone.named_buffers())}
        for index in reversed(range(1, len(source.blocks))):
            for t in source.blocks[index].tensors:
                if state[t].is_floating_point():
                    state[t].add_(0.1)
            x = case.inputs
            for block in source.blocks[:index]:
                assert block.run is not None
                x = block.run(backbone, x)
            torch.testing.assert_close(x, cuts[index - 1], rtol=0, atol=0)


def test_recipe_and_state_rebuild_the_source(case: Case, tmp_path: Path) -> None:
    source = case.source
    recipe = json.loads(json.dumps(source.recipe))
    if source.kind == "text":
        module("sources", "transformers").save_files(source, tmp_path)
    again = module("sources", recipe["source"]).build(recipe, tmp_path)
    again.backbone.load_state_dict(source.backbone.state_dict())
    assert (again.head is None) == (source.head is None)
    if source.head is not None:
        again.head.load_state_dict(source.head.state_dict())
    assert torch.equal(logits(again, case.inputs), logits(source, case.inputs))
    assert [b.name for b in again.blocks] == [b.name for b in source.blocks]
    assert again.features == source.features
    if isinstance(source.preprocess, ImageSpec):
        assert again.preprocess == source.preprocess
    else:
        assert (tmp_path / "tokenizer" / "vocab.txt").is_file()


def test_report_accounts_for_every_tensor(case: Case) -> None:
    kept = {t.name for t in case.source.report if t.state == "kept"}
    assert set(case.source.backbone.state_dict()) <= kept
    assert not [t for t in case.source.report if t.state == "fresh"]
    assert len(case.source.digest) == 64


def test_lora_trains_a_change_of_every_layer_and_merges_it(case: Case) -> None:
    """A layer whose forward passed its change by would have no gradient, and be where it was."""
    target = graft(case.source, 3)
    before = {n: t.clone() for n, t in target.model.state_dict().items()}
    lora = LoRA(rank=2)
    with lora.adapted(target, seed=0) as adapted:
        with torch.no_grad():
            start = adapted.model.eval()(case.inputs)
        names = [b.name for b in adapted.blocks]
        set_trainable(adapted, lora(names, 1), "frozen")
        trained = {n: p for n, p in adapted.model.named_parameters() if p.requires_grad}
        for _ in range(2):
            adapted.model.eval()(case.inputs).square().sum().backward()
            with torch.no_grad():
                for p in trained.values():
                    assert p.grad is not None
                    p -= 1e-2 * p.grad / (p.grad.norm() + 1e-12)
                    p.grad = None
        with torch.no_grad():
            said = adapted.model(case.inputs)
            x = case.inputs
            if case.name in CHAINED:  # a penalty that looks between blocks sees the changes too
                for block in adapted.blocks[:-1]:
                    assert block.run is not None
                    x = block.run(adapted.model.get_submodule("backbone"), x)
                torch.testing.assert_close(adapted.model.get_submodule("head")(x), said, rtol=1e-4, atol=1e-5)
    with torch.no_grad():
        head = graft(case.source, 3).model.get_submodule("head")
        torch.testing.assert_close(start, head(case.source.backbone(case.inputs)), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(target.model(case.inputs), said, rtol=1e-3, atol=1e-4)
    after = target.model.state_dict()
    assert list(after) == list(before)
    moved = {n for n in before if not torch.equal(before[n], after[n])}
    layers = {f"backbone.{n}.weight" for n in lora.changed(target.model.get_submodule("backbone"))}
    assert moved == layers | {"head.weight", "head.bias"} and len(layers) > 3
