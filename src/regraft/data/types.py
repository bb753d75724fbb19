"""Records of rows, splits and preprocessing; no I/O and no torch at import."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BeforeValidator, ConfigDict, Field
from pydantic.dataclasses import dataclass as record

from ..compute.arrays import Kind
from ..errors import DataError

if TYPE_CHECKING:
    from torch import Tensor


# ---------------------------------------------------------------- data


@dataclass(frozen=True, slots=True)
class Row:
    """A row as a format reads it, before anything is decoded."""

    inputs: tuple[str, ...]  # an image path, or one or two texts
    cells: tuple[str, ...]  # label columns, as text; empty where the data have no labels
    where: str  # for messages: "labels.csv row 12" or "tulip/0001.jpg"
    split: str | None = None  # "train", "val" or "test" where the data say so
    group: str | None = None  # rows of one group stay in one split


@dataclass(frozen=True)
class RawData:
    """Rows of a data set, as a format reads them, with the kind of their inputs and their label columns."""

    kind: Kind
    rows: Sequence[Row]
    columns: tuple[str, ...] = ("label",)  # names of the label cells
    notes: tuple[str, ...] = ()  # for people
    left_out: tuple[tuple[str, str], ...] = ()  # (where, why) of files that are no rows
    empty: tuple[str, ...] = ()  # class folders without an image


@dataclass(frozen=True, slots=True)
class PictureFacts:
    """Facts of an image from one decode, for the checks."""

    format: str  # by content, as Pillow names it
    mode: str  # Pillow's, before any conversion
    size: tuple[int, int]  # width and height in pixels, as stored
    deep: bool  # more than 8 bits a channel
    animated: bool
    orientation: int  # EXIF, 1 (upright) to 8
    hash: int | None  # perceptual hash, 64 bits; None for an image without structure
    mirrored: int | None  # the hash of the mirror image
    thumb: bytes  # the upright image as 16 × 16 grey values, row by row


@dataclass(frozen=True, slots=True)
class Example:
    """A row with its identity: ``id`` is the hash of its inputs and the number of the occurrence."""

    id: str
    inputs: tuple[str, ...]
    cells: tuple[str, ...]
    where: str
    group: str | None = None
    facts: PictureFacts | None = field(default=None, compare=False, repr=False)

    @property
    def content(self) -> str:
        """Return the part of the id that is the hash of the inputs: 16 hex digits."""
        return content_of(self.id)


def content_of(id_: str) -> str:
    """Return the part of a row's id that is the hash of its inputs: 16 hex digits."""
    return id_.partition("-")[0]


@dataclass(frozen=True)
class Splits:
    """Target rows, divided. ``val`` is empty where train has too few rows for one."""

    kind: Kind
    train: Sequence[Example]
    val: Sequence[Example]
    test: Sequence[Example]
    digest: str  # sha256 of (id, split, label) of every row, in any order
    test_digest: str  # the same of the test rows alone; key of the ledger
    notes: tuple[str, ...] = ()
    unreadable: tuple[tuple[str, str], ...] = ()  # (where, why) of rows that were left out
    settled: tuple[tuple[str, str], ...] = ()  # (where, what [data] leaks did) of rows
    left_out: tuple[tuple[str, str], ...] = ()  # (where, why) of files that are no rows
    empty: tuple[str, ...] = ()  # class folders without an image


def key(description: str, **bounds: Any) -> Any:
    """Return the meaning and the bounds of a plan's key, for an annotation."""
    return Field(description=description, **bounds)


def text_of(path: Any) -> Any:
    """Return a path as the text that a plan has for it."""
    return str(path) if isinstance(path, Path) else path


# A plan's text, or a path given in Python. The schema's format makes a flag of it a path.
PathText = Annotated[str, BeforeValidator(text_of), Field(json_schema_extra={"format": "path"})]

STRICT = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, defer_build=True)


@record(frozen=True, config=STRICT)
class RowOptions:
    """Options for reading labelled rows: the keys that ``[data]`` and ``[source_data]`` share."""

    path: Annotated[PathText, key("folder of class folders, a table, or a folder of tables")]
    format: Annotated[str, key("reader of the path: image_folder or table; auto looks at the path")] = "auto"
    image_root: Annotated[PathText | None, key("folder that a table's image paths start from")] = None
    image: Annotated[str | None, key("column of image paths")] = None
    text: Annotated[tuple[str, ...], key("text column; two for a pair")] = ()
    label: Annotated[tuple[str, ...], key("label column; several for several labels")] = ()
    split: Annotated[str | None, key('column that says "train", "val" or "test"')] = None
    group: Annotated[str | None, key("column whose equal values stay in one split")] = None
    on_bad: Annotated[Literal["fail", "skip"], key("unreadable rows: fail stops, skip leaves them out")] = "fail"
    follow_links: Annotated[bool, key("follow links to pictures and folders outside the data folder")] = False

    @property
    def label_separator(self) -> str:
        """Return the separator of the labels in one cell, if a row has several."""
        return ";"

    @property
    def empty_labels(self) -> bool:
        """Return whether an empty label cell is a row without labels; else it is a fault."""
        return False


