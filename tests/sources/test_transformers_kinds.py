"""transformers folders of many kinds: which class, head, pooling and layers are taken, and which refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor, nn

from regraft.data import preprocessing as preprocess
from regraft.data.types import TextSpec
from regraft.errors import SourceError
from regraft.model.types import Source, SourceOptions
from regraft.sources import load_source
from regraft.sources import transformers as plugin

OFFLINE = SourceOptions(offline=True)
WORDS = ["<pad>", "</s>", "<unk>", *(f"w{i}" for i in range(37))]
TEXTS = ("w4 w5 w6 w7 w8", "w9 w10", "w11")
NET: dict[str, Any] = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
TEXT = {**NET, "vocab_size": 40, "max_position_embeddings": 32, "bos_token_id": 1, "eos_token_id": 1}
PICTURE = {**NET, "image_size": 32, "patch_size": 8}
T5 = {"vocab_size": 40, "d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 2, "num_heads": 2}


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


def tokenizer(folder: Path, side: str = "right", pad: bool = True) -> None:
    plain = Tokenizer(models.WordLevel({w: i for i, w in enumerate(WORDS)}, unk_token="<unk>"))
    plain.pre_tokenizer = pre_tokenizers.Whitespace()
    named = {"pad_token": "<pad>"} if pad else {}
    hf.PreTrainedTokenizerFast(
        tokenizer_object=plain,
        eos_token="</s>",
        unk_token="<unk>",
        model_max_length=30,
        padding_side=side,
        model_input_names=["input_ids", "attention_mask"],
        **named,
    ).save_pretrained(folder)


def saved(folder: Path, make: Callable[[], Any], **how: Any) -> Any:
    """A model with random weights, in a folder with a tokenizer or with what pictures need."""
    torch.manual_seed(0)
    net = make().eval()
    net.save_pretrained(folder)
    if how.pop("pictures", net.main_input_name == "pixel_values"):
        spec = {"size": {"height": 32, "width": 32}, "image_mean": [0.5] * 3, "image_std": [0.5] * 3}
        (folder / "preprocessor_config.json").write_text(json.dumps(spec))
    else:
        tokenizer(folder, **how)
    return net


def loaded(folder: Path) -> Source:
    return load_source(f"transformers:{folder}", OFFLINE)


def refused(folder: Path) -> str:
    with pytest.raises(SourceError) as caught:
        loaded(folder)
    said = str(caught.value)
    assert "damaged" not in said
    return said


def changed(path: Path, **values: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def batch_of(source: Source, texts: tuple[str, ...] = TEXTS) -> dict[str, Tensor]:
    assert isinstance(source.preprocess, TextSpec)
    made = preprocess.build(source.preprocess)
    return made.collate(made.many([(t,) for t in texts]))  # type: ignore[union-attr, return-value]


def own_rows(net: Any, source: Source) -> Tensor:
    """The original model's logits of each row alone, where no padding plays a part."""
    each = [batch_of(source, (t,)) for t in TEXTS]
    return torch.cat([net(**row).logits for row in each])


def same_again(source: Source, folder: Path, inputs: Any) -> None:
    """The recipe and the weights make the same backbone again."""
    plugin.save_files(source, folder)
    again = plugin.build(json.loads(json.dumps(source.recipe)), folder)
    again.backbone.load_state_dict(source.backbone.state_dict())
    assert torch.equal(again.backbone(inputs), source.backbone(inputs))


# ---------------------------------------------------------------- heads


def gpt2(pad: int | None) -> Any:
    return hf.GPT2ForSequenceClassification(
        hf.GPT2Config(
            vocab_size=40,
            n_embd=16,
            n_layer=2,
            n_head=2,
            n_positions=32,
            num_labels=3,
            bos_token_id=1,
            eos_token_id=1,
            pad_token_id=pad,
        )
    )


@pytest.mark.parametrize("own", [0, None, 5], ids=["same pad", "no pad", "other pad"])
@pytest.mark.parametrize(("side", "pad"), [("right", True), ("left", True), ("right", False)])
@torch.no_grad()
def test_a_score_is_read_at_the_last_token_whatever_pads(tmp_path: Path, own: int | None, side: str, pad: bool) -> None:
    net = saved(tmp_path, lambda: gpt2(own), side=side, pad=pad)
    source = loaded(tmp_path)
    inputs = batch_of(source)
    assert source.head is not None and source.recipe["head_name"] == "score"
    found = source.head(source.backbone(inputs))
    torch.testing.assert_close(found, own_rows(net, source), rtol=1e-4, atol=1e-5)
    same_again(source, tmp_path / "run", inputs)


