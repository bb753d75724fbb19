"""References, the bundled weights, a run, a module of one's own, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import nn

from regraft.data.types import ImageSpec, TextSpec
from regraft.errors import SourceError
from regraft.model.types import Source, SourceOptions
from regraft.sources import bundled, load_source, local_references

OFFLINE = SourceOptions(offline=True)


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


@pytest.mark.parametrize(("size", "side", "tensors"), [("lite0", 224, 294), ("lite1", 240, 384), ("lite2", 260, 384)])
def test_a_bundled_lite_keeps_every_tensor_and_its_head(size: str, side: int, tensors: int) -> None:
    source = load_source(f"bundled:efficientnet-{size}", OFFLINE)
    kept = [t for t in source.report if t.state == "kept"]
    assert len(kept) == len(source.report) == tensors + 2  # of the backbone, and of the head
    assert source.features == 1280
    assert source.labels is not None
    assert source.labels[:2] == ("n01440764", "n01443537")
    assert isinstance(source.preprocess, ImageSpec)
    assert (source.preprocess.size, source.preprocess.mean) == ((side, side), (0.5,) * 3)
    assert source.digest == bundled.LITES[size].digest
    assert f"bundled:efficientnet-{size}" in local_references("image")
    assert f"bundled:efficientnet-{size}" not in local_references("text")


def test_bundled_minilm_is_the_masked_mean_of_its_tokens() -> None:
    source = load_source("bundled:all-minilm-l6-v2", OFFLINE)
    assert isinstance(source.preprocess, TextSpec)
    assert (source.features, source.head, source.preprocess.max_length) == (384, None, 256)
    tokenizer = transformers.AutoTokenizer.from_pretrained(source.preprocess.tokenizer)
    inputs = tokenizer(["A short one.", "A rather longer sentence."], padding=True)
    inputs = {k: torch.tensor(v) for k, v in inputs.items()}
    net = transformers.AutoModel.from_pretrained(source.preprocess.tokenizer).eval()
    with torch.no_grad():
        hidden = net(**inputs).last_hidden_state
        mask = inputs["attention_mask"].unsqueeze(-1)
        expected = (hidden * mask).sum(1) / mask.sum(1)
        torch.testing.assert_close(source.backbone(inputs), expected, rtol=0, atol=1e-5)
    assert not any("pooler" in n for n, _ in source.backbone.named_parameters())


def test_an_altered_or_absent_package_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "w.pth").write_bytes(b"altered")
    with pytest.raises(SourceError, match="sha256"):
        bundled.check_digest(tmp_path / "w.pth", bundled.LITES["lite0"].digest)
    monkeypatch.setattr(bundled, "find_spec", lambda name: None)
    with pytest.raises(SourceError, match=r"regraft\[offline\]"):
        load_source("bundled:efficientnet-lite0", OFFLINE)


@pytest.mark.parametrize(
    ("ref", "words"),
    [
        ("tim:resnet18", 'did you mean "timm"'),
        ("timm:resnet1", 'did you mean "resnet18"'),
        ("timm:resnet18", "--weights FILE"),
        ("timm:zzz", "such as: "),
        ("timm:resnet18.nothing", "resnet18 has no weights .nothing."),
        ("timm:timm/resnet18", "write timm:local-dir:FOLDER"),
        ("timm:local-dir:/nowhere", "no config.json in the folder"),
        ("timm:hf-hub:timm/nowhere", "not in the cache, and fetching failed"),
        ("bundled:lite", "bundled has no"),
        ("random:resnet18", "random:timm/NAME"),
        ("module:net", "from_module"),
        ("nothing", "is not known"),
    ],
)
def test_what_cannot_be_loaded_says_why(ref: str, words: str) -> None:
    with pytest.raises(SourceError, match=words.replace("[", r"\[")):
        load_source(ref, OFFLINE)


@pytest.mark.parametrize("channels", [1, 4])
def test_another_number_of_channels_adapts_the_stem(tmp_path: Path, channels: int) -> None:
    net = timm.create_model("test_vit")
    save_file(net.state_dict(), tmp_path / "w.safetensors")
    options = SourceOptions(weights=tmp_path / "w.safetensors", in_channels=channels)
    source = load_source("timm:test_vit", options)
    resized = [t.name for t in source.report if t.state == "resized"]
    assert resized == ["patch_embed.proj.weight"]
    assert isinstance(source.preprocess, ImageSpec)
    assert source.preprocess.channels == channels
    stem = net.patch_embed.proj.weight
    if channels == 1:
        loaded = source.backbone.get_parameter(resized[0])
        torch.testing.assert_close(loaded, stem.sum(1, keepdim=True))


def test_random_keeps_nothing_and_has_no_head() -> None:
    torch.manual_seed(0)
    source = load_source("random:timm/test_vit", OFFLINE)
    assert source.nothing_kept
    assert source.head is None
    assert {t.state for t in source.report} == {"fresh"}


def bert(folder: Path, **change: Any) -> Path:
    config = transformers.BertConfig(
        vocab_size=40, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=16, num_labels=3
    )
    net = transformers.BertForSequenceClassification(config)
    net.save_pretrained(folder)
    (folder / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\nday")
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "BertTokenizer"}')
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    return folder


def test_old_names_load_and_the_mask_head_is_unused(tmp_path: Path) -> None:
    folder = bert(tmp_path, architectures=["BertForMaskedLM"])
    file = folder / "model.safetensors"
    state = load_file(file)
    state = {k: v for k, v in state.items() if "pooler" not in k}
    old = {
        k.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta")
        if "LayerNorm" in k
        else k: v.clone()
        for k, v in state.items()
    }
    file.unlink()
    torch.save(old, folder / "pytorch_model.bin")
    source = load_source(f"transformers:{folder}", OFFLINE)
    states = {t.name: t.state for t in source.report}
    assert source.head is None
    assert states["net.embeddings.LayerNorm.weight"] == "kept"
    assert states["classifier.weight"] == "unused"
    loaded = source.backbone.get_parameter("net.embeddings.LayerNorm.weight")
    assert torch.equal(loaded, state["bert.embeddings.LayerNorm.weight"])


def test_a_random_pooler_is_an_error_unless_allowed(tmp_path: Path) -> None:
    folder = bert(tmp_path)
    state = load_file(folder / "model.safetensors")
    save_file({k: v for k, v in state.items() if "pooler" not in k}, folder / "model.safetensors")
    with pytest.raises(SourceError, match=r"pooler.*allow_fresh"):
        load_source(f"transformers:{folder}", OFFLINE)
    source = load_source(f"transformers:{folder}", SourceOptions(allow_fresh=("*pooler*",)))
    assert sum(t.state == "fresh" for t in source.report) == 2


def resnet(folder: Path) -> Path:
    """Weights of timm's test_resnet, which timm says were trained with mean .5 and std .5."""
    torch.manual_seed(0)
    save_file(timm.create_model("test_resnet").state_dict(), folder / "w.safetensors")
    return folder / "w.safetensors"


