"""Commands that train: fit, verify-resume, rates, tune."""

from __future__ import annotations

import os
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated

import typer

from ..commands.search.options import TuneOptions
from ..errors import UsageError
from ..io import streams
from ..io.log import lines_to
from ..plan.schema import Plan
from .options import AsJson, PlanArguments, Quiet, takes_plan, takes_record
from .printing import print_result, print_run, unless

Resume = Annotated[bool, typer.Option("--resume", help="Continue an unfinished run; DATA may be its folder.")]
AcceptChanges = Annotated[
    bool, typer.Option("--accept-changes", help="Resume though data or plan changed, and record the changes.")
]


@takes_plan()
def fit(
    given: PlanArguments,
    resume: Resume = False,
    accept_changes: AcceptChanges = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Fine-tune a source on your data: DATA --source REF --out runs/NAME, or plan.toml."""
    from ..plan.read import refuse_ranges
    from ..runs.folder import status_of

    if accept_changes and not resume:
        raise UsageError("--accept-changes goes with --resume")
    if resume and given.flags["source"] is None and Path(given.data).suffix != ".toml":
        given = of_run(given)
    plan = given.plan()
    refuse_ranges(plan)
    if plan.run.out is None:
        raise UsageError("say where the run goes: --out runs/NAME")
    out, first = Path(plan.run.out), os.environ.get("RANK", "0") == "0"
    if resume and out.exists() and status_of(out) == "finished":
        if first:
            streams.complain(f"{out} is finished: nothing is left to do")
            print_run(out, as_json)
        return
    prepare_folder(plan, out, first=first and not (resume and out.exists()))
    from ..pipeline.run import RunOptions, run
    from ..training.signals import Interrupted
    from .bars import bars

    try:
        with bars(on=first and not quiet and not as_json) as track:
            path = run(plan, RunOptions(resume, accept_changes, track=track))
    except Interrupted as stop:
        if first:
            streams.complain(str(stop))
        raise typer.Exit(stop.exit_code) from None
    if first:
        print_run(path, as_json)


def of_run(given: PlanArguments) -> PlanArguments:
    """Return the arguments for a run folder that was given as DATA. Raises UsageError for one without a plan."""
    from ..io.guarded import check_folder
    from ..runs.folder import MADE_LATER

    run = Path(given.data)
    check_folder(run, leave=MADE_LATER)
    plan = run / "plan.toml"
    if not plan.is_file():
        raise UsageError(f"{plan} does not exist, so nothing says how to go on: give the plan")
    return replace(given, data=str(plan), flags={**given.flags, "out": run})


def prepare_folder(plan: Plan, out: Path, *, first: bool) -> None:
    """Refuse a folder that is taken, before torch is imported; then start further processes and end with them."""
    if first:
        from ..runs.folder import check_new

        check_new(out)
    launched = "WORLD_SIZE" in os.environ  # by torchrun, or by launch()
    if plan.run.processes not in ("auto", 1) and not launched:
        from ..commands.launch import launch

        raise SystemExit(launch(int(plan.run.processes), sys.argv[1:], out))


@takes_plan(but=("slice", "out"))
def verify_resume(
    given: PlanArguments,
    steps: Annotated[int, typer.Option(help="Steps before the kill.")] = 10,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Kill a short run, resume it and compare it bit for bit with an uninterrupted one; keep nothing."""
    from ..commands.verify_resume import verify

    plan = given.plan()
    with lines_to(unless(quiet or as_json, streams.complain)):
        comparison = verify(plan, steps)
    print_result(asdict(comparison), lambda: str(comparison), as_json)
    if comparison.differ:
        raise typer.Exit(1)


@takes_plan(but=("out", "seeds", "retain", "controls", "slice", "nproc"))
def rates(
    given: PlanArguments,
    steps: Annotated[int, typer.Option(help="Steps with growing rates.")] = 100,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Run a learning-rate range test: at which rates does training diverge? Keep nothing that it trains."""
    plan = given.plan()
    from ..commands.rates import format_range_test, run_range_test

    with lines_to(unless(quiet or as_json), progress=False):
        sweep = run_range_test(plan, steps)
    print_result(asdict(sweep), lambda: format_range_test(sweep), as_json)


@takes_plan(but=("slice", "nproc"))
@takes_record("options", TuneOptions, "study", "name", "wait", "heartbeat", "fit")
def tune(
    given: PlanArguments,
    options: TuneOptions,
    trials: Annotated[
        int | None, typer.Option(help="Trials of the study, by all workers; default: the plan's.")
    ] = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Search over the ranges in the plan's table tune.ranges, on val or folds; test stays closed.

    Workers on several machines share a study by the same --study and --name. An interrupted search goes on with the
    same command.
    """
    if trials is not None:
        given = replace(given, settings=[*given.settings, f"tune.trials={trials}"])
    plan = given.plan()
    try:
        from ..commands.search.leaderboard import as_text, record
        from ..commands.search.tune import tune as search
    except ModuleNotFoundError as error:
        raise UsageError(f'regraft tune needs {error.name}: pip install "regraft[tune]"') from error
    from ..training.signals import Interrupted

    try:
        with lines_to(unless(quiet or as_json, streams.complain), progress=False):
            board = search(plan, options)
    except Interrupted as stop:
        streams.complain(str(stop))
        raise typer.Exit(stop.exit_code) from None
    print_result(record(board), lambda: as_text(board), as_json)


COMMANDS = {"fit": fit, "verify-resume": verify_resume, "rates": rates, "tune": tune}
