"""Records of rows, splits and preprocessing; no I/O and no torch at import."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from ..compute.arrays import Kind
from ..errors import DataError

if TYPE_CHECKING:
    from torch import Tensor


# ---------------------------------------------------------------- data


@dataclass(frozen=True, slots=True)
class Row:
    """One row as a format reads it; nothing is decoded yet."""

    inputs: tuple[str, ...]  # an image path, or one or two texts
    cells: tuple[str, ...]  # the label columns, as text; empty where the data have no labels
    where: str  # for messages: "labels.csv row 12" or "tulip/0001.jpg"
    split: str | None = None  # "train", "val" or "test" where the data say so
    group: str | None = None  # rows of one group stay in one split


@dataclass(frozen=True)
class RawData:
    """What a format found: rows, what their inputs are, and what the label cells are called."""

    kind: Kind
    rows: Sequence[Row]
    columns: tuple[str, ...] = ("label",)  # names of the label cells
    notes: tuple[str, ...] = ()  # told to the user
    left_out: tuple[tuple[str, str], ...] = ()  # (where, why) of files that are no rows
    empty: tuple[str, ...] = ()  # class folders without a picture


@dataclass(frozen=True, slots=True)
class PictureFacts:
    """What is seen of a picture while it is decoded once; the checks look at it."""

    format: str  # by content, as Pillow names it
    mode: str  # Pillow's, before any conversion
    size: tuple[int, int]  # width and height in pixels, as stored
    deep: bool  # more than 8 bits a channel
    animated: bool
    orientation: int  # EXIF, 1 (upright) to 8
    hash: int | None  # perceptual hash, 64 bits; None for a picture without any structure
    mirrored: int | None  # the hash of its mirror image
    thumb: bytes  # the upright picture in 16 × 16 grey values, row by row


@dataclass(frozen=True, slots=True)
class Example:
    """One row with its identity. ``id`` is (hash of the inputs, occurrence number)."""

    id: str
    inputs: tuple[str, ...]
    cells: tuple[str, ...]
    where: str
    group: str | None = None
    facts: PictureFacts | None = field(default=None, compare=False, repr=False)


@dataclass(frozen=True)
class Splits:
    """Target data, ready to be batched. ``val`` is empty where there are too few rows for one."""

    kind: Kind
    train: Sequence[Example]
    val: Sequence[Example]
    test: Sequence[Example]
    digest: str  # sha256 over (id, split, label) of every row, independent of their order
    test_digest: str  # the same over the test rows; the ledger's key
    notes: tuple[str, ...] = ()
    unreadable: tuple[tuple[str, str], ...] = ()  # (where, why) of rows that were left out
    settled: tuple[tuple[str, str], ...] = ()  # (where, what) was done to rows by [data] leaks
    left_out: tuple[tuple[str, str], ...] = ()  # (where, why) of files that are no rows
    empty: tuple[str, ...] = ()  # class folders without a picture


@dataclass(frozen=True)
class DataOptions:
    """The plan's ``[data]``: where the target data lie and how they are read."""

    __pydantic_config__ = {"extra": "forbid", "strict": True}  # noqa: RUF012

    path: Path  # a folder of pictures, a table, or a folder of tables
    format: str = "auto"  # a file of formats/; "auto" asks each of them
    image_root: Path | None = None  # folder of the pictures that a table names; the table's own
    image: str | None = None  # column of picture paths
    text: tuple[str, ...] = ()  # one column of texts, or a pair of columns
    label: tuple[str, ...] = ()  # label columns
    split: str | None = None  # column that says train, val or test
    group: str | None = None  # column; rows of one group stay in one split
    val: float = 0.2  # fraction of train that becomes val where the data bring none; 0: no val
    folds: int | None = None  # no val: all rows but test are train, for cross-validation
    split_seed: int = 0
    on_bad: Literal["fail", "skip"] = "fail"  # inputs that cannot be read: stop, or leave them out
    follow_links: bool = False  # links to pictures and folders outside of the data folder are read
    leaks: Literal["keep", "drop", "move"] = "keep"  # of train out, or of test and val into train
    leak_limit: float = 0.5  # share of test or val rows that may be in train, where leaks are kept
    empty_labels: bool = False  # an empty label cell is a row without labels, not a fault
    label_separator: str = ";"  # between the labels of one cell, where a row has several

    def __post_init__(self) -> None:
        if not 0 <= self.val < 1:
            raise ValueError(f"val is a fraction of train, from 0 to below 1, not {self.val}")

    def for_task(self, task: object) -> DataOptions:
        """Return these options with what the task's options, or the task, say of label cells.

        Raises DataError where ``label_separator`` and the task's own separator disagree.
        """
        separator = getattr(task, "separator", self.label_separator)
        if self.label_separator not in (DataOptions.label_separator, separator):
            raise DataError(
                f'data.label_separator is "{self.label_separator}" and task.separator "{separator}": '
                "set task.separator alone"
            )
        empty = bool(getattr(task, "empty_labels", False))
        return replace(self, empty_labels=empty, label_separator=separator)


