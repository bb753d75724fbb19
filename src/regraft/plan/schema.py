"""Plan ⇄ TOML: strict, all problems at once with line and remedy; imports no torch.

Every field has a meaning and a unit here, once: ``regraft init`` writes them as comments. "auto" is
settled before a run starts and saved as a value with its reason, so that a saved plan re-runs the
run.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, PrivateAttr
from pydantic.fields import FieldInfo

from ..data.types import Augment, DataOptions, PathText, SourceDataOptions
from ..errors import PlanError
from ..model.types import SourceOptions
from ..tasks import DEFAULT_TASK
from .plug_ins import PlugIns, make_plugins

Auto = Literal["auto"]

Positive = Annotated[float, Field(gt=0)]

NonNegative = Annotated[float, Field(ge=0)]

Count = Annotated[int, Field(ge=1)]


class Section(BaseModel):
    """A table of the plan. Validators are built at first use, because ``regraft --help`` needs none."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False, defer_build=True)


def keys_of(section: Any) -> dict[str, FieldInfo]:
    """Return a section's keys with type, default and description; none of a type that is no section."""
    return dict(getattr(section, "__pydantic_fields__", {}))


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

    @property
    def options(self) -> SourceOptions:
        """Return the options that a file of sources/ takes."""
        values = self.model_dump(exclude={"ref"})
        values["weights"] = Path(self.weights) if self.weights else None
        return SourceOptions(**values | {"allow_fresh": tuple(self.allow_fresh)})


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
    recipe: str | None = Field(
        None, description="recipe that sets what the plan leaves out or to auto: a name, or a file that ends in .toml"
    )
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
    start: Literal["probe", "soft", "random"] | Auto = Field(
        "auto",
        description="initial head: a linear probe; soft: a probe at the strongest of probe.strengths, which leaves a "
        "loss to train on; or random",
    )
    alpha: Annotated[float, Field(ge=0, le=1)] | Literal["chosen"] = Field(
        "chosen", description="point between the start (0) and the fit (1) in weight space; chosen: val picks it"
    )
    retain: Annotated[float, Field(gt=0, le=1)] | None = Field(
        None,
        description="retention of the source task that α must keep with 95 % confidence, as 0.98; needs source data",
    )
    after_folds: Literal["refit", "average"] = Field(
        "refit",
        description="model where folds choose; refit: one more fit, on all rows; average: the mean of the folds' "
        "weights, which together have seen all rows",
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
    coverage: Annotated[float, Field(gt=0.5, lt=1)] | Literal["off"] = Field(
        0.9,
        description="share of new rows whose truth a set of classes, or an interval around a number, is to hold; "
        "off: no sets",
    )
    max_error: Annotated[float, Field(ge=1e-6, lt=0.5)] | None = Field(
        None,
        description="error that the model may make on the rows that it accepts, as 0.05; held-out rows choose the "
        "confidence that proves it, with 95 % confidence",
    )
    slices: list[str] = Field(
        [],
        description="columns of a table by whose values test figures are shown, as camera or site; "
        "each value is compared with all other rows",
    )


class RunPlan(Section):
    out: PathText | None = Field(None, description="run folder; it must not exist yet")
    seed: int = Field(0, ge=0, description="first seed; it drives everything random but the splits")
    seeds: Count | Auto = Field(
        1,
        description="number of seeds, from seed on; a verdict needs 3; auto: one after another, 3 to 10, until the "
        "verdict over scratch is decided or no further seed can decide it",
    )
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

    @property
    def checkpoint_interval(self) -> tuple[int, float]:
        """Return (steps, seconds) between two checkpoints; one of them is 0."""
        every = self.checkpoint_every
        return (every, 0.0) if isinstance(every, int) else (0, 60 * float(every.split()[0]))


class TunePlan(Section):
    ranges: dict[str, Any] = Field(
        {},
        description='values to search, by dotted key, as { "fit.lr" = { low = 1e-5, high = 1e-3, log = true }, '
        '"fit.start" = ["probe", "random"] }',
    )
    trials: Count = Field(20, description="trials of the study in all, by all its workers together")
    seed: int = Field(0, ge=0, description="seed of the drawn values; the fits of all trials have run.seed")
    sampler: Literal["tpe", "random"] = Field(
        "tpe", description="how values are drawn; tpe: near those of good trials; random: by seed and trial alone"
    )
    pruner: Literal["hyperband", "none"] = Field(
        "hyperband", description="what ends a poor trial early, after an epoch, or after a fold where there is no val"
    )


class Plan(Section):
    """All that a run is made from. ``task``, ``freezing`` and ``regularizers`` hold the tables of plug-ins;
    :func:`regraft.plan.read.check` makes the objects that they name, :attr:`plugins`."""

    source: SourcePlan
    data: DataOptions
    source_data: SourceDataOptions = Field(default_factory=SourceDataOptions)
    task: dict[str, Any] = Field({"name": DEFAULT_TASK}, description="task to learn")
    augment: Augment = Field(default_factory=Augment)
    probe: ProbePlan = Field(default_factory=ProbePlan)
    fit: FitPlan = Field(default_factory=FitPlan)
    freezing: dict[str, Any] = Field({"name": "everything"}, description="strategy that picks the trainable blocks")
    regularizers: dict[str, dict[str, Any]] = {}
    evaluate: EvaluatePlan = Field(default_factory=EvaluatePlan)
    run: RunPlan = Field(default_factory=RunPlan)
    tune: TunePlan = Field(default_factory=TunePlan)

    _plugins: PlugIns | None = PrivateAttr(None)
    _allow_code: bool = PrivateAttr(False)
    _reasons: dict[str, str] = PrivateAttr({})

    @property
    def plugins(self) -> PlugIns:
        """Return the plug-ins that the plan names. Raises PlanError for an unchecked plan that names none."""
        if self._plugins is None:
            made, problems = make_plugins(self.model_dump(), allow_code=self._allow_code)
            if problems:
                raise PlanError([text for _, text in problems])
            self._plugins = made
        return self._plugins

    @property
    def allow_code(self) -> bool:
        """Return whether the plan was read with leave to run the code that it names."""
        return self._allow_code

    @property
    def reasons(self) -> dict[str, str]:
        """Return why keys have their values, by dotted key, where a recipe gave them."""
        return self._reasons

    def with_reasons(self, reasons: Mapping[str, str]) -> Self:
        """Return this plan with the reasons of some of its values."""
        plan = self.model_copy()
        plan._reasons = dict(reasons)
        return plan

    def with_plugins(self, plugins: PlugIns | None, *, allow_code: bool) -> Self:
        """Return this plan with plug-ins; None: they are made from its tables when they are asked for."""
        plan = self.model_copy()
        plan._plugins, plan._allow_code = plugins, allow_code
        return plan

    def with_sections(self, **sections: Any) -> Self:
        """Return this plan with other sections, unchecked, and the plug-ins that these name."""
        plan = self.model_copy(update=sections)
        return plan.with_plugins(None, allow_code=self._allow_code)


# ---------------------------------------------------------------- without "auto"


class ResolvedFit(FitPlan):
    """The plan's ``[fit]`` without "auto"."""

    epochs: Count
    batch_size: Count
    lr: Positive
    head_lr: Positive
    scratch_lr: Positive
    start: Literal["probe", "soft", "random"]
    weight_decay: NonNegative
    sharpness: NonNegative
    batch_norm: Literal["frozen", "train"]


class ResolvedRun(RunPlan):
    """The plan's ``[run]`` without "auto"."""

    workers: Annotated[int, Field(ge=0)]
    threads: Count
    processes: Count
    layout: Literal["channels_last", "contiguous"]
    precision: Literal["float32", "bfloat16"]
    feature_precision: Literal["float32", "bfloat16"]


class ResolvedPlan(Plan):
    """A plan without "auto"."""

    fit: ResolvedFit
    run: ResolvedRun

    @classmethod
    def of(cls, plan: Plan, fit: Mapping[str, Any], run: Mapping[str, Any]) -> ResolvedPlan:
        """Return ``plan`` with the values of ``fit`` and ``run``. Raises ValueError where one is still "auto"."""
        sections = {name: getattr(plan, name) for name in Plan.model_fields} | {
            "fit": ResolvedFit(**plan.fit.model_dump() | dict(fit)),
            "run": ResolvedRun(**plan.run.model_dump() | dict(run)),
        }
        return cls(**sections).with_plugins(plan.plugins, allow_code=plan.allow_code)
