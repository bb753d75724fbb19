"""Plan ⇄ TOML: strict, all problems at once with line and remedy; imports no torch.

Every field has a meaning and a unit here, once: ``regraft init`` writes them as comments. "auto" is
settled before a run starts and saved as a value with its reason, so that a saved plan re-runs the
run.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from ..data.types import Augment
from ..tasks import DEFAULT_TASK

Auto = Literal["auto"]

Positive = Annotated[float, Field(gt=0)]

NonNegative = Annotated[float, Field(ge=0)]

Count = Annotated[int, Field(ge=1)]


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


class SourcePlan(Section):
    ref: str = Field(description="timm:NAME, transformers:NAME_OR_DIR, bundled:NAME, random:timm/NAME or a run")
    weights: str | None = Field(None, description="a weights file instead of the library's own")
    weights_key: str | None = Field(
        None, description="which of a checkpoint's dictionaries of tensors, where several fit"
    )
    in_channels: Count | None = Field(None, description="picture channels, where not the source's")
    image_size: Count | None = Field(None, description="side in pixels that the network sees, where not the source's")
    pooling: Literal["auto", "mean", "cls", "max", "last"] = Field(
        "auto", description="of a text encoder without a head: auto reads the source's folder"
    )
    allow_fresh: list[str] = Field([], description="patterns of backbone tensors that may be fresh")
    max_length: Count | None = Field(None, description="tokens a text; default: the source's limit")
    offline: bool = Field(False, description="no network call at all")


class DataPlan(Section):
    path: str = Field(description="a folder of class folders, a table, or a folder of tables")
    format: str = Field("auto", description="image_folder, table; auto looks at the path")
    image_root: str | None = Field(None, description="folder of a table's image paths")
    image: str | None = Field(None, description="column of image paths")
    text: list[str] = Field([], description="text column, or a pair of them")
    label: list[str] = Field([], description="label column, or several")
    split: str | None = Field(None, description='column that says "train", "val" or "test"')
    group: str | None = Field(None, description="column whose equal values stay in one split")
    val: float = Field(0.2, gt=0, lt=1, description="share of train drawn where there is no val")
    folds: Annotated[int, Field(ge=2, le=20)] | None = Field(
        None, description="no val: choices and estimates by so many folds of train, groups whole"
    )
    split_seed: int = Field(0, ge=0, description="of the splits that are drawn")
    on_bad: Literal["fail", "skip"] = Field("fail", description="what unreadable rows do")
    follow_links: bool = Field(False, description="read links to pictures and folders outside of the data folder too")
    leaks: Literal["keep", "drop", "move"] = Field(
        "keep",
        description="rows with equal content in two splits: said alone; drop: those of train left out; "
        "move: those of test and val join train",
    )
    leak_limit: float = Field(
        0.5,
        ge=0,
        le=1,
        description="share of test (or val) rows that may also be in another split where leaks are kept; "
        "beyond it a fit stops; 1: never",
    )
    label_separator: str = Field(";", description="between the labels of one multi-label cell")


class SourceDataPlan(Section):
    path: str = Field(
        "own",
        description="labelled rows of the source task, to measure forgetting and for penalties; own: "
        "those that a run was made from; none",
    )
    format: str = Field("auto", description="as in [data], like the keys below")
    image_root: str | None = Field(None, description="folder of a table's image paths")
    image: str | None = Field(None, description="column of image paths")
    text: list[str] = Field([], description="text column, or a pair of them")
    label: list[str] = Field([], description="label column")
    split: str | None = Field(None, description='column that says "train", "val" or "test"')
    group: str | None = Field(None, description="column whose equal values stay in one part")
    on_bad: Literal["fail", "skip"] = Field("fail", description="what unreadable rows do")
    follow_links: bool = Field(False, description="read links to pictures and folders outside of the data folder too")
    each_epoch: bool = Field(False, description="measure the source task after every epoch too, on its select rows")
    classes: list[str] = Field(
        [], description="what the head's outputs are called, in order, where the source does not say"
    )


class ProbePlan(Section):
    strengths: list[Positive] = Field(
        [1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0],
        min_length=1,
        description="λ of λ/2·‖W‖² on standardised features; chosen on val",
    )
    rows: int = Field(
        0,
        ge=0,
        description="of train that λ is chosen on, at most, but 2 of each class; 0: as many as keep "
        "rows x features x outputs within 2e10; more rows are then gone over in batches",
    )


class FitPlan(Section):
    epochs: Count | Auto = Field("auto", description="passes over train, at most")
    batch_size: Count | Auto = Field("auto", description="rows a step, before accumulation")
    accumulate: Count = Field(1, description="batches a step")
    sampling: Literal["natural", "balanced"] = Field(
        "natural", description="balanced: an epoch has as many rows of each class, rare ones repeated"
    )
    optimizer: str = Field("AdamW", description="any of torch.optim by name")
    optimizer_options: dict[str, float | bool | list[float]] = Field(
        {}, description="its further options, as { momentum = 0.9, nesterov = true }"
    )
    lr: Positive | Auto = Field("auto", description="rate of the backbone block nearest the head")
    head_lr: Positive | Auto = Field("auto", description="rate of the head")
    layer_decay: float = Field(1.0, gt=0, le=1, description="factor on the rate, block by block towards the input")
    block_lr: dict[str, Positive] = Field(
        {}, description='rates by block pattern, as { "blocks.[01]" = 1e-5 }; the last match holds'
    )
    scratch_lr: Positive | Auto = Field(
        "auto", description="what training from scratch would use; kept blocks stay below it"
    )
    allow_large_lr: bool = Field(False, description="let kept blocks reach the scratch rate")
    schedule: Literal["cosine", "linear", "constant"] = Field("cosine", description="of the rates, over the whole fit")
    warmup: float = Field(0.1, ge=0, lt=1, description="share of the steps with rising rates")
    weight_decay: NonNegative | Auto = Field("auto", description="on matrices, not on biases/norms")
    clip_norm: NonNegative = Field(1.0, description="largest gradient norm; 0 switches it off")
    sharpness: NonNegative | Auto = Field(
        "auto", description="radius ρ of sharpness-aware minimisation; two gradients a step; 0: off"
    )
    average: float = Field(
        0.0, ge=0, lt=1, description="decay of a moving average of the weights, as 0.95 (of about 20 steps); 0: off"
    )
    compile: bool = Field(False, description="steps by torch.compile, which takes a minute at first and at each thaw")
    patience: int = Field(0, ge=0, description="epochs without gain on val before stopping; 0: off")
    start: Literal["probe", "random"] = Field("probe", description="where the head starts")
    alpha: Annotated[float, Field(ge=0, le=1)] | Literal["chosen"] = Field(
        "chosen", description="point between the start (0) and the fit (1) in weight space; chosen on val"
    )
    retain: Annotated[float, Field(gt=0, le=1)] | None = Field(
        None, description="retention of the source task that α must keep, for sure (95 %); needs source data"
    )
    views: int = Field(
        0,
        ge=0,
        description="augmented views of a picture that are kept where blocks are frozen; epochs "
        "beyond them take them again; 0: augment anew in each epoch",
    )
    batch_norm: Literal["frozen", "train"] | Auto = Field(
        "auto", description="statistics of batch norms; a kept source's stay as they are"
    )


class EvaluatePlan(Section):
    controls: list[Literal["scratch"]] = Field([], description='beside majority (or mean) and linear probe: "scratch"')
    scratch_budget: Positive = Field(5.0, description="the scratch control's epochs ÷ the fit's")
    scratch_rates: list[Positive] = Field(
        [0.3, 1.0, 3.0],
        min_length=1,
        description="times scratch_lr; the best on val is taken, or one beyond where there are several",
    )


class RunPlan(Section):
    out: str | None = Field(None, description="the run folder; it must not exist yet")
    seed: int = Field(0, ge=0, description="of everything random but the splits")
    seeds: Count = Field(1, description="repeats, from seed on; a verdict needs 3")
    device: str = Field("auto", description="cpu, cuda, cuda:0, mps; auto takes the fastest there is")
    workers: Annotated[int, Field(ge=0)] | Auto = Field("auto", description="loader processes")
    threads: Count | Auto = Field("auto", description="of torch on the CPU; results depend on it")
    layout: Literal["channels_last", "contiguous"] | Auto = Field("auto", description="memory layout of pictures")
    processes: Count | Auto = Field(
        "auto", description="that share the work (--nproc N, or torchrun); auto: as many as were started"
    )
    spread: Literal["rows", "arms"] = Field(
        "rows",
        description="what processes share: rows of each batch, or arms: whole seeds, folds and rates of "
        "scratch, each by one process",
    )
    shard: bool = Field(
        False,
        description="divide weights, gradients and optimiser among the processes while they train, for a "
        "source that one device cannot train",
    )
    precision: Literal["float32", "bfloat16"] | Auto = Field(
        "auto", description="of training steps; auto measures; what is judged is judged in float32"
    )
    feature_precision: Literal["float32", "bfloat16"] | Auto = Field(
        "auto", description="of the features that the probe is fitted on; auto measures"
    )
    cache: str = Field(
        "shared", description='folder of the feature cache; "shared": $REGRAFT_CACHE or ~/.cache/regraft; "off"'
    )
    cache_users: Literal["own", "all"] = Field(
        "own",
        description="whose entries of a shared cache folder are used; all: every user's who can write "
        "there, and who can change results by it",
    )
    checkpoint_every: Count | Annotated[str, Field(pattern=r"^\d+(\.\d+)? min$")] = Field(
        "10 min",
        description='steps, and the end of every epoch; or minutes as "10 min", and ends of epochs while that takes '
        "a tenth of the time at most",
    )
    cache_gb: Positive = Field(10.0, description="its limit in GB; the longest unused go first")
    escape_csv: bool = Field(
        True, description="an apostrophe before a cell of predictions.csv that a spreadsheet would run"
    )


class Plan(Section):
    """All that a run is made from. ``task``, ``freezing`` and ``regularizers`` hold plug-in
    options; :func:`check` validates them against the plug-in's own dataclass."""

    source: SourcePlan
    data: DataPlan
    source_data: SourceDataPlan = SourceDataPlan()
    task: dict[str, Any] = {"name": DEFAULT_TASK}
    augment: Augment = Augment()
    probe: ProbePlan = ProbePlan()
    fit: FitPlan = FitPlan()
    freezing: dict[str, Any] = {"name": "everything"}
    regularizers: dict[str, dict[str, Any]] = {}
    evaluate: EvaluatePlan = EvaluatePlan()
    run: RunPlan = RunPlan()
