"""Plan ⇄ TOML: strict, all problems at once with line and remedy; imports no torch.

Every field has a meaning and a unit here, once: ``regraft init`` writes them as comments. "auto" is
settled before a run starts and saved as a value with its reason, so that a saved plan re-runs the
run.
"""

from __future__ import annotations

import json
import math
import re
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from . import plugins
from .errors import PlanError, UsageError
from .types import Augment, DataOptions, Regularizer, SourceOptions

Auto = Literal["auto"]
Positive = Annotated[float, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]
Count = Annotated[int, Field(ge=1)]


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


class SourcePlan(Section):
    ref: str = Field(
        description="timm:NAME, transformers:NAME_OR_DIR, bundled:NAME, random:timm/NAME or a run"
    )
    weights: str | None = Field(None, description="a weights file instead of the library's own")
    in_channels: Count | None = Field(None, description="picture channels, where not the source's")
    image_size: Count | None = Field(
        None, description="side in pixels that the network sees, where not the source's"
    )
    pooling: Literal["auto", "mean", "cls"] = Field(
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
    follow_links: bool = Field(
        False, description="read links to pictures and folders outside of the data folder too"
    )
    leaks: Literal["keep", "drop", "move"] = Field(
        "keep",
        description="rows with equal content in two splits: said alone; drop: those of train left out; "
        "move: those of test and val join train",
    )
    leak_limit: float = Field(
        0.5, ge=0, le=1,
        description="share of test (or val) rows that may also be in another split where leaks are kept; "
        "beyond it a fit stops; 1: never",
    )  # fmt: skip
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
    follow_links: bool = Field(
        False, description="read links to pictures and folders outside of the data folder too"
    )
    each_epoch: bool = Field(
        False, description="measure the source task after every epoch too, on its select rows"
    )
    classes: list[str] = Field(
        [],
        description="what the head's outputs are called, in order, where the source does not say",
    )


class ProbePlan(Section):
    strengths: list[Positive] = Field(
        [1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0],
        min_length=1,
        description="λ of λ/2·‖W‖² on standardised features; chosen on val",
    )
    rows: int = Field(
        0, ge=0, description="of train that λ is chosen on, at most, but 2 of each class; 0: as many as keep "
        "rows x features x outputs within 2e10; more rows are then gone over in batches",
    )  # fmt: skip


class FitPlan(Section):
    epochs: Count | Auto = Field("auto", description="passes over train, at most")
    batch_size: Count | Auto = Field("auto", description="rows a step, before accumulation")
    accumulate: Count = Field(1, description="batches a step")
    sampling: Literal["natural", "balanced"] = Field(
        "natural",
        description="balanced: an epoch has as many rows of each class, rare ones repeated",
    )
    optimizer: str = Field("AdamW", description="any of torch.optim by name")
    optimizer_options: dict[str, float | bool | list[float]] = Field(
        {}, description="its further options, as { momentum = 0.9, nesterov = true }"
    )
    lr: Positive | Auto = Field("auto", description="rate of the backbone block nearest the head")
    head_lr: Positive | Auto = Field("auto", description="rate of the head")
    layer_decay: float = Field(
        1.0, gt=0, le=1, description="factor on the rate, block by block towards the input"
    )
    block_lr: dict[str, Positive] = Field(
        {}, description='rates by block pattern, as { "blocks.[01]" = 1e-5 }; the last match holds'
    )
    scratch_lr: Positive | Auto = Field(
        "auto", description="what training from scratch would use; kept blocks stay below it"
    )
    allow_large_lr: bool = Field(False, description="let kept blocks reach the scratch rate")
    schedule: Literal["cosine", "linear", "constant"] = Field(
        "cosine", description="of the rates, over the whole fit"
    )
    warmup: float = Field(0.1, ge=0, lt=1, description="share of the steps with rising rates")
    weight_decay: NonNegative | Auto = Field("auto", description="on matrices, not on biases/norms")
    clip_norm: NonNegative = Field(1.0, description="largest gradient norm; 0 switches it off")
    sharpness: NonNegative | Auto = Field(
        "auto", description="radius ρ of sharpness-aware minimisation; two gradients a step; 0: off"
    )
    average: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="decay of a moving average of the weights, as 0.95 (of about 20 steps); 0: off",
    )
    compile: bool = Field(
        False, description="steps by torch.compile, which takes a minute at first and at each thaw"
    )
    patience: int = Field(0, ge=0, description="epochs without gain on val before stopping; 0: off")
    start: Literal["probe", "random"] = Field("probe", description="where the head starts")
    alpha: Annotated[float, Field(ge=0, le=1)] | Literal["chosen"] = Field(
        "chosen",
        description="point between the start (0) and the fit (1) in weight space; chosen on val",
    )
    retain: Annotated[float, Field(gt=0, le=1)] | None = Field(
        None,
        description="retention of the source task that α must keep, for sure (95 %); needs source data",
    )
    views: int = Field(
        0, ge=0, description="augmented views of a picture that are kept where blocks are frozen; epochs "
        "beyond them take them again; 0: augment anew in each epoch",
    )  # fmt: skip
    batch_norm: Literal["frozen", "train"] | Auto = Field(
        "auto", description="statistics of batch norms; a kept source's stay as they are"
    )