HEADS: dict[str, tuple[str, Callable[[], Any]]] = {
    "llama": (
        "score",
        lambda: hf.LlamaForSequenceClassification(
            hf.LlamaConfig(**TEXT, num_key_value_heads=1, num_labels=3, pad_token_id=None)
        ),
    ),
    "bloom": (
        "score",
        lambda: hf.BloomForSequenceClassification(
            hf.BloomConfig(vocab_size=40, hidden_size=16, n_layer=2, n_head=2, num_labels=3, pad_token_id=0)
        ),
    ),
    "opt": (
        "score",
        lambda: hf.OPTForSequenceClassification(
            hf.OPTConfig(
                vocab_size=40,
                hidden_size=16,
                num_hidden_layers=2,
                ffn_dim=24,
                num_attention_heads=2,
                num_labels=3,
                max_position_embeddings=32,
                word_embed_proj_dim=16,
                pad_token_id=0,
                bos_token_id=1,
                eos_token_id=1,
            )
        ),
    ),
    "ctrl": (
        "classifier",
        lambda: hf.CTRLForSequenceClassification(
            hf.CTRLConfig(vocab_size=40, n_embd=16, dff=24, n_layer=2, n_head=2, n_positions=32, num_labels=3)
        ),
    ),
    "xlnet": (
        "logits_proj",
        lambda: hf.XLNetForSequenceClassification(
            hf.XLNetConfig(vocab_size=40, d_model=16, n_layer=2, n_head=2, d_inner=24, num_labels=3, pad_token_id=0)
        ),
    ),
    "xlm": (
        "sequence_summary.summary",
        lambda: hf.XLMForSequenceClassification(
            hf.XLMConfig(
                vocab_size=40,
                emb_dim=16,
                n_layers=2,
                n_heads=2,
                num_labels=3,
                pad_index=0,
                pad_token_id=0,
                bos_index=1,
                eos_index=1,
                unk_index=2,
                mask_index=2,
            )
        ),
    ),
}


@pytest.mark.parametrize("kind", HEADS)
@torch.no_grad()
def test_heads_of_other_names_give_the_models_own_logits(tmp_path: Path, kind: str) -> None:
    head, make = HEADS[kind]
    net = saved(tmp_path, make, side="left" if kind in ("xlnet", "llama") else "right")
    source = loaded(tmp_path)
    assert source.head is not None and source.recipe["head_name"] == head
    found = source.head(source.backbone(batch_of(source)))
    torch.testing.assert_close(found, own_rows(net, source), rtol=1e-4, atol=1e-5)


def test_a_head_that_is_not_known_is_named(tmp_path: Path) -> None:
    saved(
        tmp_path,
        lambda: hf.SwiftFormerForImageClassification(
            hf.SwiftFormerConfig(image_size=32, depths=[1] * 4, embed_dims=[8] * 4)
        ),
    )
    assert "several heads (dist_head, head, norm)" in refused(tmp_path)


# ---------------------------------------------------------------- encoders


@pytest.mark.parametrize("name", ["T5EncoderModel", "T5ForConditionalGeneration", "UMT5EncoderModel"])
@torch.no_grad()
def test_the_encoder_of_a_pair_is_taken_alone(tmp_path: Path, name: str) -> None:
    config = (hf.UMT5Config if name.startswith("U") else hf.T5Config)(**T5)
    net = saved(tmp_path, lambda: getattr(hf, name)(config))
    source = loaded(tmp_path)
    assert not any("decoder" in n for n, _ in source.backbone.named_parameters())
    inputs = batch_of(source)
    hidden = net.encoder(**inputs).last_hidden_state
    mask = inputs["attention_mask"].unsqueeze(-1)
    torch.testing.assert_close(source.backbone(inputs), (hidden * mask).sum(1) / mask.sum(1))
    assert any("without its decoder" in n for n in source.notes) == name.endswith("Generation")
    same_again(source, tmp_path / "run", inputs)


