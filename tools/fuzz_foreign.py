"""Readers of data that a stranger made: whole run folders, recipes of networks, tokenizers."""

from __future__ import annotations

import json
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml
from markdown_it import MarkdownIt

import regraft
from fuzz_damage import altered, as_json, hostile
from fuzz_readers import FOLDERS, OUTSIDE, RUN, Passing, Reader, put
from regraft import plugins
from regraft.commands import compare
from regraft.data.preprocessing import TextPreprocessor
from regraft.data.types import TextSpec
from regraft.io.foreign_code import tokenizer_of
from regraft.model.types import SourceOptions
from regraft.publish import export as exporting
from regraft.publish.model_card import card
from regraft.report.reading import RunFiles
from regraft.sources import load_source

CODE = "raise SystemExit('a file of the folder was run')\n"
MARKED = "x\"'`\n\n```python\nraise SystemExit\n```\n---\nlicense: mit\n---\n# | [a](b) <script>\x1b[2J\u2028"
OFTEN = 0.3


def strings_marked(tree: Any, rng: random.Random) -> Any:
    """Return a tree with some strings and names replaced by code, YAML and Markdown."""
    if isinstance(tree, dict):
        return {(k if rng.random() < 0.98 else k + MARKED): strings_marked(v, rng) for k, v in tree.items()}
    if isinstance(tree, list):
        return [strings_marked(v, rng) for v in tree]
    return tree + MARKED if isinstance(tree, str) and rng.random() < 0.2 else tree


