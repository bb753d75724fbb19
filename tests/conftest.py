"""No network, no home folder, no second thread pool: what every test may rely on."""

from __future__ import annotations

import json
import os
import socket
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"  # huggingface_hub reads it once, at import

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from regraft.batches import Batches
from regraft.grafting import graft
from regraft.preprocess import build
from regraft.tasks.classification import Classification
from regraft.types import CallableSpec, Example, Source, Target

Cli = Callable[..., tuple[int, str, str]]


@pytest.fixture(autouse=True)
def own_state(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The ledger of opened test sets lies in a folder of the test's own."""
    state = tmp_path_factory.mktemp("state")
    monkeypatch.setenv("REGRAFT_STATE", str(state))
    return state


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    connect = socket.socket.connect

    def guarded(self: socket.socket, address: Any) -> None:
        if self.family != socket.AF_UNIX:  # loader workers speak over these
            raise AssertionError(f"a test tried to reach {address}")
        connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", guarded)


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
        from regraft.cli import main

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
        vocab_size=len(words), hidden_size=16, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=24, max_position_embeddings=32,
    )  # fmt: skip
    transformers.BertModel(config).save_pretrained(folder)
    (folder / "vocab.txt").write_text("\n".join(words))
    settings = {"tokenizer_class": "BertTokenizer", "model_max_length": 32}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


# ---------------------------------------------------------------- a network of our own


class Net(nn.Module):
    """Batch norm and dropout in two blocks, so that a leak of either shows."""

    def __init__(self) -> None:
        super().__init__()
        self.low = nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.3))
        self.high = nn.Sequential(nn.Linear(8, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Dropout(0.3))
        self.fc = nn.Linear(6, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.fc(self.high(self.low(x)))
        return logits


def numbers(row: tuple[str, ...]) -> torch.Tensor:
    """A row of a text data set as the tensor that it spells."""
    return torch.tensor([float(v) for v in row[0].split()])


@pytest.fixture
def module_source() -> Callable[..., Source]:
    """A source from a module that ends in ``fc`` and takes [B, 5]."""

    def make(net: Callable[[], nn.Module] = Net, seed: int = 0) -> Source:
        torch.manual_seed(seed)
        preprocess = CallableSpec(numbers, kind="text")
        return Source.from_module(
            net(), head="fc", preprocess=preprocess, example=torch.randn(4, 5), name="net"
        )

    return make


@pytest.fixture
def net_target(module_source: Callable[..., Source]) -> Target:
    return graft(module_source(), 3, seed=0)


@pytest.fixture
def rows() -> Callable[..., tuple[Batches, torch.Tensor, torch.Tensor, Any]]:
    """(batches, inputs [N, 5], targets [N], task) of three noisy clusters."""

    def make(
        n: int = 32, batch_size: int = 8, seed: int = 0
    ) -> tuple[Batches, torch.Tensor, torch.Tensor, Any]:
        generator = torch.Generator().manual_seed(100 + seed)
        targets = torch.arange(n) % 3
        centres = 2 * torch.eye(5)[:3]
        inputs = centres[targets] + torch.randn(n, 5, generator=generator)
        words = [" ".join(repr(float(v)) for v in row) for row in inputs]
        examples = [
            Example(f"{seed:04d}{i:04d}-0", (words[i],), ("abc"[targets[i]],), f"row {i}")
            for i in range(n)
        ]
        task = Classification().make([("a",), ("b",), ("c",)], ("label",))
        batches = Batches(examples, targets, build(CallableSpec(numbers, kind="text")), batch_size)
        return batches, inputs, targets, task

    return make
