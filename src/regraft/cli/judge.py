"""Commands that judge models: curve, evaluate, compare, frontier, report, watch, track."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import UsageError, printable
from ..io import streams
from ..io.log import lines_to
from .flags import plugin_option
from .options import AsJson, Calibrated, NoBrowser, PlanArguments, Port, Quiet, RunFolder, takes_flags, takes_plan
from .printing import print_result, print_run, unless

if TYPE_CHECKING:
    from ..pipeline.predictor import Evaluation

Labels = Annotated[list[int], typer.Option(help="Labels a class, or rows for numbers; give it again for more points.")]


@takes_plan(but=("seeds", "retain", "slice", "source_data", "nproc"))
def curve(
    given: PlanArguments,
    labels: Labels = [3, 5, 10, 30],  # noqa: B006
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Estimate whether more labels would help: probe, fit and scratch by number of labels, on folds."""
    plan = given.plan()
    from ..commands.curve import curve as measure
    from ..commands.curve import in_words
    from ..runs.folder import read_json

    with lines_to(unless(quiet or as_json)):
        path = measure(plan, labels)
    record = read_json(path, "curve.json", dict[str, Any])
    print_result(record, lambda: in_words(record), as_json)


@takes_flags("image_root", "image", "text", "label", "group", "on_bad", "slice", device="cpu")
def evaluate(
    run: RunFolder,
    data: Annotated[Path, typer.Argument(help="New labelled data.")],
    flags: dict[str, Any],
    calibrated: Calibrated = False,
    as_json: AsJson = False,
) -> None:
    """Evaluate a run on new labelled data, with intervals. Rows of its own train and val are left out."""
    from ..commands.predict import like_run
    from ..pipeline.predictor import load

    model, slices = load(run, device=flags.pop("device")), flags.pop("slice")
    model = model.calibrated() if calibrated else model
    found = model.evaluate(like_run(run, data, flags), slices)
    record: dict[str, Any] = {"n": len(found.rows), "rows": found.which, "own": found.own}
    record |= {"slices": found.slices.model_dump()} if found.slices else {}
    print_result(record | {n: asdict(e) for n, e in found.metrics.items()}, lambda: in_words(run, data, found), as_json)


def in_words(run: Path, data: Path, found: Evaluation) -> str:
    """Return the metrics of an evaluation, and which rows they are not of, as lines."""
    from ..runs.summary import slice_lines

    lines = [f"{run} on {found.which} of {data}, n = {len(found.rows)}"]
    lines += [f"  {name:<18} {estimate}" for name, estimate in found.metrics.items()]
    lines += [f"  {printable(line)}" for line in (slice_lines(found.slices) if found.slices else ())]
    if known := {split: n for split, n in found.own.items() if split != "test"}:
        counts = ", ".join(f"{split} {n}" for split, n in known.items())
        lines.append(f"{sum(known.values())} more rows are the run's own ({counts}) and are left out.")
    if "test" in found.own:
        lines.append(
            f"{found.own['test']} of these rows are the run's own test rows, which it was evaluated on before."
        )
    return "\n".join(lines)


def compare(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN RUN …", help="Run folders.")], as_json: AsJson = False
) -> None:
    """Rank runs by the rows that chose, with paired differences to the first on the same test rows."""
    from ..commands.compare import compare_runs, in_words, records

    lines, settings = compare_runs(runs)
    print_result(records(lines, settings), lambda: in_words(lines, settings), as_json)


@takes_flags("retain")
def frontier(
    run: RunFolder,
    flags: dict[str, Any],
    out: Annotated[Path | None, typer.Option(help="Write the chosen point as a new run.")] = None,
    as_json: AsJson = False,
) -> None:
    """Show the points between start and fit, or choose another one by --retain; train nothing."""
    from ..commands.frontier import in_words, rechoose, write_chosen

    retain = flags["retain"]
    if retain is not None and not 0 < retain <= 1:
        raise UsageError(f"--retain takes a share above 0, up to 1, not {retain:g}")
    choice = rechoose(run, retain)
    if out is not None:
        write_chosen(run, choice, retain, out)
    record = {
        "chosen": choice.chosen.alpha,
        "chosen_by": choice.chosen_by,
        "points": [asdict(p) for p in choice.points],
    }
    print_result(record, lambda: in_words(choice, retain), as_json)
    if out is not None and not as_json:
        print_run(out, as_json)


def report(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN …", help="One run folder, or several to compare.")],
    out: Annotated[Path | None, typer.Option(help="File to write; default: report.html in the run folder.")] = None,
) -> None:
    """Write one HTML file: verdict, data, curves, errors, what the source lost. It loads nothing from elsewhere."""
    from ..report.render import report as write_report

    streams.echo(str(write_report(runs, out)))


def watch(
    run: Annotated[Path, typer.Argument(help="A run folder; the run may start later.")],
    port: Port = 0,
    no_browser: NoBrowser = False,
) -> None:
    """Serve a local page that follows a running job: curves, rates, time left, resources, log."""
    if run.exists() and not run.is_dir():
        raise UsageError(f"{run} is no folder: regraft watch RUN, which regraft fit writes")
    from ..serving.local_pages import serve
    from ..watching.pages import watch_app

    ready = f"following {run}" + ("" if run.exists() else ", which has not begun")
    serve(watch_app(run), port, browser=not no_browser, say=streams.echo, ready=ready)


def track(
    run: Annotated[Path, typer.Argument(help="A run folder; a running one is followed to its end.")],
    to: Annotated[str, plugin_option("trackers", "Tracker to write to")],
    out: Annotated[
        str | None, typer.Option(help="A folder, or for MLflow an address; default: RUN/tensorboard, mlruns.")
    ] = None,
    quiet: Quiet = False,
) -> None:
    """Send the curves, and at the end the evidence, to a tracker. It reads only run files."""
    from ..watching.tracking import track as track_run

    with lines_to(unless(quiet, streams.complain)):
        message = track_run(run, to, out)
    streams.echo(message)


COMMANDS = {
    "curve": curve,
    "evaluate": evaluate,
    "compare": compare,
    "frontier": frontier,
    "report": report,
    "watch": watch,
    "track": track,
}
