"""Notebooks beside the tutorials, each written from its page so that the two stay equal.

A code block becomes a cell, the prose between them markdown; a block that is marked as not run is prose.
"""

import json
import re
from dataclasses import dataclass
from pathlib import Path

TUTORIALS = Path(__file__).with_name("tutorials")
FENCE = re.compile(
    r"(?:^<!-- not run: (?P<reason>[^\n]+) -->\n)?^```(?P<language>\w*)\n(?P<code>.*?)^```$\n?", re.M | re.S
)


@dataclass(frozen=True)
class Block:
    language: str  # "python", "bash", "text", "" …
    code: str
    reason: str | None  # why it is not run
    start: int  # where it stands in the page, from its mark on
    end: int
    line: int


def blocks(page: str) -> list[Block]:
    """Return the fenced blocks of a markdown page, in order."""
    return [
        Block(m["language"], m["code"], m["reason"], *m.span(), page.count("\n", 0, m.start()) + 1)
        for m in FENCE.finditer(page)
    ]


def notebook(page: str) -> str:
    """Return a page as the JSON of a notebook, without outputs."""
    cells: list[dict[str, object]] = []

    def add(kind: str, text: str) -> None:
        text = text.strip("\n")
        if text:
            cell = {
                "cell_type": kind,
                "id": f"cell-{len(cells)}",
                "metadata": {},
                "source": text.splitlines(keepends=True),
            }
            cells.append(cell | ({"execution_count": None, "outputs": []} if kind == "code" else {}))

    done = 0
    for block in blocks(page):
        if block.reason or block.language not in ("python", "bash"):
            continue
        add("markdown", page[done : block.start])
        add("code", block.code if block.language == "python" else f"%%bash\n{block.code}")
        done = block.end
    add("markdown", page[done:])
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    whole = {"cells": cells, "metadata": {"kernelspec": kernel}, "nbformat": 4, "nbformat_minor": 5}
    return json.dumps(whole, indent=1, ensure_ascii=False) + "\n"


def main() -> None:
    for page in sorted(TUTORIALS.glob("*.md")):
        page.with_suffix(".ipynb").write_text(notebook(page.read_text(encoding="utf-8")), encoding="utf-8")
    print(f"{TUTORIALS}: notebooks written")


if __name__ == "__main__":
    main()
