"""No library may run a folder's code, nor ask whether it should: every call says so, and hooks are refused."""

from __future__ import annotations

import ast
import json
import os
import re
from pathlib import Path

import pytest

import regraft
from regraft.errors import SourceError
from regraft.io import foreign_code
from regraft.model.types import SourceOptions
from regraft.sources import load_source
from regraft.sources.transformers import skeleton

PACKAGE = Path(regraft.__file__).parent
LOADS = {"from_pretrained", "from_config"}  # calls of transformers that look for a folder's code
NEVER = {
    "input",
    "eval",
    "exec",
    "__import__",
    "pipeline",
    "transformers.pipeline",
    "os.system",
    "os.popen",
    "pickle.load",
    "pickle.loads",
    "yaml.load",
    "torch.hub.load",
}
SHOWN = re.compile(r"from_pretrained\(")


def calls(tree: ast.AST) -> list[tuple[str, ast.Call]]:
    """Every call, with the dotted name of what is called as far as it is one."""
    return [(ast.unparse(n.func), n) for n in ast.walk(tree) if isinstance(n, ast.Call)]


def allowed(name: str, call: ast.Call) -> bool:
    last = name.rpartition(".")[2]
    said = {k.arg: getattr(k.value, "value", None) for k in call.keywords}
    if last in LOADS:
        return said.get("trust_remote_code") is False
    if name in ("torch.load", "np.load", "numpy.load"):
        return said.get("weights_only") is True or said.get("allow_pickle", True) is False
    return name not in NEVER


def strings(tree: ast.AST) -> list[str]:
    """Strings of the file, those with values in them as one."""
    inner = {id(v) for n in ast.walk(tree) if isinstance(n, ast.JoinedStr) for v in n.values}
    found = [n.value for n in ast.walk(tree) if isinstance(n, ast.Constant) and id(n) not in inner]
    found += [
        "".join(str(getattr(v, "value", "")) for v in n.values if isinstance(v, ast.Constant))
        for n in ast.walk(tree)
        if isinstance(n, ast.JoinedStr)
    ]
    return [s for s in found if isinstance(s, str)]


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_every_load_says_that_no_code_is_run(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    wrong = [f"line {c.lineno}: {name}" for name, c in calls(tree) if not allowed(name, c)]
    own = ["exec"] if path.name == "fresh_check.py" else []  # the text of an export's format
    assert [w.rpartition(" ")[2] for w in wrong] == own, wrong
    for text in strings(tree):  # the lines that an export prints
        if "``" not in text:  # no docstring
            assert len(SHOWN.findall(text)) == text.count("trust_remote_code=False"), text


@pytest.mark.parametrize(
    "line",
    [
        "AutoTokenizer.from_pretrained(x)",
        "auto.from_config(c)",
        "m.from_pretrained(x, trust_remote_code=y)",
        "transformers.pipeline('x')",
        "torch.hub.load('a', 'b')",
        "torch.load(f)",
        "pickle.load(f)",
        "input('? ')",
        "np.load(f, allow_pickle=True)",
    ],
)
def test_a_load_that_does_not_say_so_is_seen(line):
    assert [name for name, call in calls(ast.parse(line)) if not allowed(name, call)]


# ---------------------------------------------------------------- hooks in a folder


HOOKS = [
    ("tokenizer_config.json", {"auto_map": {"AutoTokenizer": ["evil.Evil", None]}}, "auto_map"),
    ("tokenizer_config.json", {"auto_map": ["evil.Evil", None]}, "auto_map"),
    ("config.json", {"auto_map": {"AutoConfig": "evil.Evil"}}, "auto_map"),
    ("config.json", {"text_config": [{"auto_map": {"AutoModel": "evil.Evil"}}]}, "auto_map"),
    ("config.json", {"custom_pipelines": {"x": {"impl": "evil.Evil"}}}, "custom_pipelines"),
    ("preprocessor_config.json", {"auto_map": {"AutoImageProcessor": "evil.Evil"}}, "auto_map"),
    ("processor_config.json", {"auto_map": {"AutoProcessor": "evil.Evil"}}, "auto_map"),
    ("tokenizer_config.json", {"tokenizer_class": "evil.Evil"}, "tokenizer_class"),
    ("tokenizer_config.json", {"tokenizer_class": "AutoModel"}, "tokenizer_class"),
    ("tokenizer_config.json", {"tokenizer_class": "AutoTokenizer"}, "tokenizer_class"),
    ("config.4.0.0.json", {"auto_map": {"AutoConfig": "evil.Evil"}}, "auto_map"),
    ("config.json", {"tokenizer_class": ["BertTokenizer"]}, "tokenizer_class"),
    ("config.json", {"tokenizer_class": "Trainer"}, "tokenizer_class"),
]


@pytest.mark.parametrize(("file", "hook", "key"), HOOKS)
def test_a_hook_for_code_is_refused_by_file_and_key(tmp_path, file, hook, key):
    base = {"model_type": "bert"} if file == "config.json" else {}
    (tmp_path / file).write_text(json.dumps(base | hook), encoding="utf-8")
    with pytest.raises(SourceError, match=rf'{file}: refused, nothing executed: its "{key}".*remedy') as e:
        foreign_code.refuse(tmp_path)
    assert str(e.value).count("\n") == 0
    (tmp_path / "config.json").touch()
    with pytest.raises(SourceError):
        load_source(f"transformers:{tmp_path}", SourceOptions(offline=True))


@pytest.mark.parametrize("key", ["vocab", "merges"])
def test_a_tokenizer_that_names_a_file_of_this_machine_reads_nothing(tmp_path, key):
    words = ["[UNK]", "[PAD]", "[CLS]", "[SEP]", "[MASK]", "secret"]
    (tmp_path / "secret.txt").write_text("\n".join(words))
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "BertTokenizer"}')
    model = {"type": "WordPiece", "vocab": {word: i for i, word in enumerate(words[:5])}, "unk_token": "[UNK]"}
    model |= {"continuing_subword_prefix": "##", "max_input_chars_per_word": 100}
    (tmp_path / "tokenizer.json").write_text(json.dumps({"version": "1.0", "added_tokens": [], "model": model}))
    assert "secret" not in foreign_code.tokenizer_of(str(tmp_path)).get_vocab()
    (tmp_path / "tokenizer.json").write_text(json.dumps({"model": model | {key: str(tmp_path / "secret.txt")}}))
    with pytest.raises(SourceError, match=rf'tokenizer\.json: refused, nothing read: its "{key}" is .*remedy'):
        foreign_code.tokenizer_of(str(tmp_path))