@pytest.mark.fault(77)
def test_weights_without_normalisation_take_the_architectures(tmp_path: Path) -> None:
    options = SourceOptions(weights=resnet(tmp_path), image_size=32)
    source = load_source("timm:test_resnet", options)
    assert source.preprocess == ImageSpec((32, 32), 33, "bilinear", (0.5,) * 3, (0.5,) * 3)
    (note,) = (n for n in source.notes if "normalised" in n)
    assert "w.safetensors does not say" in note and "(0.5, 0.5, 0.5)" in note
    assert "timm's test_resnet" in note


@pytest.mark.fault(77)
def test_a_config_beside_the_weights_sets_normalisation(tmp_path: Path) -> None:
    options = SourceOptions(weights=resnet(tmp_path), image_size=32)
    theirs = {"mean": [0.4, 0.5, 0.6], "std": [0.2, 0.2, 0.3], "architecture": "test_resnet"}
    (tmp_path / "config.json").write_text(json.dumps({"pretrained_cfg": theirs}))
    source = load_source("timm:test_resnet", options)
    spec = source.preprocess
    assert isinstance(spec, ImageSpec)
    assert (spec.mean, spec.std) == ((0.4, 0.5, 0.6), (0.2, 0.2, 0.3))
    assert any("unlike timm's own: mean (0.4, 0.5, 0.6) and not" in n for n in source.notes)
    for wrong in ([0.5], [0.2, 0.2, 0.0], "grey", [0.1, None, 1]):
        bad = {"pretrained_cfg": theirs | {"std": wrong}}
        (tmp_path / "config.json").write_text(json.dumps(bad))
        with pytest.raises(SourceError, match=r"config\.json: pretrained_cfg\.std is"):
            load_source("timm:test_resnet", options)
    same = {"mean": [0.5] * 3, "std": [0.5] * 3}
    (tmp_path / "config.json").write_text(json.dumps({"pretrained_cfg": same}))
    source = load_source("timm:test_resnet", options)
    assert not [n for n in source.notes if "normalised" in n]