@pytest.mark.parametrize("name", ["BartModel", "BartForSequenceClassification"])
def test_an_encoder_and_a_decoder_are_refused_as_such(tmp_path: Path, name: str) -> None:
    saved(
        tmp_path,
        lambda: getattr(hf, name)(
            hf.BartConfig(
                vocab_size=40,
                d_model=16,
                encoder_layers=1,
                decoder_layers=1,
                encoder_attention_heads=2,
                decoder_attention_heads=2,
                encoder_ffn_dim=16,
                decoder_ffn_dim=16,
                pad_token_id=0,
                bos_token_id=1,
                eos_token_id=1,
                decoder_start_token_id=1,
                forced_eos_token_id=1,
            )
        ),
    )
    said = refused(tmp_path)
    assert f"{name} is an encoder and a decoder" in said and "allow_fresh" not in said


TOWERS: dict[str, tuple[bool, Callable[[], Any]]] = {
    "DPRQuestionEncoder": (False, lambda: hf.DPRQuestionEncoder(hf.DPRConfig(**TEXT))),
    "DPRContextEncoder": (False, lambda: hf.DPRContextEncoder(hf.DPRConfig(**TEXT, projection_dim=8))),
    "CLIPTextModel": (False, lambda: hf.CLIPTextModel(hf.CLIPTextConfig(**TEXT))),
    "CLIPTextModelWithProjection": (
        False,
        lambda: hf.CLIPTextModelWithProjection(hf.CLIPTextConfig(**TEXT, projection_dim=8)),
    ),
    "AltCLIPTextModel": (
        False,
        lambda: hf.AltCLIPTextModel(hf.AltCLIPTextConfig(**TEXT, project_dim=8, pad_token_id=0)),
    ),
    "CLIPVisionModel": (True, lambda: hf.CLIPVisionModel(hf.CLIPVisionConfig(**PICTURE))),
    "SiglipVisionModel": (True, lambda: hf.SiglipVisionModel(hf.SiglipVisionConfig(**PICTURE))),
}


@pytest.mark.parametrize("name", TOWERS)
@torch.no_grad()
def test_a_towers_own_vector_is_its_features(tmp_path: Path, name: str) -> None:
    pictures, make = TOWERS[name]
    net = saved(tmp_path, make)
    source = loaded(tmp_path)
    inputs: Any = torch.randn(2, 3, 32, 32) if pictures else batch_of(source)
    out = net(pixel_values=inputs) if pictures else net(**inputs)
    expected = out.text_embeds if name.endswith("Projection") else out.pooler_output
    torch.testing.assert_close(source.backbone(inputs), expected, rtol=1e-4, atol=1e-5)
    same_again(source, tmp_path / "run", inputs) if not pictures else None


@pytest.mark.parametrize("pictures", [True, False], ids=["pictures", "texts"])
@torch.no_grad()
def test_a_model_of_two_towers_gives_the_one_with_a_preprocessor(tmp_path: Path, pictures: bool) -> None:
    text = {**TEXT, "projection_dim": 8}
    config = hf.CLIPConfig(text_config=text, vision_config=PICTURE, projection_dim=8)
    net = saved(tmp_path, lambda: hf.CLIPModel(config), pictures=pictures)
    source = loaded(tmp_path)
    if pictures:  # newer versions write the same as a part of another file
        own = tmp_path / "preprocessor_config.json"
        part = {"image_processor": json.loads(own.read_text())}
        own.unlink()
        (tmp_path / "processor_config.json").write_text(json.dumps(part))
        assert loaded(tmp_path).preprocess == source.preprocess
        inputs: Any = torch.randn(2, 3, 32, 32)
        expected = net.vision_model(pixel_values=inputs).pooler_output
    else:
        inputs = batch_of(source)
        expected = net.text_model(**inputs).pooler_output
    torch.testing.assert_close(source.backbone(inputs), expected, rtol=1e-4, atol=1e-5)
    assert any("is taken from CLIPModel" in n for n in source.notes)


