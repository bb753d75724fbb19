"""Packages that a tokenizer needs to load, with pip's command."""

from __future__ import annotations

import re
from importlib.util import find_spec
from pathlib import Path

PIECES = ("spm.model", "spiece.model", "sentencepiece.bpe.model", "tokenizer.model", "source.spm")

PACKAGES = {
    "sentencepiece": "sentencepiece",
    "tiktoken": "tiktoken",
    "google.protobuf": "protobuf",
    "sacremoses": "sacremoses",
    "jieba": "jieba",
    "rjieba": "rjieba",
    "fugashi": "fugashi",
    "ipadic": "ipadic",
    "unidic_lite": "unidic_lite",
    "unidic": "unidic",
    "sudachipy": "sudachipy",
    "rhoknp": "rhoknp",
    "ftfy": "ftfy",
    "spacy": "spacy",
    "emoji": "emoji",
    "pythainlp": "pythainlp",
    "phonemizer": "phonemizer",
    "uroman": "uroman",
}  # module → what pip calls it


def describe_failure(folder: Path, error: Exception) -> str:
    """Return the reason why a tokenizer does not load.

    The file decides which package reads it. The library tries one package after another and names the last one, which
    may not help.
    """
    needed = package_of(folder)
    if needed is not None:
        package, file = PACKAGES[needed[0]], needed[1]
        lacks = f"{file} is read by the package {package}: pip install {package}"
        return lacks if is_absent(needed[0]) else str(error)
    messages = " ".join(str(e) for e in causes_of(error))
    mentioned = [m for m in PACKAGES if re.search(rf"\b{m.rpartition('.')[2]}\b", messages, re.IGNORECASE)]
    module = next((m for m in mentioned if is_absent(m)), None)
    if module is None:
        return str(error)
    return f"it needs the package {PACKAGES[module]}: pip install {PACKAGES[module]}"


def package_of(folder: Path) -> tuple[str, str] | None:
    """Return (module, file) of a vocabulary that needs a package. None with tokenizer.json, which needs none."""
    if (folder / "tokenizer.json").is_file():
        return None
    for path in sorted(folder.glob("*.tiktoken")):
        return "tiktoken", path.name
    for name in PIECES:
        if (folder / name).is_file():
            return ("tiktoken" if lines_of_base64(folder / name) else "sentencepiece"), name
    return None


def lines_of_base64(path: Path) -> bool:
    """Return whether a file is tiktoken's: lines of a token in base64 and its number."""
    with path.open("rb") as file:
        return re.match(rb"[A-Za-z0-9+/]+=* \d+\r?\n", file.read(300)) is not None


def is_absent(module: str) -> bool:
    """Return whether a module is not installed."""
    try:
        return find_spec(module) is None
    except ModuleNotFoundError:  # of a package inside one that is absent
        return True


def causes_of(error: BaseException | None) -> list[BaseException]:
    """Return an error and the errors that caused it."""
    errors: list[BaseException] = []
    while error is not None and error not in errors:
        errors.append(error)
        error = error.__cause__ or error.__context__
    return errors
