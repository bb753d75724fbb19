import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from pydantic import TypeAdapter, ValidationError

from regraft.data.ordering import stable
from regraft.data.preprocessing import build, from_json, mix, save_tokenizer, to_json
from regraft.data.types import Augment, CallableSpec, Example, ImageSpec, Splits, TextSpec
from regraft.errors import DataError, SourceError
from regraft.pipeline.prepare import cut_texts

SPEC = ImageSpec(size=(24, 24), resize=28)


def photo(path, width=60, height=41, mode="RGB"):
    noise = np.random.default_rng(0).integers(0, 255, (height, width, 3), dtype=np.uint8)
    Image.fromarray(noise).convert(mode).save(path)
    return (str(path),)


@pytest.fixture
def tokenizer(tmp_path):
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "one", "two", "three"]
    raw = Tokenizer(models.WordPiece({w: i for i, w in enumerate(words)}, unk_token="[UNK]"))
    raw.pre_tokenizer = pre_tokenizers.Whitespace()
    raw.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    PreTrainedTokenizerFast(
        tokenizer_object=raw, unk_token="[UNK]", pad_token="[PAD]", cls_token="[CLS]", sep_token="[SEP]"
    ).save_pretrained(tmp_path / "tok")
    return TextSpec(str(tmp_path / "tok"), max_length=5)


# ---------------------------------------------------------------- pictures


@pytest.mark.parametrize("name", ["tf_efficientnet_lite0", "vit_tiny_patch16_224"])
@pytest.mark.parametrize("size", [(500, 375), (100, 130)])
def test_evaluation_equals_timms_transform_bit_for_bit(tmp_path, name, size):
    import timm

    config = timm.data.resolve_model_data_config(timm.create_model(name, pretrained=False))
    theirs = timm.data.create_transform(**config)
    spec = ImageSpec(
        size=config["input_size"][1:],
        resize=int(config["input_size"][1] / config["crop_pct"]),
        interpolation=config["interpolation"],
        mean=config["mean"],
        std=config["std"],
    )
    inputs = photo(tmp_path / "a.png", *size)
    ours = build(spec)
    with Image.open(inputs[0]) as picture:
        assert torch.equal(ours.collate([ours.one(inputs)])[0], theirs(picture))


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_a_picture_has_the_channels_of_the_spec(tmp_path, channels):
    spec = replace(SPEC, mean=(0.5,) * channels, std=(0.5,) * channels, resize=(24, 30))
    p = build(spec)
    batch = p.collate([p.one(photo(tmp_path / "a.png"))] * 2)
    assert batch.shape == (2, channels, 24, 24) and batch.dtype == torch.float32
    assert batch.min() >= -1 and batch.max() <= 1


def test_augmentation_is_a_function_of_seed_epoch_and_id_alone(tmp_path):
    inputs, p = photo(tmp_path / "a.png"), build(SPEC)
    augment = Augment(randaugment=9)
    first = p.one(inputs, augment, (0, 1, "a"))
    torch.rand(7)  # what others draw does not matter
    state = torch.get_rng_state()
    assert torch.equal(first, p.one(inputs, augment, (0, 1, "a")))
    assert torch.equal(state, torch.get_rng_state())  # nor are others disturbed
    for other in ((1, 1, "a"), (0, 2, "a"), (0, 1, "b")):
        assert not torch.equal(first, p.one(inputs, augment, other))


def test_augmentation_off_is_evaluation(tmp_path):
    inputs, p = photo(tmp_path / "a.png"), build(SPEC)
    off = Augment(random_resized_crop=False, flip=False)
    assert torch.equal(p.one(inputs, off, (0, 0, "a")), p.one(inputs))


def test_flip_flips_half_of_the_samples(tmp_path):
    inputs, p = photo(tmp_path / "a.png"), build(SPEC)
    plain = p.one(inputs)
    augment = Augment(random_resized_crop=False)
    seen = [p.one(inputs, augment, (0, 0, str(i))) for i in range(40)]
    flipped = sum(torch.equal(x, plain.flip(-1)) for x in seen)
    assert 10 < flipped < 30 and flipped + sum(torch.equal(x, plain) for x in seen) == 40


@pytest.mark.parametrize(
    "values",
    [
        {"scale": (0.0, 1.0)},
        {"scale": (0.9, 0.1)},
        {"ratio": (0.0, 1.0)},
        {"randaugment": 31},
        {"mixup": -1.0},
        {"flipp": True},
    ],
)
def test_augment_refuses_what_makes_no_sense(values):
    with pytest.raises(ValidationError):
        TypeAdapter(Augment).validate_python(values)


def test_a_bad_picture_is_named(tmp_path):
    (tmp_path / "bad.jpg").write_text("x")
    with pytest.raises(DataError, match=r"bad\.jpg cannot be read as a picture"):
        build(SPEC).one((str(tmp_path / "bad.jpg"),))


