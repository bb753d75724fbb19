"""The command line. Heavy imports stay inside the commands: ``regraft --help`` loads no torch."""

from __future__ import annotations

import codecs
import functools
import inspect
import io
import json
import os
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import DiskError, RankError, RegraftError, UsageError, kind_of, of_the_system
from ..io import streams
from ..io.command_lines import command

if TYPE_CHECKING:
    from ..plan.schema import Plan


START, TRAIN, JUDGE, USE, HELP = "Start", "Train", "Judge", "Use", "Help"

app = typer.Typer(
    name="regraft",
    help="Transfer learning with evidence: did transfer help, how sure is that, and what did it cost?",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None if os.environ.get("NO_COLOR") else "rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

Calibrated = Annotated[
    bool, typer.Option("--calibrated", help="Probabilities at the temperature that fits the run's val.")
]

Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]

Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print the result alone.")]

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, for machines.")]

AllowCode = Annotated[bool, typer.Option("--allow-code", help="Let dotted paths of the plan import your code.")]

Resume = Annotated[bool, typer.Option("--resume", help="Go on with a run that was left; DATA may be its folder.")]

AcceptChanges = Annotated[
    bool, typer.Option("--accept-changes", help="Resume though data or plan changed; it is recorded.")
]

Settings = Annotated[list[str], typer.Option("--set", metavar="KEY=VALUE", help="Any key of the plan.")]


class TaskName(StrEnum):
    classification = "classification"
    multilabel = "multilabel"
    regression = "regression"


class OnBadRows(StrEnum):
    fail = "fail"
    skip = "skip"


class Control(StrEnum):
    scratch = "scratch"


Source = Annotated[
    str | None, typer.Option(help="timm:NAME, transformers:NAME_OR_DIR, bundled:NAME, random:timm/NAME, a run.")
]

SourceData = Annotated[Path | None, typer.Option(help="Labelled rows of the source task: what fitting cost it.")]

Retain = Annotated[float | None, typer.Option(help="Share of the source task to keep for sure, as 0.98.")]

Weights = Annotated[Path | None, typer.Option(help="A weights file for the source.")]

ImageRoot = Annotated[Path | None, typer.Option(help="Folder of a table's image paths.")]

Image = Annotated[str | None, typer.Option(help="Column of image paths.")]

Text = Annotated[list[str], typer.Option(help="Text column; twice for a pair.")]

Label = Annotated[list[str], typer.Option(help="Label column; several for several labels.")]

Split = Annotated[str | None, typer.Option(help="Column that says train, val or test.")]

Group = Annotated[str | None, typer.Option(help="Column whose equal values stay in one split.")]

OnBad = Annotated[OnBadRows | None, typer.Option(help="Unreadable rows: fail (default) or skip.")]

Task = Annotated[TaskName | None, typer.Option(help="What is learnt.")]

Data = Annotated[str, typer.Argument(metavar="DATA|PLAN", help="Data, or a plan.toml.")]

Epochs = Annotated[int | None, typer.Option(help="Passes over the training rows.")]

BatchSize = Annotated[int | None, typer.Option(help="Rows a step.")]

Lr = Annotated[float | None, typer.Option(help="Learning rate of the backbone.")]

HeadLr = Annotated[float | None, typer.Option(help="Learning rate of the head.")]

Optimizer = Annotated[str | None, typer.Option(help="Any of torch.optim, by name.")]

Freezing = Annotated[str | None, typer.Option(help="everything, head_only, last_blocks, gradual or lora.")]

Seed = Annotated[int | None, typer.Option(help="The first seed.")]

Seeds = Annotated[int | None, typer.Option(help="How many seeds; a verdict needs 3.")]

Controls = Annotated[list[Control], typer.Option(help="Also train from scratch, to compare.")]

Device = Annotated[str | None, typer.Option(help="auto, cpu, cuda, mps.")]

Nproc = Annotated[int | None, typer.Option(help="Processes that share the work, on this machine.")]

