"""The sets of the league: labelled rows, draws of them, and a draw as a table.

DATA is a folder with small/NAME (a cut), small/pools/NAME (further labelled rows) and whole data sets.
"""

from __future__ import annotations

import csv
import random
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

Row = tuple[str, str]  # (text or picture, label)

MOST_SPARE = 400  # rows that judge


@dataclass(frozen=True)
class Set:
    """A data set of the league."""

    name: str
    kind: str  # "text" or "image"
    each: int  # labelled rows a class, or in all where the label is a number
    folder: str  # below DATA
    pool: str = ""  # further labelled rows, below DATA
    number: bool = False

    @property
    def source(self) -> str:
        """Return the source of every arm."""
        return "bundled:all-minilm-l6-v2" if self.kind == "text" else "bundled:efficientnet-lite0"

    @property
    def metric(self) -> str:
        """Return the metric that arms are compared by."""
        return "r2" if self.number else "accuracy"


def small(name: str, kind: str, each: int) -> Set:
    return Set(name, kind, each, f"small/{name}", f"small/pools/{name}{'.csv' if kind == 'text' else ''}")


SETS = (
    small("custrev-50", "text", 50),
    small("subj-50", "text", 50),
    small("mpqa-50", "text", 50),
    small("rt-polarity-100", "text", 100),
    small("tweet_irony-100", "text", 100),
    small("tweet_offensive-100", "text", 100),
    small("clinc40-10", "text", 10),
    Set("tweet_emotion-30", "text", 30, "tweet_emotion"),
    small("cifar10-40", "image", 40),
    small("rooms-20", "image", 20),
    small("fashion-20", "image", 20),
    Set("flowers17-10", "image", 10, "flowers17"),
    Set("ants_bees-20", "image", 20, "ants_bees"),
    Set("house_price-100", "image", 100, "small/house_price", number=True),
    Set("bccd_count-60", "image", 60, "bccd_count", number=True),
)


# ---------------------------------------------------------------- rows


def table_rows(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def texts(path: Path) -> list[Row]:
    return [(row["text"], row["label"]) for row in table_rows(path)]


def pictures(folder: Path) -> list[Row]:
    return [(str(p), d.name) for d in sorted(folder.iterdir()) if d.is_dir() for p in sorted(d.iterdir())]


def numbers(folder: Path) -> dict[str, list[Row]]:
    """Return the rows of the two sets of numbers, by split; val counts as train."""
    if (folder / "labels.csv").exists():
        rows = [(str(folder / "images" / r["file"]), r["rbc"], r["split"]) for r in table_rows(folder / "labels.csv")]
    else:
        rows = [(str(folder / r["picture"]), r["log10_price"], r["split"]) for r in table_rows(folder / "table.csv")]
    return {
        "train": [(x, y) for x, y, split in rows if split != "test"],
        "test": [(x, y) for x, y, split in rows if split == "test"],
    }


def rows_of(data: Path, about: Set, part: str) -> list[Row]:
    """Return the labelled rows of a set, its pool included, or its test rows."""
    folder = data / about.folder
    if about.number:
        return numbers(folder)[part]
    read = texts if about.kind == "text" else pictures
    end = ".csv" if about.kind == "text" else ""
    rows = read(folder / f"{part}{end}")
    return rows + read(data / about.pool) if about.pool and part == "train" else rows


def draw(rows: Sequence[Row], about: Set, number: int) -> tuple[list[Row], list[Row]]:
    """Return (labelled rows, spare rows) of a draw."""
    shuffled = sorted(set(rows))
    random.Random(1000 * number + 17).shuffle(shuffled)
    if about.number:
        return shuffled[: about.each], shuffled[about.each :]
    seen: dict[str, int] = {}
    labelled, spare = list[Row](), list[Row]()
    for row in shuffled:
        seen[row[1]] = seen.get(row[1], 0) + 1
        (labelled if seen[row[1]] <= about.each else spare).append(row)
    return labelled, spare


def write(data: Path, about: Set, number: int, judge: str, out: Path) -> Path:
    """Write a draw as a table whose split "test" is the rows that judge; return its path."""
    labelled, spare = draw(rows_of(data, about, "train"), about, number)
    judges = spare[:MOST_SPARE] if judge == "spare" else rows_of(data, about, "test")
    out.mkdir(parents=True)
    with (out / "table.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["text" if about.kind == "text" else "picture", "label", "split"])
        for split, rows in (("train", labelled), ("test", judges)):
            for i, (x, y) in enumerate(rows):
                if about.kind == "image":
                    name = f"{split}-{i}{Path(x).suffix}"
                    shutil.copy(x, out / name)
                    x = name
                writer.writerow([x, y, split])
    return out / "table.csv"