def test_modules_of_another_package_are_refused(tmp_path):
    for named in ("evil.Evil", None, "sentence_transformersevil.X"):
        (tmp_path / "modules.json").write_text(json.dumps([{"idx": 0, "type": named}]))
        with pytest.raises(SourceError, match=r'modules\.json: refused, nothing executed: its "type"'):
            foreign_code.refuse(tmp_path)
    (tmp_path / "modules.json").write_text(json.dumps([{"type": "sentence_transformers.models.Pooling"}]))
    foreign_code.refuse(tmp_path)


def test_names_of_classes_are_no_hooks(tmp_path):
    values = {"label2id": {"auto_map": 0, "b": 1}, "auto_map": {}, "tokenizer_class": None}
    (tmp_path / "config.json").write_text(json.dumps(values))
    (tmp_path / "data_config.json").write_text('[{"name": "auto_map"}]')
    (tmp_path / "vocab.json").write_text(json.dumps({"auto_map": 7}))
    for named in ("BertTokenizer", "XLMRobertaTokenizerFast", "PreTrainedTokenizerFast", "TokenizersBackend"):
        (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": named}))
        foreign_code.refuse(tmp_path)


def test_a_recipe_that_names_code_deep_inside_is_refused():
    config = {"model_type": "bert", "vision_config": {"auto_map": {"AutoModel": "evil.Evil"}}}
    with pytest.raises(SourceError, match='recipe\'s "auto_map" names Python code'):
        skeleton({"auto": "AutoModel", "config": config}, "run", 10**9)


@pytest.mark.parametrize("name", ["tokenizer_config.json", "config.json", "vocab.txt", "modules.json"])
def test_a_pipe_or_a_device_in_a_folder_is_not_read(tmp_path, name):
    for make in (os.mkfifo, lambda path: path.symlink_to("/dev/zero")):
        make(tmp_path / name)
        with pytest.raises(SourceError, match=f"{name}: refused, it is no regular file"):
            foreign_code.refuse(tmp_path)
        (tmp_path / name).unlink()
    (tmp_path / name).mkdir()
    with pytest.raises(SourceError):
        foreign_code.tokenizer_of(str(tmp_path))


@pytest.mark.parametrize("name", ["tokenizer_config.json", "config.json", "modules.json"])
@pytest.mark.parametrize("text", ["[" * 100_000, "{", "", "\ud800"])
def test_what_cannot_be_looked_at_is_refused(tmp_path, name, text):
    (tmp_path / name).write_bytes(text.encode(errors="surrogatepass"))
    with pytest.raises(SourceError, match=rf"{name}: cannot be read as JSON"):
        foreign_code.refuse(tmp_path)