Workers = Annotated[int | None, typer.Option(help="Loader processes.")]

Port = Annotated[int, typer.Option(help="The page's port on 127.0.0.1; 0 takes any that is free.")]

NoBrowser = Annotated[bool, typer.Option("--no-browser", help="Print the address, open nothing.")]

Out = Annotated[Path | None, typer.Option(help="The run folder to make.")]

Offline = Annotated[bool, typer.Option("--offline", help="Make no network call.")]

# flag → (dotted key of the plan, its type on the command line, default)
FLAGS: dict[str, tuple[str, Any, Any]] = {
    "source": ("source.ref", Source, None),
    "weights": ("source.weights", Weights, None),
    "source_data": ("source_data.path", SourceData, None),
    "offline": ("source.offline", Offline, False),
    "image_root": ("data.image_root", ImageRoot, None),
    "image": ("data.image", Image, None),
    "text": ("data.text", Text, []),
    "label": ("data.label", Label, []),
    "split": ("data.split", Split, None),
    "group": ("data.group", Group, None),
    "on_bad": ("data.on_bad", OnBad, None),
    "task": ("task.name", Task, None),
    "epochs": ("fit.epochs", Epochs, None),
    "batch_size": ("fit.batch_size", BatchSize, None),
    "lr": ("fit.lr", Lr, None),
    "head_lr": ("fit.head_lr", HeadLr, None),
    "optimizer": ("fit.optimizer", Optimizer, None),
    "freezing": ("freezing.name", Freezing, None),
    "retain": ("fit.retain", Retain, None),
    "controls": ("evaluate.controls", Controls, []),
    "seed": ("run.seed", Seed, None),
    "seeds": ("run.seeds", Seeds, None),
    "device": ("run.device", Device, None),
    "workers": ("run.workers", Workers, None),
    "nproc": ("run.processes", Nproc, None),
    "out": ("run.out", Out, None),
}


