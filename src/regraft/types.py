"""The nouns of regraft: records and protocols, no I/O and no torch at import.

Shapes: B rows of a batch, N rows of a split, D features, C outputs (classes, labels or numbers),
R bootstrap resamples.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Hashable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import (
    TYPE_CHECKING,
    Any,
    ClassVar,
    Literal,
    NamedTuple,
    Protocol,
    TypeVar,
    runtime_checkable,
)

from .errors import DataError, PlanError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor, nn

    Inputs = Tensor | dict[str, Tensor]  # [B, …], or tensors by name (texts)
    FloatArray = NDArray[np.float64]

Kind = Literal["image", "text", "tensor"]


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


# ---------------------------------------------------------------- checks

Severity = Literal["problem", "caution", "note"]
Need = Literal["features", "probabilities", "tokens", "source names", "source rows"]


@dataclass(frozen=True)
class Finding:
    """Something that a check found: how much of it, where, and what to do."""

    severity: Severity  # problem: figures would be wrong or fit stops; caution: look; note: know
    what: str  # "rows of test are also in train"
    count: int
    of: int
    examples: tuple[str, ...]  # the rows, all of them; those who show it cut the list
    remedy: str
    check: str = ""  # the file of checks/ that found it


@dataclass(frozen=True)
class Seen:
    """What a check may look at. The tables by id are there where a check needs them and they could
    be had."""

    kind: Kind
    task: str  # a file of tasks/
    splits: Mapping[str, Sequence[Example]]  # train, val and test, each of any length
    names: Callable[[Example], tuple[str, ...]]  # its class or its labels; none of a number
    unreadable: tuple[tuple[str, str], ...] = ()
    left_out: tuple[tuple[str, str], ...] = ()
    empty: tuple[str, ...] = ()
    features: Mapping[str, FloatArray] | None = None  # id → [D], of the source's backbone
    probabilities: Mapping[str, FloatArray] | None = None  # id → [C], by a probe that never saw it
    classes: tuple[str, ...] = ()  # of the probabilities, in their order
    tokens: Mapping[str, int] | None = None  # id → tokens of the whole text
    max_tokens: int = 0  # as many as the source reads
    source_names: tuple[str, ...] | None = None  # the source's classes in words
    source_rows: Sequence[Example] | None = None

    @property
    def rows(self) -> tuple[Example, ...]:
        """Every row as an object: of many rows that is much memory."""
        return tuple(e for part in self.splits.values() for e in part)

    @property
    def count(self) -> int:
        """Rows of all splits."""
        return sum(map(len, self.splits.values()))


class Check(Protocol):
    """A file of ``checks/``: a module with these names."""

    NEEDS: frozenset[Need]  # beside the rows themselves; none: ``fit`` runs it always

    def check(self, seen: Seen) -> Iterable[Finding]:
        """What it found; nothing where all is well. Neither rows nor files are changed."""
        ...


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

    random_resized_crop: bool = field(
        default=True, metadata={"help": "else the evaluation's resize and centre crop"}
    )
    scale: tuple[float, float] = field(
        default=(0.5, 1.0), metadata={"help": "share of the picture's area that a crop keeps"}
    )
    ratio: tuple[float, float] = field(
        default=(0.75, 4 / 3), metadata={"help": "width ÷ height of a crop"}
    )
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


# ---------------------------------------------------------------- source and target


@dataclass(frozen=True)
class Block:
    """An ordered, named part of a model; blocks partition its parameters, buffers and modules.

    ``run(backbone, x)`` computes this block's output from the output of the one before it (from the
    network's inputs for the first); it takes the backbone as an argument, so it stays true for a
    copy. ``None``: no cut at this boundary.
    """

    name: str
    tensors: tuple[str, ...]  # names of parameters and buffers, as in named_parameters()/buffers()
    modules: tuple[str, ...]  # names as in named_modules(); decides train() or eval()
    run: Callable[[nn.Module, Any], Any] | None = None


def match_blocks(pattern: str, blocks: Collection[str]) -> list[str]:
    """The blocks that a pattern (as in fnmatch) names.

    Raises PlanError, listing the blocks, where it matches none.
    """
    found = [b for b in blocks if fnmatchcase(b, pattern)]
    if not found:
        raise PlanError([f'pattern "{pattern}" matches no block; there are: {", ".join(blocks)}'])
    return found


@dataclass(frozen=True)
class LoadedTensor:
    """One line of the loading report."""

    name: str
    state: Literal["kept", "fresh", "resized", "unused"]
    shape: tuple[int, ...]
    note: str = ""


@dataclass
class Source:
    """A pre-trained model seen as head(backbone(inputs)).

    ``recipe`` is plain JSON from which the source file that made it builds the same architecture
    again without weights. ``nothing_kept`` marks a source without transfer (``random:``).
    """

    name: str  # the reference, as the plan writes it
    backbone: nn.Module  # inputs [B, …] → features [B, D]
    head: nn.Module | None  # features [B, D] → logits [B, C of the source]
    blocks: tuple[Block, ...]  # input → output, of the backbone
    preprocess: Preprocess
    features: int  # D, measured by a forward pass
    labels: tuple[str, ...] | None = None  # the source's class names
    words: tuple[str, ...] | None = None  # the same in words where labels are ids: "ant, emmet"
    task: str = "classification"  # what its head was trained for, as a file of tasks/
    digest: str = ""  # sha256 of the weights file; "" where nothing was loaded
    licence: str = "unknown"
    recipe: dict[str, Any] = field(default_factory=dict)
    report: tuple[LoadedTensor, ...] = ()
    notes: tuple[str, ...] = ()
    nothing_kept: bool = False
    example: Inputs | None = None  # a small batch that its forward pass takes

    @property
    def kind(self) -> Kind:
        if isinstance(self.preprocess, ImageSpec):
            return "image"
        return "text" if isinstance(self.preprocess, TextSpec) else self.preprocess.kind

    @staticmethod
    def from_module(
        net: nn.Module,
        *,
        head: str,
        preprocess: Preprocess | Callable[[tuple[str, ...]], Tensor],
        example: Inputs,
        blocks: Sequence[tuple[str, Sequence[str]]] | None = None,
        name: str = "module",
    ) -> Source:
        """Any module of one's own as a source; see :func:`regraft.sources.module.from_module`."""
        from .sources.module import from_module

        return from_module(
            net, head=head, preprocess=preprocess, example=example, blocks=blocks, name=name
        )