# ---------------------------------------------------------------- mixing


def test_mixup_blends_pictures_and_targets_by_the_same_share():
    inputs = torch.eye(4).view(4, 4, 1, 1).expand(4, 4, 8, 8)  # picture i is 1 in channel i
    mixed, targets = mix(inputs, torch.arange(4), 4, Augment(mixup=1.0), 0, 0, 0)
    assert torch.allclose(mixed.mean((2, 3)), targets)
    assert torch.allclose(targets.sum(1), torch.ones(4)) and not torch.equal(targets, torch.eye(4))


def test_cutmix_counts_targets_by_area():
    inputs = torch.eye(4).view(4, 4, 1, 1).expand(4, 4, 9, 7)
    for step in range(20):
        mixed, targets = mix(inputs, torch.arange(4), 4, Augment(cutmix=1.0), 0, 0, step)
        assert torch.allclose(mixed.mean((2, 3)), targets, atol=1e-6)
        assert set(mixed.unique().tolist()) <= {0.0, 1.0}


def test_mixing_is_a_function_of_seed_epoch_and_step():
    inputs, targets = torch.rand(8, 3, 6, 6), torch.arange(8)
    augment = Augment(mixup=0.4, cutmix=1.0)
    first, soft = mix(inputs, targets, 8, augment, 0, 0, 0)
    again, same = mix(inputs, targets, 8, augment, 0, 0, 0)
    assert torch.equal(first, again) and torch.equal(soft, same)
    for key in ((1, 0, 0), (0, 1, 0), (0, 0, 1)):
        assert not torch.equal(first, mix(inputs, targets, 8, augment, *key)[0])


def test_without_mixing_a_batch_is_returned_as_it_is():
    inputs, targets = torch.rand(2, 3, 4, 4), torch.arange(2)
    got = mix(inputs, targets, 2, Augment(), 0, 0, 0)
    assert got[0] is inputs and got[1] is targets
    with pytest.raises(ValueError, match="need pictures"):
        mix(torch.rand(2, 3), targets, 2, Augment(mixup=1.0), 0, 0, 0)


# ---------------------------------------------------------------- texts and one's own