def with_flags(*, but: tuple[str, ...] = ()) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command that takes ``flags`` the options of FLAGS; typer reads the signature."""

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        own = inspect.signature(command, eval_str=True).parameters
        kind = inspect.Parameter.KEYWORD_ONLY
        flags = [
            inspect.Parameter(name, kind, default=default, annotation=annotation)
            for name, (_, annotation, default) in FLAGS.items()
            if name not in but
        ]
        kept = [p.replace(kind=kind) for name, p in own.items() if name != "flags"]

        @functools.wraps(command)
        def wrapper(**given: Any) -> None:
            values = {f.name: given.pop(f.name) for f in flags}
            command(flags=values, **given)

        wrapper.__signature__ = inspect.Signature([*kept[:1], *flags, *kept[1:]])  # type: ignore[attr-defined]
        wrapper.__annotations__ = {p.name: p.annotation for p in [*kept, *flags]}
        return wrapper

    return decorate


def make_plan(
    data: str, flags: dict[str, Any], settings: list[str], allow_code: bool, needs_source: bool = True
) -> Plan:
    """The plan of a command line: a plan file or data, then flags, then --set."""
    from ..plan.read import parse_setting, read_plan

    values: dict[str, Any] = {}
    is_plan = data.endswith(".toml")
    if not is_plan:
        values["data.path"] = data
    for flag, value in flags.items():
        if value is None or value is False or value == []:
            continue
        if isinstance(value, Path):
            value = str(value)
        values[FLAGS[flag][0]] = [str(v) for v in value] if isinstance(value, list) else value
    values |= dict(parse_setting(s) for s in settings)
    if not is_plan and not needs_source:
        values.setdefault("source.ref", "")
    if not is_plan and "source.ref" not in values:
        raise UsageError("say what to start from: --source bundled:efficientnet-lite0, or see --help")
    return read_plan(Path(data) if is_plan else None, values, allow_code=allow_code)


@app.command(rich_help_panel=START)
def init(
    source: Annotated[str, typer.Argument(help="A source, as in --source.")],
    data: Annotated[str, typer.Argument(help="A folder or a table.")],
    out: Annotated[Path, typer.Option(help="The file to write.")] = Path("plan.toml"),
    task: Task = None,
    image_root: ImageRoot = None,
    image: Image = None,
    text: Text = [],  # noqa: B006
    label: Label = [],  # noqa: B006
) -> None:
    """Write plan.toml with every default visible and commented."""
    from ..plan.write import write_plan

    if out.exists():
        raise UsageError(f"{out} exists and is not overwritten: choose another --out")
    run = str(Path("runs") / (Path(data.rstrip("/")).stem or "run"))
    flags = {
        "source": source,
        "task": task,
        "image_root": image_root,
        "image": image,
        "text": text,
        "label": label,
        "out": run,
    }
    text_of_plan = write_plan(make_plan(data, flags, [], False))
    out.write_text(text_of_plan, encoding="utf-8")
    streams.echo(f"{out} written; next: {command('plan', out)}   ·   {command('fit', out)}")


TRAINING = (
    "epochs",
    "batch_size",
    "lr",
    "head_lr",
    "optimizer",
    "freezing",
    "retain",
    "controls",
    "seed",
    "seeds",
    "out",
)


@app.command(rich_help_panel=START)
@with_flags(but=("on_bad", *TRAINING))
def check(
    data: Data,
    flags: dict[str, Any],
    out: Annotated[Path | None, typer.Option(help="Write the whole list here, as JSON.")] = None,
    settings: Settings = [],  # noqa: B006
    allow_code: AllowCode = False,
    as_json: AsJson = False,
) -> None:
    """Look at data and, with --source, at what it makes of them: bad files, duplicates and leaks
    across splits, classes, probable label errors. Nothing is trained or changed.

    Like a linter, it exits with 3 where it finds a problem, with 0 where there are only cautions and
    notes.
    """
    if out is not None and out.exists():
        raise UsageError(f"{out} exists and is not overwritten: choose another --out")
    chosen = make_plan(data, flags, settings, allow_code, needs_source=False)
    from ..commands.check import check as looked
    from ..io.json_files import dumps
    from ..pipeline.findings import in_words

    def say(line: str) -> None:
        if not as_json:
            streams.complain(line)

    found = looked(chosen, say=say)
    record = dumps(found.record(), indent=2)
    if out is not None:
        out.write_text(record + "\n", encoding="utf-8")
    streams.echo(record if as_json else in_words(found))
    if found.problems:
        raise typer.Exit(3)


@app.command(rich_help_panel=START)
@with_flags(but=("out", "nproc"))
def plan(
    data: Data,
    flags: dict[str, Any],
    settings: Settings = [],  # noqa: B006
    allow_code: AllowCode = False,
) -> None:
    """Print the table of blocks, learning rates, time and memory; train nothing."""
    from ..commands.estimate import show

    streams.echo(show(make_plan(data, flags, settings, allow_code)))


@app.command(rich_help_panel=TRAIN)
@with_flags()
def fit(
    data: Data,
    flags: dict[str, Any],
    settings: Settings = [],  # noqa: B006
    allow_code: AllowCode = False,
    resume: Resume = False,
    accept_changes: AcceptChanges = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Fine-tune a source on your data: DATA --source REF --out runs/NAME, or plan.toml."""
    from ..io.guarded import check_folder
    from ..runs.folder import MADE_LATER, check_new, status_of
    from ..training.signals import Interrupted

    if accept_changes and not resume:
        raise UsageError("--accept-changes goes with --resume")
    if resume and flags["source"] is None and Path(data).suffix != ".toml":  # a run folder
        flags["out"] = Path(data)
        check_folder(flags["out"], leave=MADE_LATER)
        data = str(Path(data) / "plan.toml")
        if not Path(data).is_file():
            raise UsageError(f"{data} does not exist, so nothing says how to go on: give the plan")
    chosen = make_plan(data, flags, settings, allow_code)
    if chosen.run.out is None:
        raise UsageError("say where the run goes: --out runs/NAME")
    out = Path(chosen.run.out)
    launched = "WORLD_SIZE" in os.environ  # by torchrun, or by the lines below
    first = os.environ.get("RANK", "0") == "0"
    if resume and out.exists() and status_of(out) == "finished":
        if first:
            streams.complain(f"{out} is finished: nothing is left to do")
            show_result(out, as_json)
        return
    if first and not (resume and out.exists()):
        check_new(out)  # before torch is imported
    if chosen.run.processes not in ("auto", 1) and not launched:
        from ..commands.launch import launch

        raise SystemExit(launch(int(chosen.run.processes), sys.argv[1:], out))
    from ..pipeline.run import run
    from .bars import bars

    try:
        with bars(on=first and not quiet and not as_json) as (say, track):
            path = run(chosen, say=say, track=track, resume=resume, accept_changes=accept_changes)
    except Interrupted as stop:
        if first:
            streams.complain(str(stop))
        raise typer.Exit(stop.exit_code) from None
    if first:
        show_result(path, as_json)