class EvaluatePlan(Section):
    controls: list[Literal["scratch"]] = Field(
        [], description='beside majority (or mean) and linear probe: "scratch"'
    )
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
    device: str = Field(
        "auto", description="cpu, cuda, cuda:0, mps; auto takes the fastest there is"
    )
    workers: Annotated[int, Field(ge=0)] | Auto = Field("auto", description="loader processes")
    threads: Count | Auto = Field("auto", description="of torch on the CPU; results depend on it")
    layout: Literal["channels_last", "contiguous"] | Auto = Field(
        "auto", description="memory layout of pictures"
    )
    processes: Count | Auto = Field(
        "auto",
        description="that share the work (--nproc N, or torchrun); auto: as many as were started",
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
        "shared",
        description='folder of the feature cache; "shared": $REGRAFT_CACHE or ~/.cache/regraft; "off"',
    )
    checkpoint_every: Count | Annotated[str, Field(pattern=r"^\d+(\.\d+)? min$")] = Field(
        "10 min",
        description='steps, and the end of every epoch; or minutes as "10 min", and ends of epochs while that takes '
        "a tenth of the time at most",
    )
    cache_gb: Positive = Field(10.0, description="its limit in GB; the longest unused go first")
    escape_csv: bool = Field(
        True,
        description="an apostrophe before a cell of predictions.csv that a spreadsheet would run",
    )


class Plan(Section):
    """All that a run is made from. ``task``, ``freezing`` and ``regularizers`` hold plug-in
    options; :func:`check` validates them against the plug-in's own dataclass."""

    source: SourcePlan
    data: DataPlan
    source_data: SourceDataPlan = SourceDataPlan()
    task: dict[str, Any] = {"name": "classification"}
    augment: Augment = Augment()
    probe: ProbePlan = ProbePlan()
    fit: FitPlan = FitPlan()
    freezing: dict[str, Any] = {"name": "everything"}
    regularizers: dict[str, dict[str, Any]] = {}
    evaluate: EvaluatePlan = EvaluatePlan()
    run: RunPlan = RunPlan()


# ---------------------------------------------------------------- reading


def read_plan(path: Path | None, settings: Mapping[str, Any], *, allow_code: bool = False) -> Plan:
    """A plan from a TOML file and settings by dotted key; a setting beats the file.

    Raises PlanError with every problem at once, UsageError where there is no such file.
    """
    text, tree = "", {}
    if path is not None:
        try:
            text = path.read_text(encoding="utf-8")
        except OSError as error:
            raise UsageError(f"{path} cannot be read: {error.strerror or error}") from error
        except UnicodeDecodeError as error:
            raise PlanError([f"not UTF-8 at byte {error.start}"], str(path)) from error
        try:
            tree = tomllib.loads(text)
        except tomllib.TOMLDecodeError as error:
            raise PlanError([str(error)], str(path)) from error
        except RecursionError as error:
            raise PlanError(["its brackets are nested too deep to be a plan"], str(path)) from error
    for key, value in settings.items():
        place(tree, key.split("."), value)
    where = str(path) if path else "the plan"
    return check(tree, where=where, lines=key_lines(text), allow_code=allow_code)


