"""Commands that use a run's model: ui, predict, export, serve."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from ..errors import UsageError
from ..io import streams
from ..serving.endpoint import Endpoint
from ..serving.limits import Limits, described
from .flags import plugin_option
from .options import AsJson, Calibrated, NoBrowser, Port, Quiet, RunFolder, takes_flags, takes_record
from .printing import print_result, unless


def ui(
    folder: Annotated[Path, typer.Argument(help="The folder that runs are in.")] = Path("runs"),
    port: Port = 0,
    no_browser: NoBrowser = False,
) -> None:
    """Serve a local page of all runs below a folder: filter, sort, compare, open reports, watch."""
    if not folder.is_dir():
        raise UsageError(f"{folder} is no folder: regraft ui FOLDER, where the runs are in")
    from ..serving.local_pages import serve
    from ..watching.pages import ui_app

    serve(ui_app(folder), port, browser=not no_browser, say=streams.echo, ready=f"runs of {folder}")


@dataclass(frozen=True)
class Extras:
    """Parts of a prediction beside its answer."""

    calibrated: bool = described(False, "give probabilities at the temperature that was fitted on held-out rows")
    sets: bool = described(
        False,
        "add the set of classes, or the interval, that holds the truth at the run's evaluate.coverage, and whether the "
        "row is accepted at its evaluate.max_error",
    )


@takes_record("extras", Extras, "calibrated", "sets")
@takes_flags("image_root", "image", "text", "on_bad", device="cpu")
def predict(
    context: typer.Context,
    run: RunFolder,
    inputs: Annotated[list[str], typer.Argument(help="Files, folders or tables; - reads lines from stdin.")],
    flags: dict[str, Any],
    extras: Extras,
    out: Annotated[Path | None, typer.Option(help="Write CSV to this file instead of the terminal.")] = None,
    as_json: AsJson = False,
    no_escape: Annotated[
        bool, typer.Option("--no-escape", help="Write CSV cells unchanged, though a spreadsheet may run them.")
    ] = False,
) -> None:
    """Write predictions for files, folders, tables or lines, as CSV."""
    from ..commands.predict import named_inputs, readable, save_predictions, write_predictions
    from ..pipeline.predictor import load

    if out is not None and out.exists():
        raise UsageError(f"{out} exists and is not overwritten: choose another --out")
    device, on_bad = flags.pop("device"), flags.pop("on_bad") or "fail"
    model = load(run, device=device)
    if extras.sets and not model.has_sets:
        raise UsageError(f"--sets: {model.without_sets}")
    model = model.calibrated() if extras.calibrated else model
    names, values = named_inputs(run, model.kind, inputs, flags, context.obj)
    if model.kind == "image":
        names, values, bad = readable(names, values, on_bad)
        for line in bad:
            streams.complain(f"no prediction for {line}")
    predictions = model.predict(values, sets=extras.sets)
    if out is None:
        write_predictions(streams.output(), names, predictions, as_json, not no_escape)
    else:
        save_predictions(out, names, predictions, as_json, not no_escape)


def export(
    run: RunFolder,
    to: Annotated[str, plugin_option("exports", "Format")],
    out: Annotated[Path | None, typer.Option(help="The folder to make; default: RUN/exports/FORMAT.")] = None,
    calibrated: Calibrated = False,
    int8: Annotated[
        bool, typer.Option("--int8", help="ONNX: add a copy with 8-bit weights, and measure what it costs.")
    ] = False,
    rows: Annotated[int, typer.Option(help="Rows to compare, at most.")] = 2000,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Write the model for other programs, with a model card; a fresh process checks it first."""
    from ..io.json_files import plain
    from ..publish.export import export as export_run
    from ..publish.export import in_words

    say = unless(quiet or as_json)
    exported = export_run(run, to, out, calibrated=calibrated, int8=int8, rows=rows, say=say)
    print_result(plain(exported), lambda: in_words(exported), as_json)


@takes_record("endpoint", Endpoint, "host", "port", "token", "allow_host")
@takes_record("limits", Limits, "batch", "wait_ms", "queue", "seconds", "megabytes")
@takes_flags(device="cpu")
def serve(
    run: Annotated[Path, typer.Argument(help="A run folder, or an export of it as a bundle.")],
    endpoint: Endpoint,
    limits: Limits,
    flags: dict[str, Any],
    as_json: AsJson = False,
) -> None:
    """Serve a page to try the model on, and POST /predict for programs; by default on 127.0.0.1."""
    try:
        from ..serving.server import serve as serve_run
    except ModuleNotFoundError as error:
        text = f'regraft serve needs {error.name}: pip install "regraft[serve]"'
        raise UsageError(text) from error
    serve_run(
        run, endpoint, limits, device=flags["device"], say=streams.echo, complain=streams.complain, as_json=as_json
    )


COMMANDS = {"ui": ui, "predict": predict, "export": export, "serve": serve}