def test_a_text_without_a_token_is_refused_by_name(tmp_path):
    """A vocabulary without a token for the unknown drops what it does not know."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    raw = Tokenizer(models.BPE({"[PAD]": 0, "o": 1}, []))
    raw.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=raw, pad_token="[PAD]").save_pretrained(tmp_path)
    p = build(TextSpec(str(tmp_path), max_length=5))
    assert p.one(("oo",))["input_ids"] == [1, 1]
    with pytest.raises(DataError, match="makes no token of 1 texts: 'xyz'"):
        p.many([("o",), ("xyz",)])
    rows = tuple(Example(f"{i:016x}-0", (t,), ("a",), f"row {i}") for i, t in enumerate(("o", "xyz")))
    with pytest.raises(DataError, match="no token of 1 of 2 texts: row 1"):
        cut_texts(p, Splits("text", rows, (), (), "", ""))


def test_a_tokenizer_that_does_not_cut_is_refused(tokenizer):
    p = build(tokenizer)
    cut, p.tokenizer = p.tokenizer, lambda first, second, **how: {"input_ids": [[1] * 6]}
    with pytest.raises(SourceError, match="makes 6 tokens of a text where 5 are the limit"):
        p.many([("one",)])
    p.tokenizer = cut
    assert len(p.many([("one two three one two",)])[0]["input_ids"]) == 5


def test_a_tokenizer_that_panics_is_refused_an_interrupt_is_not(tokenizer):
    p = build(tokenizer)

    def call(error):
        def tokenize(first, second, **how):
            raise error

        p.tokenizer = tokenize
        p.many([("one",)])

    panic = type("PanicException", (BaseException,), {})  # as Rust's is, through pyo3
    with pytest.raises(SourceError, match="PanicException: no entry found for key"):
        call(panic("no entry found for key"))
    with pytest.raises(KeyboardInterrupt):
        call(KeyboardInterrupt())


def test_a_token_to_pad_with_that_is_unknown_is_refused(tokenizer, monkeypatch):
    from transformers import PreTrainedTokenizerFast

    def unknown(self):
        raise RecursionError

    monkeypatch.setattr(PreTrainedTokenizerFast, "pad_token_id", property(unknown), raising=False)
    with pytest.raises(SourceError, match="token to pad with is not in its vocabulary"):
        build(tokenizer)


def test_texts_are_cut_counted_and_padded_to_the_batch(tokenizer):
    p = build(tokenizer)
    inputs = [("one",), ("one two three one two",), ("two unknown",)]
    rows = p.many(inputs)
    assert [r["input_ids"] for r in rows] == [[2, 4, 3], [2, 4, 5, 6, 3], [2, 5, 1, 3]]
    assert p.one(inputs[2]) == rows[2]
    assert p.lengths(inputs) == [3, 7, 4]
    batch = p.collate([rows[0], rows[2]])
    assert batch["input_ids"].tolist() == [[2, 4, 3, 0], [2, 5, 1, 3]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 0], [1, 1, 1, 1]]


def test_a_pair_of_texts_is_one_row(tokenizer):
    assert build(tokenizer).one(("one", "two"))["input_ids"] == [2, 4, 3, 5, 3]


def test_a_tokenizer_that_does_not_load_is_named(tmp_path):
    (tmp_path / "nothing").mkdir()
    with pytest.raises(SourceError, match="nothing: its tokenizer cannot be loaded"):
        build(TextSpec(str(tmp_path / "nothing"), 8))


@pytest.mark.parametrize(
    ("file", "alter", "words"),
    [
        ("tokenizer.json", lambda t: t["model"]["vocab"].pop("[UNK]"), "its tokenizer fails on a text"),
        ("tokenizer_config.json", lambda t: t.update(model_max_length="x"), "its tokenizer fails on a text"),
        ("tokenizer_config.json", lambda t: t.pop("pad_token"), "no token to pad with"),
    ],
)
def test_a_tokenizer_that_fails_on_a_text_is_named(tokenizer, file, alter, words):
    path = Path(tokenizer.tokenizer) / file
    tree = json.loads(path.read_text())
    alter(tree)
    path.write_text(json.dumps(tree))
    with pytest.raises(SourceError, match=f"tok: .*{words}"):
        build(tokenizer).lengths([("unheard",)])


def test_a_function_of_ones_own_is_called_with_the_inputs():
    p = build(CallableSpec(lambda inputs: torch.tensor([float(inputs[0])])))
    assert p.collate([p.one(("1",)), p.one(("2",))]).tolist() == [[1.0], [2.0]]


# ---------------------------------------------------------------- JSON


def test_specs_survive_json(tmp_path, tokenizer):
    spec = replace(SPEC, resize=(30, 40), mean=(0.1, 0.2, 0.3))
    assert from_json(json.loads(json.dumps(to_json(spec))), tmp_path) == spec
    save_tokenizer(tokenizer, tmp_path / "model")
    back = from_json(json.loads(json.dumps(to_json(tokenizer))), tmp_path / "model")
    assert build(back).many([("one two",)]) == build(tokenizer).many([("one two",)])


@pytest.mark.parametrize(
    "values", [{}, {"kind": "image"}, {"kind": "text"}, {"kind": "callable"}, {"kind": "image", "size": 3}]
)
def test_a_spec_that_does_not_read_is_a_source_error(tmp_path, values):
    with pytest.raises(SourceError):
        from_json(values, tmp_path)


def test_the_stable_key_does_not_move():  # runs of earlier versions depend on it
    assert stable(0, 1, "a") == 3768550248782271056


# ---------------------------------------------------------------- decoded once


def test_a_picture_is_decoded_again_when_its_file_changes(tmp_path, monkeypatch):
    from regraft.data import images as pictures

    read: list[str] = []
    plain = pictures.read_picture

    def counting(path, channels=3):
        read.append(path)
        return plain(path, channels)

    monkeypatch.setattr(pictures, "read_picture", counting)
    inputs, varied = photo(tmp_path / "a.png"), Augment(scale=(0.3, 0.6), flip=True)
    ours, fresh = build(SPEC), build(SPEC)
    for key in [(0, 1, "a"), (0, 2, "a"), (0, 1, "a")]:
        assert torch.equal(ours.one(inputs, varied, key), build(SPEC).one(inputs, varied, key))
    before = ours.one(inputs)
    assert torch.equal(before, fresh.one(inputs)), "augmentation leaves what is kept as it is"
    assert len(read) == 1 + 3 + 1  # ours once, every other preprocessor once

    Image.fromarray(np.zeros((41, 60, 3), dtype=np.uint8)).save(tmp_path / "a.png")
    assert not torch.equal(ours.one(inputs), before)
    (tmp_path / "a.png").unlink()
    with pytest.raises(DataError, match="no such file"):
        ours.one(inputs)


def test_decoded_pictures_have_a_limit(tmp_path, monkeypatch):
    monkeypatch.setattr("regraft.data.preprocessing.MAX_DECODED_BYTES", 3 * 60 * 41 * 3 + 1)
    ours = build(SPEC)
    for name in "abcde":
        ours.one(photo(tmp_path / f"{name}.png"))
    assert [key[0][-5] for key in ours._decoded] == ["a", "b", "c"]