def check(
    tree: dict[str, Any],
    *,
    where: str = "the plan",
    lines: Mapping[str, int] | None = None,
    allow_code: bool = False,
) -> Plan:
    """A plan from plain values. Raises PlanError with all problems, each with its line."""
    problems: list[tuple[str, str]] = []  # (dotted key, text)
    plan: Plan | None = None
    try:
        plan = Plan.model_validate_json(json.dumps(tree, default=str))
    except ValidationError as error:
        by_key: dict[str, list[str]] = {}
        for e in error.errors():
            loc = [str(p) for p in e["loc"] if p not in UNION_TAGS]
            text = plugins.problem("", {**e, "loc": loc}, known_keys(loc))
            by_key.setdefault(".".join(loc), []).append(text)
        for key, texts in by_key.items():  # a key that takes a number or "auto" fails twice
            others = "".join(f", or {t.partition(': ')[2]}" for t in texts[1:])
            problems.append((key, texts[0] + others))
    known = {key for key, _ in problems}
    problems += [(k, f"{k}: must be a finite number") for k in not_finite(tree) if k not in known]
    fit = tree["fit"] if isinstance(tree.get("fit"), dict) else {}
    pulls: list[str] = []
    shrinks: list[str] = []
    for folder, key, name, values in plugin_tables(tree):
        try:
            cls = plugins.options_class(folder, name, allow_code=allow_code)
        except LookupError as error:
            problems.append((key, f"{key}: {error}"))
            continue
        made, found = plugins.make(cls, values, key)
        problems += [(text.split(":")[0], text) for text in found]
        if folder == "regularizers" and made is not None and not isinstance(made, Regularizer):
            text = f"{key}: {cls.__name__} is no penalty: inherit regraft.types.Regularizer"
            problems.append((key, text))
        elif folder == "regularizers" and made is not None:
            for option, needed in made.needs_fit().items():
                now = fit.get(option, FitPlan.model_fields[option].default)
                if now != needed:
                    text = f"{key} goes with {needed} alone, not {now}: set fit.{option} to"
                    problems.append((key, f'{text} "{needed}", or change {key}'))
            pulls += [name] if made.pulls_to_source else []
            shrinks += [name] if made.shrinks_to_zero else []
    decay = fit.get("weight_decay", "auto")
    shrinks += ["fit.weight_decay"] if isinstance(decay, int | float) and decay > 0 else []
    if pulls and shrinks:
        problems.append(
            (
                f"regularizers.{pulls[0]}",
                f"regularizers.{pulls[0]} pulls weights to the source and {shrinks[0]} pulls the "
                f"same weights to zero: remove one of them",
            )
        )
    if problems or plan is None:
        raise PlanError([with_line(k, t, lines or {}) for k, t in dict.fromkeys(problems)], where)
    return plan


def not_finite(tree: Any, key: str = "") -> list[str]:
    """Dotted keys of NaN and infinities, which a dataclass of options would let through."""
    if isinstance(tree, dict):
        inside = [(f"{key}.{k}".strip("."), v) for k, v in tree.items()]
    elif isinstance(tree, list | tuple):
        inside = [(key, v) for v in tree]
    else:
        return [key] if isinstance(tree, float) and not math.isfinite(tree) else []
    return [found for k, v in inside for found in not_finite(v, k)]


UNION_TAGS = {"int", "float", "bool", "str", "literal['auto']", "constrained-int",
              "constrained-float", "constrained-str", "list[float]"}  # fmt: skip


def plugin_tables(tree: Mapping[str, Any]) -> Iterable[tuple[str, str, str, dict[str, Any]]]:
    """(folder, dotted key, plug-in name, its options) of every plug-in that a plan names."""
    for key, folder, default in (
        ("task", "tasks", "classification"),
        ("freezing", "freezing", "everything"),
    ):
        table = tree.get(key, {})
        if isinstance(table, dict):
            options = {k: v for k, v in table.items() if k != "name"}
            yield folder, key, str(table.get("name", default)), options
    tables = tree.get("regularizers", {})
    if isinstance(tables, dict):
        for name, options in tables.items():
            if isinstance(options, dict):
                yield "regularizers", f"regularizers.{name}", name, options


def known_keys(loc: list[str]) -> list[str]:
    """The keys that a plan has at the table where the last key of ``loc`` stands."""
    model: Any = Plan
    for part in loc[:-1]:
        model = model.model_fields[part].annotation if part in Plan.model_fields else None
    if model is Augment:
        return list(Augment.__dataclass_fields__)
    return list(model.model_fields) if hasattr(model, "model_fields") else []


def with_line(key: str, text: str, lines: Mapping[str, int]) -> str:
    """The problem with the line of its key, or of the nearest table around it."""
    parts = key.split(".")
    while parts:
        line = lines.get(".".join(parts))
        if line is not None:
            return f"line {line:<4} {text}"
        parts.pop()
    return text


def key_lines(text: str) -> dict[str, int]:
    """Dotted key → line (from 1). tomllib gives no lines; this scan knows tables and plain keys."""
    lines: dict[str, int] = {}
    table = ""
    for number, line in enumerate(text.splitlines(), 1):
        if match := re.match(r"\s*\[\[?\s*([^\]#]+?)\s*\]", line):
            table = match[1].replace('"', "")
            lines.setdefault(table, number)
        elif match := re.match(r"""\s*([\w."'-]+)\s*=""", line):
            key = re.sub(r"[\"']", "", match[1])
            lines.setdefault(f"{table}.{key}".strip("."), number)
    return lines


def place(tree: dict[str, Any], keys: list[str], value: Any) -> None:
    """Set a dotted key in nested tables."""
    for i, key in enumerate(keys[:-1]):
        tree = tree.setdefault(key, {})
        if not isinstance(tree, dict):
            raise PlanError([f"{'.'.join(keys[: i + 1])} is a value, not a table"])
    tree[keys[-1]] = value


