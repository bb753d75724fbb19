"""regraft's own: safetensors and JSON, for `regraft.load`, `predict`, `evaluate`, or as a source.

It holds weights, preprocessing, labels, plan and evidence, without the run's data and without folders above
files. The evidence has the temperature, so ``calibrated()`` works.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ..io import guarded
from . import Package

# The files of a run's model folder by name, because a folder from elsewhere may hold files not to publish.
FILES = ("model.safetensors", "novelty.safetensors", "preprocess.json", "labels.json")

TOKENIZER_FILES = (
    "added_tokens.json",
    "bpe.codes",
    "byte_maps.json",
    "chat_template.jinja",
    "config.json",
    "dict.txt",
    "emoji.json",
    "entity_vocab.json",
    "merges.txt",
    "normalizer.json",
    "prophetnet.tokenizer",
    "sentencepiece.bpe.model",
    "sentencepiece.model",
    "source.spm",
    "special_tokens_map.json",
    "spiece.model",
    "spm.model",
    "spm_char.model",
    "target.spm",
    "target_vocab.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "vocab.json",
    "vocab.txt",
)

needs: tuple[str, ...] = ()

library = "regraft"

with_regraft = True

folds = False


def refusal(package: Package) -> str | None:
    return None


def write(package: Package, folder: Path) -> Sequence[str]:
    (folder / "model").mkdir()
    for name in (*FILES, *(f"tokenizer/{file}" for file in TOKENIZER_FILES)):
        guarded.copy(package.run, f"model/{name}", folder / "model" / name)
    for name in ("model/config.json", "plan.toml", "result.json"):
        (folder / name).write_text(package.plain[name], encoding="utf-8")
    return ()


def snippet(package: Package) -> str:
    return """import regraft

model = regraft.load(".")  # this folder

def scores(batch):
    return [list(p.scores.values()) for p in model.predict(batch)]
"""