@pytest.mark.fault(77)
@pytest.mark.parametrize(
    ("change", "words"),
    [
        (None, "no preprocessor_config.json, so mean, std and size are unknown"),
        ({"image_mean": None}, "image_mean None, and the model takes 3 channels"),
        ({"image_mean": [0.5]}, r"image_mean \[0.5\], and the model takes 3 channels"),
        ({"image_std": [1, 1, 0]}, r"image_std \[1, 1, 0\]"),
        ({"size": {"height": 64, "width": 64}}, "pictures of 64 × 64 .*which the model refuses"),
    ],
    ids=["missing", "no mean", "other channels", "zero", "other size"],
)
def test_a_folder_with_no_or_a_misfit_normalisation_is_refused(
    tmp_path: Path, change: dict[str, Any] | None, words: str
) -> None:
    config = transformers.ViTConfig(
        hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8, image_size=32, patch_size=16
    )
    transformers.ViTModel(config, add_pooling_layer=False).save_pretrained(tmp_path)
    said = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3, "size": {"height": 32, "width": 32}}
    path = tmp_path / "preprocessor_config.json"
    path.write_text(json.dumps(said))
    spec = load_source(f"transformers:{tmp_path}", OFFLINE).preprocess
    assert isinstance(spec, ImageSpec) and spec.size == (32, 32)
    path.unlink() if change is None else path.write_text(json.dumps(said | change))
    with pytest.raises(SourceError, match=words):
        load_source(f"transformers:{tmp_path}", OFFLINE)


@pytest.mark.fault(76)
def test_code_in_a_config_is_refused(tmp_path: Path) -> None:
    folder = bert(tmp_path, auto_map={"AutoModel": "evil.Model"})
    with pytest.raises(SourceError, match="auto_map"):
        load_source(f"transformers:{folder}", OFFLINE)