@torch.no_grad()
def test_siglips_text_tower_does_not_depend_on_the_batch(tmp_path: Path) -> None:
    config = hf.SiglipTextConfig(**TEXT)
    net = saved(tmp_path, lambda: hf.SiglipTextModel(config))
    source = loaded(tmp_path)
    inputs = batch_of(source)
    alone = torch.cat([source.backbone(batch_of(source, (t,))) for t in TEXTS])
    torch.testing.assert_close(source.backbone(inputs), alone, rtol=1e-4, atol=1e-5)
    ids = inputs["input_ids"].masked_fill(inputs["attention_mask"] == 0, config.pad_token_id)
    ids = nn.functional.pad(ids, (0, 32 - ids.shape[1]), value=config.pad_token_id)
    torch.testing.assert_close(alone, net(input_ids=ids).pooler_output, rtol=1e-4, atol=1e-5)


def test_a_network_that_does_not_mask_padding_is_said(tmp_path: Path) -> None:
    fnet = hf.FNetConfig(**TEXT, tpu_short_seq_length=32, pad_token_id=0)
    saved(tmp_path / "a", lambda: hf.FNetModel(fnet))
    assert any("FNetModel does not mask padding" in n for n in loaded(tmp_path / "a").notes)
    saved(tmp_path / "b", lambda: gpt2(None), side="left")
    assert not loaded(tmp_path / "b").notes


@pytest.mark.parametrize("name", ["CLIP", "Siglip"])
@torch.no_grad()
def test_a_head_on_a_vision_tower_gives_its_own_logits(tmp_path: Path, name: str) -> None:
    config = getattr(hf, f"{name}Config")(vision_config=PICTURE, text_config=TEXT)
    config.num_labels = 3
    net = saved(tmp_path, lambda: getattr(hf, f"{name}ForImageClassification")(config))
    source, x = loaded(tmp_path), torch.randn(2, 3, 32, 32)
    assert source.head is not None
    torch.testing.assert_close(source.head(source.backbone(x)), net(pixel_values=x).logits)


@torch.no_grad()
def test_a_masked_autoencoder_sees_the_whole_picture(tmp_path: Path) -> None:
    net = saved(tmp_path, lambda: hf.ViTMAEModel(hf.ViTMAEConfig(**PICTURE, mask_ratio=0.75)))
    source, x = loaded(tmp_path), torch.randn(2, 3, 32, 32)
    assert torch.equal(source.backbone(x), source.backbone(x))
    net.config.mask_ratio = 0.0
    order = torch.arange(16.0).expand(2, 16)  # noise that shuffles nothing
    expected = net(pixel_values=x, noise=order).last_hidden_state[:, 0]
    torch.testing.assert_close(source.backbone(x), expected, rtol=1e-4, atol=1e-5)


def test_inputs_that_regraft_does_not_make_are_named(tmp_path: Path) -> None:
    vision = {k: v for k, v in PICTURE.items() if k != "image_size"}
    config = hf.Siglip2Config(text_config=TEXT, vision_config=vision)
    saved(tmp_path / "a", lambda: hf.Siglip2ForImageClassification(config))
    assert "needs pixel_attention_mask, spatial_shapes" in refused(tmp_path / "a")
    saved(tmp_path / "b", lambda: hf.VideoMAEModel(hf.VideoMAEConfig(**PICTURE, num_frames=4)))
    assert "takes videos" in refused(tmp_path / "b")


# ---------------------------------------------------------------- sentence-transformers


def sentence(folder: Path, pooling: dict[str, Any], *more: tuple[str, dict[str, Any]]) -> Any:
    """A BERT in a folder as sentence-transformers writes it."""
    net = saved(folder, lambda: hf.BertModel(hf.BertConfig(**TEXT, pad_token_id=0)))
    listed = [{"path": "", "type": "sentence_transformers.models.Transformer"}]
    for i, (name, values) in enumerate([("Pooling", pooling), *more], 1):
        part = folder / f"{i}_{name}"
        part.mkdir()
        (part / "config.json").write_text(json.dumps(values))
        listed.append({"path": part.name, "type": f"sentence_transformers.models.{name}"})
    (folder / "modules.json").write_text(json.dumps(listed))
    return net