def parse_setting(text: str) -> tuple[str, Any]:
    """``section.key=value`` of --set; the value is TOML, or a plain word."""
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        raise UsageError(f'--set takes section.key=value, not "{text}"')
    try:
        return key.strip(), tomllib.loads(f"x = {value}")["x"]
    except tomllib.TOMLDecodeError:
        return key.strip(), value


# ---------------------------------------------------------------- writing


def write_plan(plan: Plan, reasons: Mapping[str, str] | None = None) -> str:
    """The plan as TOML, every key with a comment: why it was chosen, else what it means."""
    reasons = reasons or {}
    out = ["# regraft plan: `regraft fit` on this file runs it"]
    for section, field in Plan.model_fields.items():
        value = getattr(plan, section)
        if section == "regularizers":
            for name, options in value.items():
                out += ["", f"[regularizers.{toml_key(name)}]"]
                out += [f"{toml_key(k)} = {toml_value(v)}" for k, v in options.items()]
            continue
        out += ["", f"[{section}]"]
        if isinstance(value, dict):
            out += [f"{toml_key(k)} = {toml_value(v)}" for k, v in value.items()]
            continue
        for key, item, description in described(value, field.annotation):
            comment = reasons.get(f"{section}.{key}", description)
            line = f"{key} = {toml_value(item)}" if item is not None else f"# {key} ="
            out.append(f"{line:<34}  # {comment}".rstrip(" #"))
    return "\n".join(out) + "\n"


def described(value: Any, model: Any) -> Iterable[tuple[str, Any, str]]:
    if isinstance(value, BaseModel):
        for key, field in type(value).model_fields.items():
            yield key, getattr(value, key), field.description or ""
    else:
        for key, field in value.__dataclass_fields__.items():
            yield key, getattr(value, key), field.metadata.get("help", "")


def toml_key(key: str) -> str:
    return key if re.fullmatch(r"[A-Za-z0-9_-]+", key) else toml_value(key)


def toml_value(value: Any) -> str:
    """A TOML literal. JSON's strings, numbers, booleans and arrays are TOML's too."""
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{toml_key(k)} = {toml_value(v)}" for k, v in value.items()) + " }"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(toml_value(v) for v in value) + "]"
    if isinstance(value, float):
        return repr(value)
    # DEL is the one character that JSON leaves bare and TOML does not allow
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


# ---------------------------------------------------------------- what the machinery receives


def checkpoint_every(plan: Plan) -> tuple[int, float]:
    """(steps, seconds) between two checkpoints; one of them is 0."""
    every = plan.run.checkpoint_every
    return (every, 0.0) if isinstance(every, int) else (0, 60 * float(every.split()[0]))


def data_options(plan: Plan) -> DataOptions:
    return options_of(plan.data)


def source_data_options(plan: Plan) -> DataOptions:
    return options_of(plan.source_data)


def options_of(d: DataPlan | SourceDataPlan) -> DataOptions:
    return DataOptions(
        **{
            **d.model_dump(exclude={"classes", "each_epoch"}),
            "path": Path(d.path),
            "image_root": Path(d.image_root) if d.image_root else None,
            "text": tuple(d.text),
            "label": tuple(d.label),
        }
    )


def source_options(plan: Plan) -> SourceOptions:
    s = plan.source.model_dump(exclude={"ref"})
    s["weights"] = Path(s["weights"]) if s["weights"] else None
    s["allow_fresh"] = tuple(s["allow_fresh"])
    return SourceOptions(**s)


def task_options(plan: Plan, *, allow_code: bool = False) -> Any:
    name, options = plan.task.get("name", "classification"), dict(plan.task)
    options.pop("name", None)
    return made("tasks", name, options, "task", allow_code)


def freezing(plan: Plan, *, allow_code: bool = False) -> Any:
    name, options = plan.freezing.get("name", "everything"), dict(plan.freezing)
    options.pop("name", None)
    return made("freezing", name, options, "freezing", allow_code)


def regularizers(plan: Plan, *, allow_code: bool = False) -> dict[str, Regularizer]:
    return {
        name: made("regularizers", name, options, f"regularizers.{name}", allow_code)
        for name, options in plan.regularizers.items()
    }


def made(folder: str, name: str, options: dict[str, Any], key: str, allow_code: bool) -> Any:
    try:
        cls = plugins.options_class(folder, name, allow_code=allow_code)
    except LookupError as error:
        raise PlanError([f"{key}: {error}"]) from error
    value, problems = plugins.make(cls, options, key)
    if problems:
        raise PlanError(problems)
    return value