@pytest.mark.fault(75)
def test_more_tokens_than_rows_is_refused(tmp_path: Path) -> None:
    folder = bert(tmp_path)
    (folder / "vocab.txt").write_text(
        "\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"w{i}" for i in range(50))])
    )
    with pytest.raises(SourceError, match="tokens, the model 40"):
        load_source(f"transformers:{folder}", OFFLINE)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"architectures": [7]}, r"architectures \[7\], not a list of names"),
        ({"num_hidden_layers": 2_000_000}, "cannot be built: num_hidden_layers is 2,000,000"),
        ({"num_attention_heads": 0}, "cannot be built .*zero"),
        ({"hidden_size": "16"}, "cannot be built .*hidden_size"),
        ({"pad_token_id": -900}, "cannot be"),
        ("[1]", "config.json: damaged, an object expected"),
        (("tokenizer.json", '{"version": 1}'), "its tokenizer cannot be loaded"),
        (
            ("tokenizer.json", '{"version": "1.0", "model": {"type": "WordPiece"}, "added_tokens": []}'),
            "its tokenizer cannot be loaded .*missing field",
        ),
        (("modules.json", "{}"), "modules.json: damaged, a list expected"),
        (("sentence_bert_config.json", '{"max_seq_length": "a"}'), "cannot be loaded .*fetch"),
    ],
)
def test_a_damaged_folder_is_refused_in_words(tmp_path: Path, change: Any, words: str) -> None:
    folder = bert(tmp_path, **change if isinstance(change, dict) else {})
    if not isinstance(change, dict):
        name, text = ("config.json", change) if isinstance(change, str) else change
        (folder / name).write_text(text)
    with pytest.raises(SourceError, match=words) as caught:
        load_source(f"transformers:{folder}", OFFLINE)
    assert str(folder) in str(caught.value)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU())
        self.neck = nn.Linear(8, 6)
        self.fc = nn.Linear(6, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.fc(self.neck(self.body(x)))
        return y


def test_a_module_of_ones_own_is_split_and_left_untouched() -> None:
    net, x = Net(), torch.randn(2, 4)

    def from_module(**options: Any) -> Source:
        return Source.from_module(net, preprocess=lambda row: x[0], example=x, **options)

    source = from_module(head="fc")
    assert [b.name for b in source.blocks] == ["body", "neck"]
    assert source.features == 6
    assert isinstance(net.fc, nn.Linear)
    assert net.training
    with pytest.raises(SourceError, match='did you mean "fc"'):
        from_module(head="fcc")
    with pytest.raises(SourceError, match="head"):
        from_module(head="neck")  # not last
    with pytest.raises(SourceError, match=r"in no block: neck\.weight, neck\.bias"):
        from_module(head="fc", blocks=[("a", ["body"])])
    given = from_module(head="fc", blocks=[("a", ["body.0"]), ("b", ["body.1", "neck"])])
    assert [b.name for b in given.blocks] == ["a", "b"]


def test_a_run_is_a_source(tmp_path: Path) -> None:
    torch.manual_seed(0)
    start = load_source("random:timm/test_vit", OFFLINE)
    folder = tmp_path / "flowers" / "model"
    folder.mkdir(parents=True)
    head = nn.Linear(start.features, 2)
    state = {f"backbone.{k}": v for k, v in start.backbone.state_dict().items()}
    state |= {f"head.{k}": v.detach() for k, v in head.state_dict().items()}
    save_file(state, folder / "model.safetensors")
    task = {"task": "classification", "classes": ["rose", "tulip"]}
    config = {"schema": 1, "recipe": start.recipe, "task": task, "features": start.features}
    (folder / "config.json").write_text(json.dumps(config))
    source = load_source(str(tmp_path / "flowers"), OFFLINE)
    assert source.labels == ("rose", "tulip")
    assert not source.nothing_kept
    x = torch.randn(2, 3, *start.preprocess.size)  # type: ignore[union-attr]
    with torch.no_grad():
        assert torch.equal(source.backbone(x), start.backbone(x))
        assert source.head is not None
        assert torch.equal(source.head(start.backbone(x)), head(start.backbone(x)))
    assert source.recipe == json.loads(json.dumps(start.recipe))
    (folder / "config.json").write_text(json.dumps({**config, "schema": 2}))
    with pytest.raises(SourceError, match="schema"):
        load_source(str(tmp_path / "flowers"), OFFLINE)


def test_models_in_the_hubs_cache_are_local_references(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    def cached(repository: str, *files: str) -> None:
        folder = tmp_path / f"models--{repository.replace('/', '--')}"
        (folder / "snapshots" / "abc").mkdir(parents=True)
        (folder / "refs").mkdir()
        (folder / "refs" / "main").write_text("abc")
        for file in files:
            (folder / "snapshots" / "abc" / file).write_text("{}")

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    cached("timm/resnet18.a1_in1k", "config.json", "model.safetensors")
    cached("timm/resnet34.a1_in1k", "config.json")  # without weights
    cached("timm/no_such_model", "model.safetensors")
    cached("lab/texts", "config.json", "tokenizer.json", "model.safetensors")
    cached("lab/pictures", "config.json", "preprocessor_config.json", "pytorch_model.bin")
    hub = ("timm:", "transformers:")
    assert [r for r in local_references("image") if r.startswith(hub)] == [
        "timm:resnet18.a1_in1k",
        "transformers:lab/pictures",
    ]
    assert [r for r in local_references("text") if r.startswith(hub)] == ["transformers:lab/texts"]
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "none"))
    assert not [r for r in local_references("image") if r.startswith(hub)]