def pooled(rows: list[Tensor], mode: str) -> Tensor:
    """Each row's tokens [T, D] reduced by the definition, without padding."""
    weights = {
        "mean": lambda n: torch.ones(n) / n,
        "mean_sqrt_len_tokens": lambda n: torch.ones(n) / n**0.5,
        "weightedmean": lambda n: torch.arange(1.0, n + 1) / (n * (n + 1) / 2),
    }
    if mode in weights:
        return torch.stack([weights[mode](len(r)) @ r for r in rows])
    pick = {"cls": lambda r: r[0], "lasttoken": lambda r: r[-1], "max": lambda r: r.max(0).values}
    return torch.stack([pick[mode](r) for r in rows])


FLAGS = {
    "cls": "cls_token",
    "max": "max_tokens",
    "mean": "mean_tokens",
    "lasttoken": "lasttoken",
    "mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "weightedmean": "weightedmean_tokens",
}
ALL = {f"pooling_mode_{flag}": False for flag in FLAGS.values()}


@pytest.mark.parametrize("modes", [[m] for m in FLAGS] + [["cls", "mean"], ["max", "lasttoken"]], ids="+".join)
@torch.no_grad()
def test_poolings_of_old_and_new_folders_are_as_defined(tmp_path: Path, modes: list[str]) -> None:
    new = {"embedding_dimension": 16, "pooling_mode": modes if len(modes) > 1 else modes[0]}
    old = ALL | {f"pooling_mode_{FLAGS[m]}": True for m in modes} | {"word_embedding_dimension": 16}
    net = sentence(tmp_path, new)
    source = loaded(tmp_path)
    inputs = batch_of(source)
    hidden, mask = net(**inputs).last_hidden_state, inputs["attention_mask"].bool()
    rows = [h[m] for h, m in zip(hidden, mask, strict=True)]
    expected = torch.cat([pooled(rows, m) for m in modes], 1)
    torch.testing.assert_close(source.backbone(inputs), expected, rtol=1e-4, atol=1e-5)
    assert all(b.run is not None for b in source.blocks)
    (tmp_path / "1_Pooling/config.json").write_text(json.dumps(old))
    assert loaded(tmp_path).recipe["pooling"] == source.recipe["pooling"]


def dense(inputs: int, outputs: int, **more: Any) -> tuple[str, dict[str, Any]]:
    return "Dense", {"in_features": inputs, "out_features": outputs, **more}


@torch.no_grad()
def test_dense_layers_follow_the_pooling_and_normalise_between(tmp_path: Path) -> None:
    gelu = "torch.nn.modules.activation.GELU"
    net = sentence(
        tmp_path,
        {"pooling_mode": "mean"},
        ("Normalize", {}),
        dense(16, 8, activation_function=gelu),
        dense(8, 8, bias=False, use_residual=True),
        ("Normalize", {}),
    )
    first, second = nn.Linear(16, 8), nn.Linear(8, 8, bias=False)
    for part, layer in (("3_Dense", first), ("4_Dense", second)):
        state = {f"linear.{n}": t for n, t in layer.state_dict().items()}
        save_file(state, tmp_path / part / "model.safetensors")
    source = loaded(tmp_path)
    inputs = batch_of(source)
    hidden, mask = net(**inputs).last_hidden_state, inputs["attention_mask"].unsqueeze(-1)
    x = nn.functional.normalize((hidden * mask).sum(1) / mask.sum(1), dim=1)
    x = nn.functional.gelu(first(x))
    expected = torch.tanh(second(x)) + x  # Tanh where the config names none
    torch.testing.assert_close(source.backbone(inputs), expected, rtol=1e-4, atol=1e-5)
    assert source.features == 8 and any("unit length" in n for n in source.notes)
    assert {t.name for t in source.report if t.name.startswith("after.")} == {
        "after.1.linear.weight",
        "after.1.linear.bias",
        "after.2.linear.weight",
    }
    same_again(source, tmp_path / "run", inputs)


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (dense(16, 8, activation_function="os.system"), "its activation os.system is none of"),
        (dense(16, 8, activation_function="torch.nn.modules.activation.Evil"), "is none of"),
        (dense(16, 10**9), "there is no dense layer"),
        (("LayerNorm", {}), "modules.json names LayerNorm"),
        (("Router", {}), "modules.json names Router"),
    ],
    ids=["code", "unknown", "wide", "LayerNorm", "Router"],
)
def test_modules_that_regraft_lacks_are_refused_by_name(
    tmp_path: Path, more: tuple[str, dict[str, Any]], words: str
) -> None:
    sentence(tmp_path, {"pooling_mode": "mean"}, more)
    assert words in refused(tmp_path)


