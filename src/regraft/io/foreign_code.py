"""Checks of a model folder for code of its own, before a library reads the folder.

transformers runs Python that a folder's JSON names, if its caller allows that. If its caller says nothing,
transformers asks on standard input. regraft neither allows it nor lets it ask.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..errors import SourceError, printable

CODE_KEYS = ("auto_map", "custom_pipelines")

NAME_KEYS = ("label2id",)  # the keys of their values are class names, which may be any text

TOKENIZER = re.compile(r"(?!Auto)[A-Za-z]\w*(Tokenizer|TokenizerFast|Backend)")

MODULE_PREFIX = "sentence_transformers."  # of every class that modules.json may name


def find_code_key(tree: Any) -> str | None:
    """Return the first key, at any depth, that names code; None where there is none."""
    stack = [tree]
    while stack:
        node = stack.pop()
        if isinstance(node, dict):
            if named := next((key for key in CODE_KEYS if node.get(key)), None):
                return named
            stack += [value for key, value in node.items() if key not in NAME_KEYS]
        elif isinstance(node, list):
            stack += node
    return None


def refuse(folder: Path) -> None:
    """Refuse a folder whose configurations name code, or whose tokenizer names a file of this machine.

    Raises SourceError for one, and for what is neither a file nor a folder, because reading a
    pipe never ends.
    """
    for path in sorted(folder.iterdir()):
        if path.exists() and not path.is_file() and not path.is_dir():
            raise SourceError(f"{path}: refused, it is no regular file")
    for path in sorted({*folder.glob("*config.json"), *folder.glob("config.*.json")}):
        values = read(path)
        if key := find_code_key(values):
            raise SourceError(
                f'{path}: refused, nothing executed: its "{key}" names Python code; remedy: use a folder '
                f"without it, or take the key out where the library's own class does"
            )
        named = values.get("tokenizer_class") if isinstance(values, dict) else None
        if named is not None and not (isinstance(named, str) and TOKENIZER.fullmatch(named)):
            raise SourceError(
                f'{path}: refused, nothing executed: its "tokenizer_class" is {shown(named)}, which is no '
                f"tokenizer of transformers; remedy: name one, as PreTrainedTokenizerFast"
            )
    path = folder / "tokenizer.json"
    tree = read(path) if path.is_file() else {}
    model = tree.get("model") if isinstance(tree, dict) else None
    for key in ("vocab", "merges"):
        if isinstance(model, dict) and isinstance(model.get(key), str):  # the library would open the file of that name
            raise SourceError(
                f'{path}: refused, nothing read: its "{key}" is {shown(model[key])}, the name of a file, where a '
                f"vocabulary belongs; remedy: save the tokenizer again with save_pretrained"
            )
    path = folder / "modules.json"
    parts = read(path) if path.is_file() else []
    for part in parts if isinstance(parts, list) else []:
        named = part.get("type") if isinstance(part, dict) else part
        if not isinstance(named, str) or not named.startswith(MODULE_PREFIX):
            raise SourceError(
                f'{path}: refused, nothing executed: its "type" is {shown(named)}, which is no module of '
                f"sentence-transformers; remedy: use a folder without it"
            )


def read(path: Path) -> Any:
    """Read a configuration. Raises SourceError for a damaged one, because it may name code."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise SourceError(f"{path}: cannot be read as JSON ({error})") from error


def shown(value: Any) -> str:
    """Return a value of a stranger's file for a message, cut to 60 characters."""
    return printable(f"{value!r:.60}")


def tokenizer_of(folder: str, explain: Callable[[Path, Exception], str] | None = None) -> Any:
    """Load the tokenizer of a folder; where there is no such folder, of the hub.

    ``explain`` turns a library's error into words; by default the error's own text is used. Raises
    SourceError for a tokenizer that does not load, or that asks for code of its own.
    """
    from transformers import AutoTokenizer, PreTrainedTokenizerBase

    local = Path(folder).is_dir()
    if local:
        refuse(Path(folder))
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=local, trust_remote_code=False)
    except Exception as error:  # the libraries raise errors of all kinds, Exception itself too
        why = " ".join((explain(Path(folder), error) if explain else str(error)).split())
        raise SourceError(f"{folder}: its tokenizer cannot be loaded ({why})") from error
    if not isinstance(tokenizer, PreTrainedTokenizerBase):
        raise SourceError(f"{folder}: it has a {type(tokenizer).__name__} where a tokenizer belongs")
    return tokenizer