@app.command("verify-resume", rich_help_panel=TRAIN)
@with_flags(but=("out",))
def verify_resume(
    data: Data,
    flags: dict[str, Any],
    steps: Annotated[int, typer.Option(help="Steps before the kill.")] = 10,
    settings: Settings = [],  # noqa: B006
    allow_code: AllowCode = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Kill a short run, resume it, compare bit for bit with one that was left alone; nothing stays."""
    from dataclasses import asdict

    from ..commands.verify_resume import verify

    chosen = make_plan(data, flags, settings, allow_code)
    say = unless(quiet or as_json, streams.complain)
    found = verify(chosen, steps, say=say)
    streams.echo(json.dumps(asdict(found)) if as_json else str(found))
    if found.differ:
        raise typer.Exit(1)


@app.command(rich_help_panel=JUDGE)
@with_flags(but=("seeds", "retain", "source_data", "nproc"))
def curve(
    data: Data,
    flags: dict[str, Any],
    labels: Annotated[list[int], typer.Option(help="Labels a class (rows, for numbers); several for a curve.")] = [  # noqa: B006
        3,
        5,
        10,
        30,
    ],
    settings: Settings = [],  # noqa: B006
    allow_code: AllowCode = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Is it worth labelling more? Probe, fit and scratch against the number of labels, on folds."""
    chosen = make_plan(data, flags, settings, allow_code)
    from ..commands.curve import curve as drawn
    from ..commands.curve import in_words
    from ..runs.folder import read_json

    path = drawn(chosen, labels, say=unless(quiet or as_json))
    record = read_json(path, "curve.json", dict[str, Any])
    streams.echo(json.dumps(record, ensure_ascii=False) if as_json else in_words(record))


@app.command(rich_help_panel=TRAIN)
@with_flags(but=("out", "seeds", "retain", "controls", "nproc"))
def rates(
    data: Data,
    flags: dict[str, Any],
    steps: Annotated[int, typer.Option(help="Steps with growing rates.")] = 100,
    settings: Settings = [],  # noqa: B006
    allow_code: AllowCode = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Learning-rate range test: at which rates does training break? Keeps nothing that it trains."""
    from dataclasses import asdict

    chosen = make_plan(data, flags, settings, allow_code)
    from ..commands.rates import in_words, of_plan

    found = of_plan(chosen, steps, say=unless(quiet or as_json))
    streams.echo(json.dumps(asdict(found)) if as_json else in_words(found))


def unless(silent: bool, say: Callable[[str], None] = streams.echo) -> Callable[[str], None]:
    """``say``, or nothing at all."""
    return (lambda line: None) if silent else say


def show_result(path: Path, as_json: bool) -> None:
    from ..runs.result import finished
    from ..runs.summary import summary

    result = finished(path)
    streams.echo(json.dumps(result.model_dump(), ensure_ascii=False) if as_json else summary(path, result))


@app.command(rich_help_panel=START)
def demo(
    out: Annotated[Path, typer.Option(help="Folder for data and runs; must not exist yet.")] = Path("runs/demo"),
    quiet: Quiet = False,
) -> None:
    """The whole thing on data that ships inside packages: offline, two to three minutes."""
    from ..commands.demo import demo as walk
    from .bars import bars

    with bars(on=not quiet) as (say, track):
        text = walk(out, say, track)
    streams.echo(text)


@app.command(rich_help_panel=JUDGE)
def evaluate(
    run: Annotated[Path, typer.Argument(help="A run folder.")],
    data: Annotated[Path, typer.Argument(help="New labelled data.")],
    image_root: ImageRoot = None,
    image: Image = None,
    text: Text = [],  # noqa: B006
    label: Label = [],  # noqa: B006
    group: Group = None,
    on_bad: OnBad = None,
    calibrated: Calibrated = False,
    device: Device = None,
    as_json: AsJson = False,
) -> None:
    """A run on new labelled data, with intervals."""
    from dataclasses import asdict

    from ..commands.predict import like_run
    from ..pipeline.predictor import load

    given = {
        "image_root": image_root,
        "image": image,
        "text": text,
        "label": label,
        "group": group,
        "on_bad": on_bad and on_bad.value,
    }
    model = load(run, device=device or "cpu")
    model = model.calibrated() if calibrated else model
    figures, rows, which = model.evaluate(like_run(run, data, given))
    if as_json:
        record = {"n": len(rows), "rows": which} | {k: asdict(v) for k, v in figures.items()}
        streams.echo(json.dumps(record))
        return
    streams.echo(f"{run} on {which} of {data}, n = {len(rows)}")
    for name, estimate in figures.items():
        streams.echo(f"  {name:<18} {estimate}")


@app.command(rich_help_panel=JUDGE)
def compare(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN RUN …", help="Run folders.")], as_json: AsJson = False
) -> None:
    """Runs side by side, with paired differences to the first on the same test rows."""
    from dataclasses import asdict

    from ..evidence.comparison import compare as compared
    from ..evidence.comparison import in_words

    lines = compared(runs)
    streams.echo(json.dumps([asdict(line) for line in lines]) if as_json else in_words(lines))


@app.command(rich_help_panel=JUDGE)
def frontier(
    run: Annotated[Path, typer.Argument(help="A run folder.")],
    retain: Retain = None,
    out: Annotated[Path | None, typer.Option(help="Write the chosen point as a run.")] = None,
    as_json: AsJson = False,
) -> None:
    """The points between the start and the fit; another choice with a floor, without training."""
    from dataclasses import asdict

    from ..commands.frontier import in_words, rechoose, write_chosen

    if retain is not None and not 0 < retain <= 1:
        raise UsageError(f"--retain takes a share above 0, up to 1, not {retain:g}")
    found = rechoose(run, retain)
    if out is not None:
        write_chosen(run, found, retain, out)
    if as_json:
        record = {"chosen": found.chosen.alpha, "chosen_by": found.chosen_by}
        streams.echo(json.dumps(record | {"points": [asdict(p) for p in found.points]}))
        return
    streams.echo(in_words(found, retain))
    if out is not None:
        show_result(out, as_json)


@app.command(rich_help_panel=JUDGE)
def report(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN …", help="One run folder, or several to compare.")],
    out: Annotated[Path | None, typer.Option(help="Where to write; default: report.html in the run folder.")] = None,
) -> None:
    """One HTML file: the verdict, the data, curves, errors, what the source lost; no network."""
    from ..report.render import report as write_report

    streams.echo(str(write_report(runs, out)))


@app.command(rich_help_panel=JUDGE)
def watch(
    run: Annotated[Path, typer.Argument(help="A run folder; the run need not have begun.")],
    port: Port = 0,
    no_browser: NoBrowser = False,
) -> None:
    """A page of this machine that follows a running job: curves, rates, time left, resources, log."""
    if run.exists() and not run.is_dir():
        raise UsageError(f"{run} is no folder: regraft watch RUN, which regraft fit writes")
    from ..serving.local_pages import serve as answer
    from ..watching.pages import watch_app

    ready = f"following {run}" + ("" if run.exists() else ", which has not begun")
    answer(watch_app(run), port, browser=not no_browser, say=streams.echo, ready=ready)


@app.command(rich_help_panel=JUDGE)
def track(
    run: Annotated[Path, typer.Argument(help="A run folder; a running one is followed to its end.")],
    to: Annotated[str, typer.Option(help="tensorboard or mlflow.")],
    out: Annotated[
        str | None, typer.Option(help="A folder, or for MLflow an address; default: RUN/tensorboard, mlruns.")
    ] = None,
    quiet: Quiet = False,
) -> None:
    """The curves, and at the end the evidence, in TensorBoard or MLflow; from run files alone."""
    from ..watching.tracking import track as tracked

    say = unless(quiet, streams.complain)
    streams.echo(tracked(run, to, out, say=say))


@app.command(rich_help_panel=USE)
def ui(
    folder: Annotated[Path, typer.Argument(help="The folder that runs are in.")] = Path("runs"),
    port: Port = 0,
    no_browser: NoBrowser = False,
) -> None:
    """All runs below a folder on one page of this machine: filter, sort, compare, open reports, watch."""
    if not folder.is_dir():
        raise UsageError(f"{folder} is no folder: regraft ui FOLDER, where the runs are in")
    from ..serving.local_pages import serve as answer
    from ..watching.pages import ui_app

    answer(ui_app(folder), port, browser=not no_browser, say=streams.echo, ready=f"runs of {folder}")


@app.command(rich_help_panel=USE)
def predict(
    context: typer.Context,
    run: Annotated[Path, typer.Argument(help="A run folder.")],
    inputs: Annotated[list[str], typer.Argument(help="Files, folders or tables; - reads lines from stdin.")],
    image_root: ImageRoot = None,
    image: Image = None,
    text: Text = [],  # noqa: B006
    on_bad: OnBad = None,
    out: Annotated[Path | None, typer.Option(help="Write CSV here instead of the terminal.")] = None,
    calibrated: Calibrated = False,
    device: Device = None,
    as_json: AsJson = False,
    no_escape: Annotated[
        bool, typer.Option("--no-escape", help="CSV cells as they are, though a spreadsheet may run them.")
    ] = False,
) -> None:
    """Predictions for files, folders, tables or lines, as CSV."""
    from ..commands.predict import named_inputs, readable, write_predictions
    from ..pipeline.predictor import load

    if out is not None and out.exists():
        raise UsageError(f"{out} exists and is not overwritten: choose another --out")
    model = load(run, device=device or "cpu")
    model = model.calibrated() if calibrated else model
    given = {"image_root": image_root, "image": image, "text": text}
    names, values = named_inputs(run, model.kind, inputs, given, context.obj)
    if model.kind == "image":
        names, values, bad = readable(names, values, (on_bad or OnBadRows.fail).value)
        for line in bad:
            streams.complain(f"no prediction for {line}")
    predictions = model.predict(values)
    if out is None:
        write_predictions(streams.output(), names, predictions, as_json, not no_escape)
    else:
        try:
            with out.open("x", encoding="utf-8", errors="backslashreplace", newline="") as file:
                write_predictions(file, names, predictions, as_json, not no_escape)
        except OSError as error:
            out.unlink(missing_ok=True)  # a part of it would look like all of it
            raise DiskError(f"{out} cannot be written: {error.strerror or error}") from error


@app.command(rich_help_panel=USE)
def export(
    run: Annotated[Path, typer.Argument(help="A run folder.")],
    to: Annotated[str, typer.Option(help="bundle, timm, transformers, transformers-features, onnx or torch.")],
    out: Annotated[Path | None, typer.Option(help="The folder to make; default: RUN/exports/FORMAT.")] = None,
    calibrated: Calibrated = False,
    int8: Annotated[bool, typer.Option("--int8", help="ONNX: also with 8-bit weights, and what that costs.")] = False,
    rows: Annotated[int, typer.Option(help="Rows that are compared, at most.")] = 2000,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """The model for other programs, with a model card; checked in a fresh process before it is kept."""
    from ..io.json_files import plain
    from ..publish.export import export as exported
    from ..publish.export import in_words

    done = exported(run, to, out, calibrated=calibrated, int8=int8, rows=rows, say=unless(quiet or as_json))
    streams.echo(json.dumps(plain(done), ensure_ascii=False) if as_json else in_words(done))


@app.command(rich_help_panel=USE)
def serve(
    run: Annotated[Path, typer.Argument(help="A run folder, or an export of it as a bundle.")],
    host: Annotated[
        str, typer.Option(help="Address to listen on; beyond this machine a token is asked for.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="0: any that is free.")] = 8000,
    token: Annotated[str | None, typer.Option(help="Instead of a drawn one; better in REGRAFT_TOKEN.")] = None,
    allow_host: Annotated[
        list[str], typer.Option(help="Another name that requests may come by, as behind a proxy.")
    ] = [],  # noqa: B006
    batch: Annotated[int, typer.Option(help="Requests that share a forward pass, at most.")] = 32,
    wait_ms: Annotated[float, typer.Option(help="For requests that are being read.")] = 5.0,
    queue: Annotated[int, typer.Option(help="Requests inside, at most; more get 429.")] = 256,
    seconds: Annotated[float, typer.Option(help="For an answer; else 504.")] = 30.0,
    megabytes: Annotated[float, typer.Option(help="Of a request, at most; more get 413.")] = 20.0,
    device: Device = None,
    as_json: AsJson = False,
) -> None:
    """A page to try the model on, and POST /predict for programs; on 127.0.0.1 unless told otherwise."""
    try:
        from ..serving.limits import Limits
        from ..serving.server import serve as served
    except ModuleNotFoundError as error:
        text = f'regraft serve needs {error.name}: pip install "regraft[serve]"'
        raise UsageError(text) from error
    try:
        limits = Limits(batch=batch, wait_ms=wait_ms, queue=queue, seconds=seconds, megabytes=megabytes)
    except ValueError as error:
        raise UsageError(f"--{str(error).replace('_', '-', 1)}") from error
    served(
        run,
        host=host,
        port=port,
        token=token,
        allow_host=allow_host,
        limits=limits,
        device=device or "cpu",
        say=streams.echo,
        complain=streams.complain,
        as_json=as_json,
    )


@app.command(rich_help_panel=HELP)
def cache(clear: Annotated[bool, typer.Option("--clear", help="Remove every entry.")] = False) -> None:
    """Where features are kept for the next run, how much they take, and --clear."""
    from ..data.store import cache_in
    from ..io.places import pictures_root, unpacked_pictures

    kept = cache_in("shared")
    pictures = unpacked_pictures()
    if clear:
        for path in pictures:
            path.unlink(missing_ok=True)
        streams.echo(f"{kept.clear()} entries removed from {kept.root}")
        streams.echo(f"{len(pictures)} pictures of tables removed from {pictures_root()}")
        return
    entries = kept.entries()
    size = sum(size for _, size, _ in entries)
    streams.echo(f"{kept.root}: {len(entries)} entries, {size / 1e6:,.1f} MB")
    if pictures:
        size = sum(path.stat().st_size for path in pictures)
        streams.echo(f"{pictures_root()}: {len(pictures)} pictures of tables, {size / 1e6:,.1f} MB")


@app.command(rich_help_panel=HELP)
def doctor(
    runs: Annotated[Path, typer.Argument(help="The folder that runs are in.")] = Path("runs"), as_json: AsJson = False
) -> None:
    """Versions, devices, disk, caches, locks: what is wrong, and what to do about it."""
    from dataclasses import asdict

    from ..commands.doctor import examine, in_words

    found = examine(runs)
    streams.echo(json.dumps([asdict(f) for f in found]) if as_json else in_words(found))
    if any(f.remedy for f in found):
        raise typer.Exit(1)


@app.command("list", rich_help_panel=HELP)
def list_(
    what: Annotated[
        str,
        typer.Argument(
            help="sources, formats, tasks, freezing, regularizers, metrics, checks, exports, trackers, "
            "or a folder of runs."
        ),
    ] = "all",
    as_json: AsJson = False,
) -> None:
    """What there is: plug-ins with their options, or the runs in a folder."""
    from ..commands.listing import listing

    streams.echo(listing(what, as_json))


@app.callback(invoke_without_command=True)
def root(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    if version:
        from ..compute.versions import __version__

        streams.echo(f"regraft {__version__}")
        raise typer.Exit


def is_rank0(error: Exception, what: str) -> bool:
    """Return whether this process says what went wrong. What all of several ranks see rank 0 says; what
    one alone sees, and that one is lost, the launcher says, and torchrun ends the others meanwhile."""
    from ..compute.launched import launched, report

    first = os.environ.get("RANK", "0") == "0"
    if launched():
        lost = isinstance(error, RankError)
        if not lost:
            report(what, str(error))
        return first and not lost
    if not first:
        time.sleep(3)
    return True


def make_streams_lenient() -> None:
    """What is printed may hold any character, and bytes of names that are none: no terminal's encoding
    stops a run. ASCII (a locale "C" that Python was told to take at its word) becomes UTF-8."""
    for stream in (sys.stdin, sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            ascii_alone = codecs.lookup(stream.encoding).name == "ascii"
            errors = "surrogateescape" if stream is sys.stdin else "backslashreplace"
            with suppress(io.UnsupportedOperation):  # of input that someone has begun to read
                stream.reconfigure(encoding="utf-8" if ascii_alone else None, errors=errors)


def call(arguments: list[str]) -> None:
    """Run a command, and print all that it said."""
    if sys.stdout is None:
        sys.stdout = Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115
        raise UsageError("standard output is closed: run it again with > /dev/null, or to a file")
    with streams.own_input() as own:
        try:
            app(args=arguments, prog_name="regraft", obj=own)
        finally:
            sys.stdout.flush()


def main() -> None:
    """Run the command line; an error is one sentence and an exit code, no traceback."""
    streams.open_closed()
    make_streams_lenient()
    arguments = [a for a in sys.argv[1:] if a != "--debug"]
    debug = len(arguments) < len(sys.argv) - 1
    try:
        call(arguments)
    except RegraftError as error:
        what = f"{kind_of(error)}: {error}"
        says = is_rank0(error, what)
        if debug:
            raise
        if says:
            streams.complain(what)
        sys.exit(error.exit_code)
    except BrokenPipeError:
        streams.mute(sys.stdout)  # the reader has gone (`| head`)
        sys.exit(0)
    except Exception as error:
        known = of_the_system(error) if isinstance(error, OSError) else None
        what = f"unexpected {type(error).__name__}: {error}"  # a fault of ours: still one sentence
        if known is not None:
            what = f"{type(known).__name__}: {known}"
        says = is_rank0(error, what)
        if debug:
            raise
        if known is not None:
            if error.filename is None:  # type: ignore[attr-defined]
                streams.mute(sys.stdout)
            if says:
                streams.complain(what)
            sys.exit(known.exit_code)
        if says:
            streams.complain(f"{what}\nrun it again with --debug for the traceback")
        sys.exit(1)
    except KeyboardInterrupt:
        streams.complain("interrupted")
        sys.exit(130)


if __name__ == "__main__":
    main()