@torch.no_grad()
def test_an_encoder_in_a_folder_of_its_own_is_found(tmp_path: Path) -> None:
    sentence(tmp_path, {"pooling_mode": "max"})
    inputs = batch_of(loaded(tmp_path))
    expected = loaded(tmp_path).backbone(inputs)
    (tmp_path / "0_Transformer").mkdir()
    for path in list(tmp_path.iterdir()):
        if path.is_file() and path.name != "modules.json":
            path.rename(tmp_path / "0_Transformer" / path.name)
    listed = json.loads((tmp_path / "modules.json").read_text())
    listed[0]["path"] = "0_Transformer"
    (tmp_path / "modules.json").write_text(json.dumps(listed))
    assert torch.equal(loaded(tmp_path).backbone(inputs), expected)


@pytest.mark.parametrize(
    ("module", "words"),
    [
        ({"path": "", "type": "evil.Transformer"}, "asks for code of its own"),
        ({"path": "../x", "type": "sentence_transformers.models.Transformer"}, "elsewhere"),
        ({"path": "", "type": "sentence_transformers.models.WordEmbeddings"}, "begins with WordEmb"),
        (7, "has 7, not a type and a path"),
    ],
    ids=["code", "elsewhere", "words", "number"],
)
def test_a_list_of_modules_names_no_code_and_no_other_place(tmp_path: Path, module: Any, words: str) -> None:
    sentence(tmp_path, {"pooling_mode": "mean"})
    (tmp_path / "modules.json").write_text(json.dumps([module]))
    assert words in refused(tmp_path)


def test_prompts_that_are_not_used_are_said(tmp_path: Path) -> None:
    sentence(tmp_path, {"pooling_mode": "mean", "include_prompt": False})
    prompts = {"prompts": {"query": "query: ", "none": ""}, "default_prompt_name": "query"}
    (tmp_path / "config_sentence_transformers.json").write_text(json.dumps(prompts))
    assert any('not even the usual "query"' in n for n in loaded(tmp_path).notes)
    (tmp_path / "1_Pooling/config.json").write_text('{"pooling_mode": "guess"}')
    assert "pooling ['guess'] is not supported" in refused(tmp_path)


# ---------------------------------------------------------------- sizes and other networks


def swin() -> Any:
    return hf.SwinModel(
        hf.SwinConfig(image_size=32, patch_size=4, embed_dim=8, depths=[1, 1], num_heads=[1, 2], window_size=4)
    )


@pytest.mark.fault(77)
@pytest.mark.parametrize(
    ("make", "change", "words"),
    [
        (swin, {"depths": [10**6] * 4, "num_heads": [1] * 4}, "depths is 1,000,000"),
        (swin, {"depths": [900] * 900, "num_heads": [1] * 900}, "depths is 810,000 in all"),
        (swin, {"depths": [700, 700]}, "more than 2,129 tensors, and the weights file holds 43"),
        (swin, {"embed_dim": 2**14}, "18,255,282,323 values (73.0 GB)"),
        (lambda: gpt2(0), {"n_layer": 10**9}, "n_layer is 1,000,000,000"),
        (lambda: gpt2(0), {"vocab_size": 10**10}, "and the weights file holds"),
        (lambda: gpt2(0), {"num_labels": 10**9}, "num_labels is 1,000,000,000"),
    ],
    ids=["depths", "many depths", "tensors", "width", "layers", "words", "labels"],
)
def test_a_config_far_larger_than_its_weights_is_refused_unbuilt(
    tmp_path: Path, make: Callable[[], Any], change: dict[str, Any], words: str
) -> None:
    saved(tmp_path, make)
    changed(tmp_path / "config.json", **change)
    assert words in refused(tmp_path)