@record(frozen=True, config=STRICT)
class DataOptions(RowOptions):
    """The plan's ``[data]``: the target rows, and how they are divided."""

    val: Annotated[float, key("share of train that becomes val where the data have none; 0: no val", ge=0, lt=1)] = 0.2
    folds: Annotated[
        Annotated[int, Field(ge=2, le=20)] | None,
        key("folds of train that replace val for choices and estimates; a group stays in one fold"),
    ] = None
    split_seed: Annotated[int, key("seed of the splits that regraft draws", ge=0)] = 0
    leaks: Annotated[
        Literal["keep", "drop", "move"],
        key(
            "rows whose content is in two splits; keep: only report; drop: remove from train; "
            "move: move from test and val to train"
        ),
    ] = "keep"
    leak_limit: Annotated[
        float,
        key(
            "share of test or val rows that may also be in another split, where leaks are kept; "
            "above it a fit stops; 1 never stops it",
            ge=0,
            le=1,
        ),
    ] = 0.5
    label_separator: Annotated[str, key("separator of the labels in one multi-label cell")] = ";"

    def for_task(self, task: object) -> DataOptions:
        """Return these options with what the task's options, or the task, say of label cells.

        Raises DataError where ``label_separator`` and the task's own separator disagree.
        """
        separator = getattr(task, "separator", self.label_separator)
        if self.label_separator not in (";", separator):
            raise DataError(
                f'data.label_separator is "{self.label_separator}" and task.separator "{separator}": '
                "set task.separator alone"
            )
        options = replace(self, label_separator=separator)
        return options.with_empty_labels() if getattr(task, "empty_labels", False) else options

    def with_empty_labels(self) -> DataOptions:
        """Return these options with empty label cells read as rows without labels."""
        return MultiLabelOptions(**vars(self))


class MultiLabelOptions(DataOptions):
    """Options of rows that may have no label."""

    @property
    def empty_labels(self) -> bool:
        return True


@record(frozen=True, config=STRICT)
class SourceDataOptions(RowOptions):
    """The plan's ``[source_data]``: rows of the source task."""

    path: Annotated[
        PathText,
        key(
            "labelled rows of the source task, to measure forgetting and for penalties; "
            "own: the rows that a source run was made from; none: no rows"
        ),
    ] = "own"
    format: Annotated[str, key("as in [data], like the keys below")] = "auto"
    label: Annotated[tuple[str, ...], key("label column")] = ()
    group: Annotated[str | None, key("column whose equal values stay in one split")] = None
    each_epoch: Annotated[bool, key("measure the source task after every epoch, on its select rows")] = False
    classes: Annotated[tuple[str, ...], key("names of the head's outputs, in order; default: the source's own")] = ()


# ---------------------------------------------------------------- preprocessing


@dataclass(frozen=True)
class ImageSpec:
    """Preprocessing of a source's images: resize, crop, scale to [0, 1], normalise."""

    size: tuple[int, int]  # height and width of the network's input, in pixels
    resize: int | tuple[int, int]  # pixels of the shorter side, or (height, width), before the crop
    interpolation: Literal["nearest", "bilinear", "bicubic", "lanczos"] = "bicubic"
    mean: tuple[float, ...] = (0.5, 0.5, 0.5)
    std: tuple[float, ...] = (0.5, 0.5, 0.5)

    @property
    def channels(self) -> int:
        return len(self.mean)


@dataclass(frozen=True)
class TextSpec:
    """Preprocessing of a source's texts."""

    tokenizer: str  # folder, or name on the hub
    max_length: int  # tokens


@dataclass(frozen=True)
class CallableSpec:
    """Preprocessing by a function of the user's, which is not saved with a run."""

    one: Callable[[tuple[str, ...]], Tensor]
    kind: Kind = "tensor"


Preprocess = ImageSpec | TextSpec | CallableSpec


@record(frozen=True, config=STRICT)
class Augment:
    """Augmentation: random views of training images. Evaluation uses none."""

    random_resized_crop: Annotated[bool, key("crop a random part; false: crop as in evaluation")] = True
    scale: Annotated[tuple[float, float], key("share of the picture's area that a crop keeps")] = (0.5, 1.0)
    ratio: Annotated[tuple[float, float], key("width ÷ height of a crop")] = (0.75, 4 / 3)
    flip: Annotated[bool, key("flip left to right, half of the time")] = True
    randaugment: Annotated[int, key("magnitude of RandAugment, up to 30; 0 disables it")] = 0
    mixup: Annotated[float, key("alpha of MixUp; 0 disables it")] = 0.0
    cutmix: Annotated[float, key("alpha of CutMix; 0 disables it")] = 0.0

    def __post_init__(self) -> None:
        if not 0 < self.scale[0] <= self.scale[1] <= 1:
            raise ValueError("scale takes two shares with 0 < low <= high <= 1")
        if not 0 < self.ratio[0] <= self.ratio[1]:
            raise ValueError("ratio takes two numbers with 0 < low <= high")
        if not 0 <= self.randaugment <= 30:
            raise ValueError("randaugment takes a magnitude from 0 to 30")
        if self.mixup < 0 or self.cutmix < 0:
            raise ValueError("mixup and cutmix take an alpha of 0 or more")