@dataclass(frozen=True)
class SourceOptions:
    """The plan's ``[source]`` beside the reference itself."""

    weights: Path | None = None  # a weights file instead of the library's own
    weights_key: str | None = None  # which of a checkpoint's dictionaries of tensors, as "teacher"
    in_channels: int | None = None  # picture channels, where not the source's
    image_size: int | None = None  # side in pixels that the network sees, where not the source's
    pooling: Literal["auto", "mean", "cls", "max", "last"] = "auto"  # text encoders without a head
    allow_fresh: tuple[str, ...] = ()  # patterns of backbone tensors that may be fresh
    max_length: int | None = None  # tokens, at most the source's own limit
    offline: bool = False


# ---------------------------------------------------------------- tasks


class Task(Protocol):
    """What is learnt: targets, loss, scores. Built from the training labels, saved with the run."""

    name: str
    classes: tuple[str, ...]  # names of classes, labels or numbers, in output order
    primary: str  # the metric that choices are made by
    metrics: tuple[str, ...]

    @property
    def outputs(self) -> int:
        """C"""
        ...

    def problem(self, cells: tuple[str, ...]) -> str | None:
        """What is wrong with one row's label cells, in words; None where nothing is."""
        ...

    def encode(self, cells: Sequence[tuple[str, ...]]) -> Tensor:
        """Label cells → targets: [N] int64, or [N, C] float32."""
        ...

    def loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Per-sample loss [B] of logits [B, C]; targets as encoded, or mixed: [B, C] float."""
        ...

    def scores(self, logits: Tensor) -> Tensor:
        """Logits [B, C] → [B, C]: probabilities, or numbers in their own units."""
        ...

    def truth(self, targets: Tensor) -> Tensor:
        """Targets → what scores are compared with: as encoded, or numbers in their own units."""
        ...

    def label(self, scores: FloatArray) -> str:
        """One row's scores [C] as the answer: a class, labels joined by ";", or numbers."""
        ...

    def constant(self, targets: Tensor) -> Tensor:
        """Scores [C] of the trivial control: the training frequencies, or the training mean."""
        ...

    def state(self) -> dict[str, Any]:
        """Plain JSON from which the task file's ``restore`` makes this task again."""
        ...


class Metric(Protocol):
    """A file of ``metrics/``: a module with these names.

    ``at_weights(truth, scores)``, which it may have, gives ``value`` as a function of the weights alone.
    A bootstrap calls that function often, so it should hold all that the weights do not change.
    """

    title: str
    higher_is_better: bool
    proportion: bool  # of independent rows: Wilson's interval, Newcombe's for a difference
    bounded: bool  # a value in [0, 1], so that a difference is in [-1, 1]
    per_row: bool  # the metric is the mean over rows of ``rows(truth, scores)``

    def value(self, truth: Any, scores: Any, weights: FloatArray) -> FloatArray:
        """truth [N] or [N, C], scores [N, C], row weights [R, N] → [R]."""
        ...


# ---------------------------------------------------------------- fitting


@dataclass(frozen=True)
class Batch:
    """What a penalty may look at, once a micro-batch."""

    step: int
    ids: tuple[str, ...]
    params: Mapping[str, Tensor]  # trainable only, by name in the target model
    inputs: Inputs
    features: Tensor  # [B, D]
    logits: Tensor  # [B, C]
    targets: Tensor  # [B] or [B, C]
    maps: Mapping[str, Any] = field(default_factory=dict)  # block → its output, where asked for


@dataclass(frozen=True)
class Penalty:
    """``term(batch)`` is a scalar. A penalty on θ counts once a step, whatever the accumulation;
    one on a batch counts by that batch's share of the step's rows. ``after(params, rates)`` is a
    proximal step on the trainable parameters, by name, after the optimiser's. ``draws`` is what the
    term draws batches of its own from, so that a fit that is resumed goes on where it was."""

    term: Callable[[Batch], Tensor]
    per: Literal["step", "batch"] = "step"
    maps: bool = False  # it looks at the outputs of blocks, so all of them must have a ``run``
    needs_inputs: bool = True  # it looks at Batch.inputs; else cached outputs may take their place
    after: Callable[[Mapping[str, Tensor], Mapping[str, float]], None] | None = None
    draws: Draws | None = None


@dataclass
class Target:
    """The model to be fitted, and where it came from."""

    model: nn.Module  # has .backbone and .head; names are "backbone.…" and "head.…"
    blocks: tuple[Block, ...]  # of the model, input → output; the last is "head"
    anchor: dict[str, Tensor]  # θs: detached clones of the kept parameters, by name in the model
    report: tuple[LoadedTensor, ...]
    source: Source
    nothing_kept: bool = False

    @property
    def kept(self) -> frozenset[str]:
        """Names of the parameters that have an anchor."""
        return frozenset(self.anchor)

    def factors(self, by_block: Mapping[str, float]) -> dict[str, float]:
        """Every tensor's factor by patterns of blocks, as { "blocks.[01]" = 0.1 }: 1 where none
        matches, that of the last one where several do.

        Raises PlanError where a pattern matches no block.
        """
        names = [b.name for b in self.blocks]
        of_block = dict.fromkeys(names, 1.0)
        for pattern, value in by_block.items():
            of_block |= dict.fromkeys(match_blocks(pattern, names), value)
        return {tensor: of_block[b.name] for b in self.blocks for tensor in b.tensors}


class Freezing(Protocol):
    """Which blocks train in an epoch; pure, so that it can be printed and tested without torch."""

    def __call__(self, blocks: Sequence[str], epoch: int) -> frozenset[str]: ...


@runtime_checkable
class Adapting(Freezing, Protocol):
    """A freezing strategy that trains something beside the weights, and merges it at the end."""

    def adapted(self, target: Target, seed: int) -> AbstractContextManager[Target]:
        """What is fitted in place of the target, whose weights hold the result afterwards."""
        ...


Found = TypeVar("Found")


class Draws(Protocol):
    """Batches without end, which can go on from anywhere."""

    drawn: int  # batches so far; setting it goes there

    def __next__(self) -> tuple[tuple[str, ...], Inputs, Tensor]: ...


class SourceRows(Protocol):
    """Labelled rows of the source task that penalties may draw from."""

    @property
    def task(self) -> Task: ...

    def batches(self, part: Literal["fit"]) -> Iterable[tuple[tuple[str, ...], Inputs, Tensor]]:
        """Once over them, as evaluation sees them."""
        ...

    def draws(self) -> Draws:
        """Batches without end, augmented as training is and on its device."""
        ...

    def once(self, key: Hashable, compute: Callable[[], Found]) -> Found:
        """What ``compute`` gave the first time; the seeds of a run share it."""
        ...


class TrainRows(Protocol):
    """The labelled rows that a fit trains on."""

    @property
    def task(self) -> Task: ...

    def sample(self, rows: int) -> Iterable[tuple[tuple[str, ...], Inputs, Tensor]]:
        """That many of them, or all where there are fewer, as evaluation sees them; by content, so
        that neither their order nor a seed matters."""
        ...

    def once(self, key: Hashable, compute: Callable[[], Found]) -> Found:
        """What ``compute`` gave the first time; the seeds of a run share it."""
        ...


@runtime_checkable
class Regularizer(Protocol):
    """Options of a penalty, to be inherited: a plug-in says only where it differs from here."""

    uses_source: ClassVar[bool] = False  # means nothing where nothing was kept
    needs_source_data: ClassVar[bool] = False  # labelled rows of the source task
    pulls_to_source: ClassVar[bool] = False  # by each weight's distance to its source value
    shrinks_to_zero: ClassVar[bool] = False  # on every weight, kept ones too

    def prepare(self, target: Target, source_data: SourceRows | None, train: TrainRows) -> Penalty:
        """The penalty of a fit. The target stays bitwise untouched.

        Raises PlanError where the penalty does not suit the target or its source.
        """
        ...

    def needs_fit(self) -> Mapping[str, str]:
        """What the plan's ``[fit]`` has to say for it: {"optimizer": "SGD"}."""
        return {}


# ---------------------------------------------------------------- results


@dataclass(frozen=True)
class Estimate:
    """A figure with its 95 % interval and the number of rows behind it."""

    value: float
    low: float
    high: float
    n: int

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


Words = Literal["transfer helps", "no evidence", "transfer hurts", "not measured"]


@dataclass(frozen=True)
class Verdict:
    words: Words
    gain: Estimate | None  # over scratch, on the primary metric; positive is better
    seeds: int
    why: str  # one sentence


@dataclass(frozen=True)
class Prediction:
    """``label`` is a class name, the labels joined by ";", or a number as text."""

    label: str
    probability: float | None
    scores: dict[str, float]


# ---------------------------------------------------------------- exports


@dataclass(frozen=True)
class Package:
    """A run's model, ready to leave regraft; what a file of ``exports/`` is handed.

    ``model`` is head(backbone(inputs)) in eval mode on the CPU, float32. Its outputs [B, C] are logits,
    divided by the temperature where that was asked for, or numbers in their own units.
    """

    run: Path
    name: str  # what the run is called
    model: nn.Module  # has .backbone and .head, which is linear wherever a run's head is
    source: Source  # its recipe, its preprocessing and its licence; the same backbone
    task: Task
    inputs: Inputs  # a batch of two rows, as the network takes them
    pairs: bool  # a row is two texts
    plain: Mapping[str, str]  # file name → JSON: what a reader without regraft needs to know


class Export(Protocol):
    """A file of ``exports/``: a module with these names, and ``int8(folder)`` where it can be had."""

    needs: tuple[str, ...]  # modules of the extra "export"
    with_regraft: bool  # loading it takes regraft; every other one is checked without
    folds: bool  # its outputs are to be in the task's own units; else regraft scales them

    def refusal(self, package: Package) -> str | None:
        """Why the run cannot leave this way and which way it can; None where it can."""
        ...

    def write(self, package: Package, folder: Path) -> Sequence[str]:
        """The export's files, in a folder that exists; → what the user should know, in sentences."""
        ...

    def snippet(self, package: Package) -> str:
        """Python that defines ``scores(batch)``: paths, texts or pairs → scores [B, C], as the task's
        ``scores`` gives them. It runs in the export's folder, is printed in the model card, and is
        what the export is checked by."""
        ...


# ---------------------------------------------------------------- trackers


class EpochFigures(NamedTuple):
    """A line of history.jsonl for a tracker: "loss/TERM", "val/METRIC", "source/METRIC", "rate/BLOCK"."""

    seed: int
    epoch: int
    figures: Mapping[str, float]


@dataclass(frozen=True)
class RunEnd:
    """What became of a run, for a tracker."""

    state: str  # finished, failed, interrupted, killed, left or broken
    words: str
    metrics: Mapping[str, float]  # "test/accuracy", "test/accuracy low", "gain/linear probe" …
    tags: Mapping[str, str]  # the verdict, the source, digests
    summary: str  # the block that ends a run; "" of one that is not finished
    files: Sequence[Path]  # plan, result, report: what is worth keeping with it


class Tracker(Protocol):
    """A file of ``trackers/``: a module with these names."""

    needs: tuple[str, ...]  # modules of the extra "track"

    def track(
        self,
        name: str,
        params: Mapping[str, str],
        epochs: Iterable[EpochFigures],
        end: Callable[[], RunEnd],
        where: str,
    ) -> str:
        """Write ``epochs``, which may take as long as the run does, as they come, then ``end()``; →
        what the user should know: where it is, and how to look at it."""
        ...