def replaced(path: Path, rng: random.Random) -> None:
    """Replace a file by something that is no file."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
    how = rng.randrange(4)
    if how == 0:
        path.symlink_to(rng.choice([path.name, OUTSIDE, "/dev/zero", "..", "nowhere"]))
    elif how == 1:
        os.mkfifo(path)
    elif how == 2:
        path.mkdir()
    else:
        path.write_bytes(b"")


# ---------------------------------------------------------------- run folders


def a_whole_run(folder: Path, rng: random.Random) -> None:
    """Write a finished run with a few files that are damaged, that are no files, or that hold code in strings."""
    names = [n for n in RUN if not n.startswith(("checkpoints", "lock", "resumes"))]
    put(folder / "runs" / "good", {n: RUN[n] for n in names}, set(), rng)
    run = folder / "runs" / "bad"
    broken = set(rng.sample(names, rng.choice((0, 1, 1, 2))))
    put(run, {n: RUN[n] for n in names}, broken, rng)
    if rng.random() < OFTEN:
        replaced(run / rng.choice([*names, "model", "gallery"]), rng)
    if rng.random() < 2 * OFTEN:
        for name in ("result.json", "environment.json", "model/config.json", "check.json"):
            plain = (run / name).is_file() and not (
                run / name
            ).is_symlink()  # do not write through a link out of the folder
            if name in RUN and name not in broken and plain:
                tree = strings_marked(json.loads(RUN[name]), rng)
                tree["status"] = "finished"
                (run / name).write_text(json.dumps(tree), encoding="utf-8")
    for name in ("evil.py", "torch.py", "sitecustomize.py"):
        (run / name).write_text(CODE, encoding="utf-8")


def read_a_whole_run(picture: Path) -> Callable[[Path], None]:
    """Read a run as report, compare, predict, export and the pages of ui do."""

    def read(folder: Path) -> None:
        from regraft.report.render import report
        from regraft.watching.following import look
        from regraft.watching.pages import as_json as answered
        from regraft.watching.resources import ProcessMonitor
        from regraft.watching.runs import Runs

        good, run = folder / "runs" / "good", folder / "runs" / "bad"
        names = [record["name"] for record in json.loads(answered(Runs(run.parent).all()).body)]
        assert "good" in names, "a damaged run takes another from the list"
        answered(look(run, ProcessMonitor()))
        with Passing():
            report([run], folder / "report.html")
        with Passing():
            compare.in_words(*compare.compare_runs([good, run]))
        predictor = regraft.load(run)
        with Passing():
            predictor.predict([picture])
        read_card(run, predictor, folder)

    return read


def read_card(run: Path, predictor: Any, scratch: Path) -> None:
    """Check an export's card: its head reads, and its one block of code is the format's."""
    files, format = RunFiles.read(run), plugins.module("exports", "timm")
    examples, what = exporting.rows_for(files, predictor, 2, scratch)
    package = exporting.packed(files, predictor, examples, format)
    record = {
        "calibrated": False,
        "numbers": False,
        "int8": None,
        "parity": {"n": 2, "rows": what, "difference": 0.0, "same": 2, "ties": 0},
    }
    code = format.snippet(package)
    text = card(files, package, "timm", code, (), record)
    head, body = text.removeprefix("---\n").split("\n---\n", 1)
    assert yaml.safe_load(head)["library_name"] == "timm", "another head"
    fences = [t.content for t in MarkdownIt().parse(body) if t.type in ("fence", "code_block", "html_block")]
    assert fences == [code.strip() + "\n"], "another block of code"


# ---------------------------------------------------------------- recipes


REFERENCES = [
    {"auto_map": {"AutoConfig": "evil.Evil", "AutoModel": "evil.Evil", "AutoTokenizer": ["evil.Evil", None]}},
    {"custom_pipelines": {"a": {"impl": "evil.Evil"}}},
    {"backbone": "resnet18", "use_timm_backbone": True},
    {"backbone": "hf-hub:a/b", "use_pretrained_backbone": True},
    {"architecture": "hf-hub:a/b"},
    {"architecture": "local-dir:/etc"},
    {"attn_implementation": "kernels-community/flash-attn"},
    {"_attn_implementation": "a/b:c"},
    {"quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True}},
    {"quantization_config": {"quant_method": "fbgemm_fp8"}},
    {"torch_dtype": "os.system"},
    {"dtype": "evil"},
    {"num_hidden_layers": 10**6},
    {"hidden_size": 10**7},
    {"vocab_size": 10**9},
    {"image_size": 10**5},
    {"text_config": {"auto_map": {"AutoModel": "evil.Evil"}, "model_type": "bert"}},
    {"_name_or_path": "../.."},
    {"tokenizer_class": "evil.Evil"},
    {"tokenizer_class": "AutoModel"},
    {"hidden_act": "evil"},
    {"base_model_tp_plan": {"*": "evil"}},
    {"id2label": {"a": []}},
    {"architectures": ["evil.Evil"]},
]
KINDS = [
    "bert",
    "vit",
    "distilbert",
    "xlnet",
    "timm_wrapper",
    "timm_backbone",
    "dpt",
    "upernet",
    "encoder-decoder",
    "vision-text-dual-encoder",
    "clip",
    "unknown",
    "../bert",
]


def with_references(config: Any, rng: random.Random) -> Any:
    """Return a configuration that names code, other models or impossible sizes."""
    if not isinstance(config, dict):
        return config
    for _ in range(rng.choice((0, 1, 1, 2))):
        config |= rng.choice(REFERENCES)
    if rng.random() < OFTEN:
        config["model_type"] = rng.choice(KINDS)
    return config


def a_recipe(folder: Path, rng: random.Random) -> None:
    """Write a transformers folder, or a run, with another configuration."""
    (folder / "evil.py").write_text(CODE, encoding="utf-8")
    if rng.random() < 0.6:
        files = FOLDERS[rng.choice(("bert", "vit"))]
        put(folder, files, set(), rng)
        config = with_references(json.loads(files["config.json"]), rng)
        text = as_json(altered(config, rng) if rng.random() < 0.5 else config, rng)
        (folder / "config.json").write_bytes(text)
        return
    put(folder, {n: RUN[n] for n in RUN if n.startswith("model/")}, set(), rng)
    config = json.loads(RUN["model/config.json"])
    if rng.random() < 0.5:
        inner = json.loads(FOLDERS["vit"]["config.json"])
        image = config["recipe"].get("image")
        config["recipe"] = {
            "source": "transformers",
            "auto": rng.choice(("AutoModel", "AutoTokenizer", "pipeline")),
            "config": with_references(inner, rng),
            "pooling": "mean",
            "head": False,
            "licence": "",
            "image": image,
        }
    else:
        config["recipe"] |= {
            rng.choice(list(config["recipe"])): rng.choice(("hf-hub:a/b", "local-dir:.", "evil:f", hostile(rng)))
        }
    (folder / "model" / "config.json").write_bytes(as_json(altered(config, rng) if rng.random() < 0.5 else config, rng))


def read_a_recipe(folder: Path) -> None:
    run = (folder / "model").is_dir()
    load_source(str(folder) if run else f"transformers:{folder}", SourceOptions(offline=True))


# ---------------------------------------------------------------- tokenizers


TOKENIZER: dict[str, bytes] = {}  # file → bytes of a tokenizer, in fast and slow form


def make_tokenizer(work: Path) -> None:
    tokenizer = tokenizer_of(str(work / "bert"))
    tokenizer.save_pretrained(work / "tokenizer")
    TOKENIZER.update({f.name: f.read_bytes() for f in sorted((work / "tokenizer").iterdir())})
    TOKENIZER["vocab.txt"] = FOLDERS["bert"]["vocab.txt"]
    TOKENIZER["config.json"] = FOLDERS["bert"]["config.json"]
    TOKENIZER["special_tokens_map.json"] = b'{"pad_token": "[PAD]", "unk_token": {"content": "[UNK]"}}'
    TOKENIZER["added_tokens.json"] = b'{"day": 7}'


SETTINGS = [
    *(r for r in REFERENCES if {"auto_map", "tokenizer_class", "custom_pipelines"} & set(r)),
    {"tokenizer_file": "/etc/passwd"},
    {"vocab_file": "/etc/passwd"},
    {"auto_map": ["evil.Evil", "evil.Evil"]},
    {"fast_tokenizer_files": ["../../tokenizer.1.0.json", "tokenizer.json"]},
    {"init_inputs": ["/etc/passwd"]},
    {"tokenizer_class": "AutoTokenizer"},
    {"tokenizer_class": "Trainer"},
    {"tokenizer_class": "GPT2Tokenizer"},
    {"tokenizer_class": "LlamaTokenizer"},
    {"tokenizer_class": "TokenizersBackend"},
    {"pad_token": None},
    {"model_max_length": -1},
    {"model_max_length": "x"},
    {"padding_side": "up"},
    {"chat_template": "{{ 1 / 0 }}"},
    {"added_tokens_decoder": {"0": {"content": "[PAD]", "special": True}, "99999999999": {"content": "x"}}},
    {"extra_special_tokens": {"a": "b"}},
    {"tokenizer_class": None},
    {"backend": "custom"},
]


def a_tokenizer(folder: Path, rng: random.Random) -> None:
    """Write a tokenizer's folder with damage, or with settings that name code and other files."""
    files = dict(TOKENIZER)
    for name in rng.sample(list(files), rng.choice((0, 0, 1, 2))):
        del files[name]
    broken = set(rng.sample(list(files), rng.choice((0, 1, 1))))
    put(folder, files, broken, rng)
    for name in ("tokenizer_config.json", "config.json"):
        if rng.random() < 0.5 and name in files and name not in broken:
            settings = json.loads(files[name])
            for _ in range(rng.choice((1, 1, 2))):
                settings |= rng.choice(SETTINGS)
            (folder / name).write_bytes(as_json(settings, rng))
    if rng.random() < 0.1:
        replaced(folder / rng.choice(list(TOKENIZER)), rng)
    (folder / "evil.py").write_text(CODE, encoding="utf-8")


def read_a_tokenizer(folder: Path) -> None:
    texts = TextPreprocessor(TextSpec(str(folder), 16))
    rows = texts.many([("good day",), ("bad " * 30,), ("",), ("\0 é",)])
    assert all(len(row["input_ids"]) <= 16 for row in rows), "longer than the limit"
    texts.collate(rows)
    texts.lengths([("good day",)])


def foreign_readers(work: Path) -> dict[str, Reader]:
    """Return the readers of this file, made from the files of ``readers``."""
    make_tokenizer(work)
    picture = next((work / "pictures").rglob("*.png"))
    return {
        "run folder": Reader(a_whole_run, read_a_whole_run(picture)),
        "recipe": Reader(a_recipe, read_a_recipe),
        "tokenizer": Reader(a_tokenizer, read_a_tokenizer),
    }