# ---------------------------------------------------------------- preprocessing


@dataclass(frozen=True)
class ImageSpec:
    """How a source wants its pictures: resize, crop, scale to [0, 1], normalise."""

    size: tuple[int, int]  # height and width that the network sees, in pixels
    resize: int | tuple[int, int]  # shorter side, or (height, width), before the crop
    interpolation: Literal["nearest", "bilinear", "bicubic", "lanczos"] = "bicubic"
    mean: tuple[float, ...] = (0.5, 0.5, 0.5)
    std: tuple[float, ...] = (0.5, 0.5, 0.5)

    @property
    def channels(self) -> int:
        return len(self.mean)


@dataclass(frozen=True)
class TextSpec:
    """How a source wants its texts: a tokenizer folder (or a hub name) and a length in tokens."""

    tokenizer: str
    max_length: int


@dataclass(frozen=True)
class CallableSpec:
    """Preprocessing of one's own: ``one(inputs) -> Tensor``; not saved with a run."""

    one: Callable[[tuple[str, ...]], Tensor]
    kind: Kind = "tensor"


Preprocess = ImageSpec | TextSpec | CallableSpec


@dataclass(frozen=True)
class Augment:
    """Random views of training pictures; nothing of it reaches evaluation."""

    __pydantic_config__ = {"extra": "forbid", "strict": True}  # noqa: RUF012

    random_resized_crop: bool = field(default=True, metadata={"help": "else the evaluation's resize and centre crop"})
    scale: tuple[float, float] = field(
        default=(0.5, 1.0), metadata={"help": "share of the picture's area that a crop keeps"}
    )
    ratio: tuple[float, float] = field(default=(0.75, 4 / 3), metadata={"help": "width ÷ height of a crop"})
    flip: bool = field(default=True, metadata={"help": "left to right, half of the time"})
    randaugment: int = field(default=0, metadata={"help": "magnitude, 0 (off) to 30"})
    mixup: float = field(default=0.0, metadata={"help": "alpha of MixUp; 0: off"})
    cutmix: float = field(default=0.0, metadata={"help": "alpha of CutMix; 0: off"})

    def __post_init__(self) -> None:
        if not 0 < self.scale[0] <= self.scale[1] <= 1:
            raise ValueError("scale takes two shares with 0 < low <= high <= 1")
        if not 0 < self.ratio[0] <= self.ratio[1]:
            raise ValueError("ratio takes two numbers with 0 < low <= high")
        if not 0 <= self.randaugment <= 30:
            raise ValueError("randaugment takes a magnitude from 0 to 30")
        if self.mixup < 0 or self.cutmix < 0:
            raise ValueError("mixup and cutmix take an alpha of 0 or more")