@pytest.mark.fault(77)
def test_a_runs_recipe_is_held_against_its_weights_too(tmp_path: Path) -> None:
    saved(tmp_path, lambda: gpt2(0))
    source, run = loaded(tmp_path), tmp_path / "run"
    plugin.save_files(source, run)
    save_file({f"backbone.{n}": t for n, t in source.backbone.state_dict().items()}, run / "model.safetensors")
    config = {**source.recipe["config"], "n_embd": 2**14}
    changes: list[tuple[dict[str, Any], str]] = [
        ({"config": config}, "GB"),
        ({"max_length": 10**9}, "cuts texts at 1000000000"),
        ({"after": [{"inputs": 10**9}]}, "no dense layer"),
        ({"auto": "AutoModel", "pooling": "x"}, 'no pooling "x"'),
        ({"class": "os"}, "cannot be built"),
        ({"auto": "AutoModelForCausalLM"}, "code"),
    ]
    for change, words in changes:
        with pytest.raises(SourceError, match=words):
            plugin.build(json.loads(json.dumps({**source.recipe, **change})), run)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"model_type": "timm_wrapper", "architecture": "hf-hub:x/y"}, "timm's hf-hub:x/y in a wrapper"),
        ({"model_type": "timm_backbone"}, "in a wrapper"),
        ({"model_type": "upernet"}, "is a network around another one"),
        ({"backbone": "x/y"}, "names another network (backbone: x/y)"),
        ({"use_pretrained_backbone": True}, "names another network"),
        ({"backbone_config": {"model_type": "resnet"}}, "names another network"),
        ({"text_config": {"auto_map": {"AutoModel": "evil.E"}}}, "auto_map"),
        ({"quantization_config": {"quant_method": "gptq"}}, "quantised"),
        ({"model_type": "newer"}, 'has no architecture "newer"'),
        ({"model_type": ""}, "has no model_type"),
    ],
)
def test_a_config_that_names_another_network_is_refused(tmp_path: Path, change: dict[str, Any], words: str) -> None:
    saved(tmp_path, swin)
    changed(tmp_path / "config.json", **change)
    assert words in refused(tmp_path)


def test_pictures_larger_than_any_network_takes_are_refused(tmp_path: Path) -> None:
    saved(tmp_path, swin)
    changed(tmp_path / "preprocessor_config.json", size={"height": 10**6, "width": 32})
    assert "pictures of 1000000 × 32 pixels" in refused(tmp_path)


def test_an_adapter_without_its_model_is_named(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text('{"base_model_name_or_path": "a/b"}')
    assert "an adapter of peft for a/b" in refused(tmp_path)


def test_counts_of_the_librarys_own_configs_are_no_fault() -> None:
    from regraft.sources._budget import check_counts

    for kind in (
        "bert",
        "canine",
        "gemma3_text",
        "qwen3",
        "swin",
        "funnel",
        "gpt_neo",
        "albert",
        "reformer",
        "clip",
        "efficientnet",
        "perceiver",
        "bigbird_pegasus",
        "mpt",
    ):
        check_counts(hf.AutoConfig.for_model(kind).to_dict(), kind)


# ---------------------------------------------------------------- tokenizers


@pytest.mark.parametrize(
    ("file", "content", "package"),
    [
        ("spm.model", b"\n\x0e\n\x05<unk>\x15", "sentencepiece"),
        ("tokenizer.model", b"IQ== 0\nIg== 1\n", "tiktoken"),
        ("qwen.tiktoken", b"IQ== 0\n", "tiktoken"),
    ],
)
def test_a_tokenizer_that_needs_a_package_names_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file: str, content: bytes, package: str
) -> None:
    from regraft.sources import _folder

    (tmp_path / file).write_bytes(content)
    monkeypatch.setattr(_folder, "is_absent", lambda module: True)
    said = _folder.describe_tokenizer_failure(tmp_path, ImportError("something about tiktoken"))
    assert said == f"{file} is read by the package {package}: pip install {package}"
    monkeypatch.setattr(_folder, "is_absent", lambda module: False)
    assert _folder.describe_tokenizer_failure(tmp_path, ImportError("as it was")) == "as it was"


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("schema", True, "another version"),
        ("task", {"task": "my.mod:Evil"}, r"task\.task: "),
        ("task", {"task": 7}, r"task\.task: "),
    ],
)
def test_a_runs_config_is_of_plain_values(tmp_path: Path, key: str, value: Any, words: str) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    config = {"schema": 1, "recipe": {"source": "timm"}, "task": {"task": "classification"}}
    (folder / "config.json").write_text(json.dumps({**config, key: value}))
    with pytest.raises(SourceError, match=words):
        load_source(str(tmp_path), OFFLINE)
