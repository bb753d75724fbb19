"""The command line in this process, tiny data and tiny sources."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

Cli = Callable[..., tuple[int, str, str]]


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    """A run sets torch's threads for the whole process: put them back."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


# ---------------------------------------------------------------- the command line


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Cli:
    """Run ``regraft ARGS`` in this process → (exit code, stdout, stderr)."""

    def call(*args: object) -> tuple[int, str, str]:
        from regraft.cli.app import main

        monkeypatch.setattr(sys, "argv", ["regraft", *map(str, args)])
        code: Any = 0
        try:
            main()
        except SystemExit as stop:
            code = stop.code or 0
        out, err = capsys.readouterr()
        return code, out, err

    return call


# ---------------------------------------------------------------- tiny data

COLOURS = {"amber": (230, 160, 30), "navy": (20, 30, 120), "olive": (90, 120, 20)}


def picture(path: Path, colour: tuple[int, int, int], seed: int, noise: int = 60) -> None:
    rng = np.random.default_rng(seed)
    pixels = np.array(colour) + rng.integers(-noise, noise + 1, (32, 32, 3))
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(path)


@pytest.fixture(scope="session")
def make_pictures() -> Callable[..., Path]:
    """train/CLASS and test/CLASS folders of noisy colours."""

    def make(folder: Path, train: int = 20, test: int = 8, noise: int = 60) -> Path:
        for c, (name, colour) in enumerate(COLOURS.items()):
            for split, count in (("train", train), ("test", test)):
                for i in range(count):
                    seed = 10_000 * c + 1_000 * (split == "test") + i
                    picture(folder / split / name / f"{i:03d}.png", colour, seed, noise)
        return folder

    return make


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory, make_pictures: Any) -> Path:
    """60 train and 24 test pictures of three classes; not to be changed."""
    folder: Path = make_pictures(tmp_path_factory.mktemp("pictures") / "colours")
    return folder


@pytest.fixture(scope="session")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A weights file of timm's test_resnet, drawn once."""
    import timm
    from safetensors.torch import save_file

    torch.manual_seed(0)
    file = tmp_path_factory.mktemp("weights") / "test_resnet.safetensors"
    save_file(timm.create_model("test_resnet", pretrained=False).state_dict(), file)
    return file


@pytest.fixture(scope="session")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a two-layer BERT and a tokenizer of a few words."""
    import transformers

    folder = tmp_path_factory.mktemp("bert")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "good", "bad", "day", "the", "film", "was"]
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=len(words),
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=24,
        max_position_embeddings=32,
    )
    transformers.BertModel(config).save_pretrained(folder)
    (folder / "vocab.txt").write_text("\n".join(words))
    settings = {"tokenizer_class": "BertTokenizer", "model_max_length": 32}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder
