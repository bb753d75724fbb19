"""Plan ⇄ TOML: strict, all problems at once with line and remedy; imports no torch.

Every field has a meaning and a unit here, once: ``regraft init`` writes them as comments. "auto" is
settled before a run starts and saved as a value with its reason, so that a saved plan re-runs the
run.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from ..data.types import Augment

Auto = Literal["auto"]

Positive = Annotated[float, Field(gt=0)]

NonNegative = Annotated[float, Field(ge=0)]

Count = Annotated[int, Field(ge=1)]

PathText = Annotated[str, Field(json_schema_extra={"format": "path"})]


class Section(BaseModel):
    """A table of the plan. Validators are built at first use, because ``regraft --help`` needs none."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False, defer_build=True)


class SourcePlan(Section):
    ref: str = Field(
        description="source model: timm:NAME, transformers:NAME_OR_DIR, bundled:NAME, random:timm/NAME or a run folder"
    )
    weights: PathText | None = Field(None, description="weights file to load instead of the library's own")
    weights_key: str | None = Field(
        None, description="dictionary of tensors to take from a checkpoint where several fit"
    )
    in_channels: Count | None = Field(None, description="picture channels; default: the source's")
    image_size: Count | None = Field(
        None, description="side in pixels of the picture that the network gets; default: the source's"
    )
    pooling: Literal["auto", "mean", "cls", "max", "last"] = Field(
        "auto", description="pooling of a text encoder without a head; auto reads the source's folder"
    )
    allow_fresh: list[str] = Field([], description="patterns of backbone tensors that may start fresh")
    max_length: Count | None = Field(None, description="tokens a text, at most; default: the source's limit")
    offline: bool = Field(False, description="make no network call")


class DataPlan(Section):
    path: PathText = Field(description="folder of class folders, a table, or a folder of tables")
    format: str = Field("auto", description="reader of the path: image_folder or table; auto looks at the path")
    image_root: PathText | None = Field(None, description="folder that a table's image paths start from")
    image: str | None = Field(None, description="column of image paths")
    text: list[str] = Field([], description="text column; two for a pair")
    label: list[str] = Field([], description="label column; several for several labels")
    split: str | None = Field(None, description='column that says "train", "val" or "test"')
    group: str | None = Field(None, description="column whose equal values stay in one split")
    val: float = Field(0.2, gt=0, lt=1, description="share of train that becomes val where the data have no val")
    folds: Annotated[int, Field(ge=2, le=20)] | None = Field(
        None, description="folds of train that replace val for choices and estimates; a group stays in one fold"
    )
    split_seed: int = Field(0, ge=0, description="seed of the splits that regraft draws")
    on_bad: Literal["fail", "skip"] = Field("fail", description="unreadable rows: fail stops, skip leaves them out")
    follow_links: bool = Field(False, description="follow links to pictures and folders outside the data folder")
    leaks: Literal["keep", "drop", "move"] = Field(
        "keep",
        description="rows whose content is in two splits; keep: only report; drop: remove from train; "
        "move: move from test and val to train",
    )
    leak_limit: float = Field(
        0.5,
        ge=0,
        le=1,
        description="share of test or val rows that may also be in another split, where leaks are kept; "
        "above it a fit stops; 1 never stops it",
    )
    label_separator: str = Field(";", description="separator of the labels in one multi-label cell")


class SourceDataPlan(Section):
    path: PathText = Field(
        "own",
        description="labelled rows of the source task, to measure forgetting and for penalties; "
        "own: the rows that a source run was made from; none: no rows",
    )
    format: str = Field("auto", description="as in [data], like the keys below")
    image_root: PathText | None = Field(None, description="folder that a table's image paths start from")
    image: str | None = Field(None, description="column of image paths")
    text: list[str] = Field([], description="text column; two for a pair")
    label: list[str] = Field([], description="label column")
    split: str | None = Field(None, description='column that says "train", "val" or "test"')
    group: str | None = Field(None, description="column whose equal values stay in one part")
    on_bad: Literal["fail", "skip"] = Field("fail", description="unreadable rows: fail stops, skip leaves them out")
    follow_links: bool = Field(False, description="follow links to pictures and folders outside the data folder")
    each_epoch: bool = Field(False, description="measure the source task after every epoch, on its select rows")
    classes: list[str] = Field([], description="names of the head's outputs, in order; default: the source's own")


class ProbePlan(Section):
    strengths: list[Positive] = Field(
        [1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0],
        min_length=1,
        description="λ of λ/2·‖W‖² on standardised features; val picks one",
    )
    rows: int = Field(
        0,
        ge=0,
        description="train rows that choose λ, at most, but 2 of each class; 0: as many as keep "
        "rows x features x outputs within 2e10; the fit reads further rows in batches",
    )


class FitPlan(Section):
    epochs: Count | Auto = Field("auto", description="passes over train, at most")
    batch_size: Count | Auto = Field("auto", description="rows a batch, before accumulation")
    accumulate: Count = Field(1, description="batches a step")
    sampling: Literal["natural", "balanced"] = Field(
        "natural", description="rows of an epoch; balanced: as many of each class, with rare rows repeated"
    )
    optimizer: str = Field("AdamW", description="optimizer of torch.optim")
    optimizer_options: dict[str, float | bool | list[float]] = Field(
        {}, description="further options of the optimizer, as { momentum = 0.9, nesterov = true }"
    )
    lr: Positive | Auto = Field("auto", description="learning rate of the backbone block nearest the head")
    head_lr: Positive | Auto = Field("auto", description="learning rate of the head")
    layer_decay: float = Field(
        1.0, gt=0, le=1, description="factor on the learning rate, block by block towards the input"
    )
    block_lr: dict[str, Positive] = Field(
        {}, description='learning rates by block pattern, as { "blocks.[01]" = 1e-5 }; the last match wins'
    )
    scratch_lr: Positive | Auto = Field(
        "auto", description="learning rate of training from scratch; kept blocks stay below it"
    )
    allow_large_lr: bool = Field(False, description="let kept blocks reach scratch_lr")
    schedule: Literal["cosine", "linear", "constant"] = Field(
        "cosine", description="schedule of the learning rates over the whole fit"
    )
    warmup: float = Field(0.1, ge=0, lt=1, description="share of the steps with rising learning rates")
    weight_decay: NonNegative | Auto = Field("auto", description="weight decay of matrices; biases and norms have none")
    clip_norm: NonNegative = Field(1.0, description="largest gradient norm; 0 disables clipping")
    sharpness: NonNegative | Auto = Field(
        "auto", description="radius ρ of sharpness-aware minimisation, at two gradients a step; 0 disables it"
    )
    average: float = Field(
        0.0, ge=0, lt=1, description="decay of a moving average of the weights, as 0.95 (about 20 steps); 0 disables it"
    )
    compile: bool = Field(
        False, description="compile steps with torch.compile; it takes a minute at the start and at each unfreezing"
    )
    patience: int = Field(0, ge=0, description="epochs without gain on val before stopping; 0 disables it")
    start: Literal["probe", "random"] = Field("probe", description="initial head: a linear probe, or random")
    alpha: Annotated[float, Field(ge=0, le=1)] | Literal["chosen"] = Field(
        "chosen", description="point between the start (0) and the fit (1) in weight space; chosen: val picks it"
    )
    retain: Annotated[float, Field(gt=0, le=1)] | None = Field(
        None,
        description="retention of the source task that α must keep with 95 % confidence, as 0.98; needs source data",
    )
    views: int = Field(
        0,
        ge=0,
        description="augmented views of a picture to cache where blocks are frozen; later epochs reuse "
        "them; 0 augments anew in each epoch",
    )
    batch_norm: Literal["frozen", "train"] | Auto = Field(
        "auto", description="statistics of batch norms; auto freezes those of a kept source"
    )


class EvaluatePlan(Section):
    controls: list[Literal["scratch"]] = Field(
        [], description="controls beside majority (or mean) and linear probe; scratch: train from scratch too"
    )
    scratch_budget: Positive = Field(5.0, description="epochs of the scratch control ÷ epochs of the fit")
    scratch_rates: list[Positive] = Field(
        [0.3, 1.0, 3.0],
        min_length=1,
        description="factors on scratch_lr; val picks the best; where the outermost of several is best, "
        "further ones follow",
    )


class RunPlan(Section):
    out: PathText | None = Field(None, description="run folder; it must not exist yet")
    seed: int = Field(0, ge=0, description="first seed; it drives everything random but the splits")
    seeds: Count = Field(1, description="number of seeds, from seed on; a verdict needs 3")
    device: str = Field("auto", description="device: cpu, cuda, cuda:0 or mps; auto takes the fastest")
    workers: Annotated[int, Field(ge=0)] | Auto = Field("auto", description="DataLoader workers")
    threads: Count | Auto = Field("auto", description="CPU threads of torch; results depend on it")
    layout: Literal["channels_last", "contiguous"] | Auto = Field("auto", description="memory layout of pictures")
    processes: Count | Auto = Field(
        "auto", description="processes (ranks) that share the work; auto: as many as torchrun started"
    )
    spread: Literal["rows", "arms"] = Field(
        "rows",
        description="what ranks share; rows: rows of each batch; arms: whole seeds, folds and scratch "
        "rates, each on one rank",
    )
    shard: bool = Field(
        False,
        description="shard weights, gradients and optimizer state over the ranks while training, for a "
        "source that one device cannot train",
    )
    precision: Literal["float32", "bfloat16"] | Auto = Field(
        "auto", description="precision of training steps; auto measures both; evaluation always uses float32"
    )
    feature_precision: Literal["float32", "bfloat16"] | Auto = Field(
        "auto", description="precision of the features for the probe; auto measures both"
    )
    cache: str = Field(
        "shared",
        description='folder of the feature cache; "shared": $REGRAFT_CACHE or ~/.cache/regraft; "off": no cache',
    )
    cache_users: Literal["own", "all"] = Field(
        "own",
        description="whose entries of a shared cache folder to use; all: those of every user who can write "
        "there; such a user can change results",
    )
    checkpoint_every: Count | Annotated[str, Field(pattern=r"^\d+(\.\d+)? min$")] = Field(
        "10 min",
        description='steps between checkpoints, besides every epoch end; or minutes as "10 min", besides epoch '
        "ends while checkpoints take a tenth of the time at most",
    )
    cache_gb: Positive = Field(
        10.0, description="size limit of the cache in GB; the least recently used entries go first"
    )
    escape_csv: bool = Field(
        True, description="put an apostrophe before a cell of predictions.csv that a spreadsheet would run"
    )


class Plan(Section):
    """All that a run is made from. ``task``, ``freezing`` and ``regularizers`` hold plug-in
    options; :func:`check` validates them against the plug-in's own dataclass."""

    source: SourcePlan
    data: DataPlan
    source_data: SourceDataPlan = Field(default_factory=SourceDataPlan)
    task: dict[str, Any] = Field({"name": "classification"}, description="task to learn")
    augment: Augment = Augment()
    probe: ProbePlan = Field(default_factory=ProbePlan)
    fit: FitPlan = Field(default_factory=FitPlan)
    freezing: dict[str, Any] = Field({"name": "everything"}, description="strategy that picks the trainable blocks")
    regularizers: dict[str, dict[str, Any]] = {}
    evaluate: EvaluatePlan = Field(default_factory=EvaluatePlan)
    run: RunPlan = Field(default_factory=RunPlan)
