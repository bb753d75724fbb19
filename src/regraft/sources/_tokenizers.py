"""What a tokenizer lacks that does not load, in words with pip's line."""

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
    """Return the reason that a tokenizer does not load.

    The file says which package reads it. The library tries one package after another and names
    the last, which need not be the one that helps.
    """
    found = package_of(folder)
    if found is not None:
        package, file = PACKAGES[found[0]], found[1]
        lacks = f"{file} is read by the package {package}: pip install {package}"
        return lacks if is_absent(found[0]) else str(error)
    text = " ".join(str(e) for e in causes_of(error))
    named = [m for m in PACKAGES if re.search(rf"\b{m.rpartition('.')[2]}\b", text, re.IGNORECASE)]
    module = next((m for m in named if is_absent(m)), None)
    if module is None:
        return str(error)
    return f"it needs the package {PACKAGES[module]}: pip install {PACKAGES[module]}"


def package_of(folder: Path) -> tuple[str, str] | None:
    """Return (module, file) of a vocabulary that needs a package; None with tokenizer.json, which
    needs none."""
    if (folder / "tokenizer.json").is_file():
        return None
    for path in sorted(folder.glob("*.tiktoken")):
        return "tiktoken", path.name
    for name in PIECES:
        if (folder / name).is_file():
            return ("tiktoken" if lines_of_base64(folder / name) else "sentencepiece"), name
    return None


def lines_of_base64(path: Path) -> bool:
    """Return whether a file is tiktoken's, a token in base64 and its number a line."""
    with path.open("rb") as file:
        return re.match(rb"[A-Za-z0-9+/]+=* \d+\r?\n", file.read(300)) is not None


def is_absent(module: str) -> bool:
    try:
        return find_spec(module) is None
    except ModuleNotFoundError:  # of a package inside one that is absent
        return True


def causes_of(error: BaseException | None) -> list[BaseException]:
    """Return an error and those that led to it."""
    found: list[BaseException] = []
    while error is not None and error not in found:
        found.append(error)
        error = error.__cause__ or error.__context__
    return found
