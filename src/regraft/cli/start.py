"""Commands that look before a run: init, check, plan, choose, demo."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from ..errors import UsageError
from ..io import streams
from ..io.command_lines import command
from ..io.log import lines_to
from .options import AsJson, PlanArguments, Quiet, takes_flags, takes_plan
from .printing import print_result, unless

TRAINING = (
    "epochs",
    "batch_size",
    "lr",
    "head_lr",
    "optimizer",
    "freezing",
    "retain",
    "controls",
    "slice",
    "seed",
    "seeds",
    "out",
)  # flags that a look at the data does not need


@takes_flags("task", "image_root", "image", "text", "label")
def init(
    source: Annotated[str, typer.Argument(help="A source, as in --source.")],
    data: Annotated[str, typer.Argument(help="A folder or a table.")],
    flags: dict[str, Any],
    out: Annotated[Path, typer.Option(help="The file to write.")] = Path("plan.toml"),
) -> None:
    """Write plan.toml with every default and what it means."""
    from ..plan.write import write_plan

    if out.exists():
        raise UsageError(f"{out} exists and is not overwritten: choose another --out")
    run = str(Path("runs") / (Path(data.rstrip("/")).stem or "run"))
    given = PlanArguments(data, flags | {"source": source, "out": run}, [], allow_code=False)
    out.write_text(write_plan(given.plan()), encoding="utf-8")
    streams.echo(f"{out} written; next: {command('plan', out)}   ·   {command('fit', out)}")


@takes_plan(but=("on_bad", *TRAINING))
def check(
    given: PlanArguments,
    out: Annotated[Path | None, typer.Option(help="Write all findings to this file, as JSON.")] = None,
    as_json: AsJson = False,
) -> None:
    """Check data for bad files, duplicates and leaks across splits, class problems and probable label errors.

    With --source it also checks what the source makes of the data. It trains and changes nothing. Like a
    linter, it exits with 3 where it finds a problem, and with 0 where it finds only cautions and notes.
    """
    if out is not None and out.exists():
        raise UsageError(f"{out} exists and is not overwritten: choose another --out")
    plan = given.plan(needs_source=False)
    from ..commands.check import check as check_data
    from ..io.json_files import dumps
    from ..pipeline.findings import in_words

    with lines_to(unless(as_json, streams.complain)):
        report = check_data(plan)
    record = dumps(report.record(), indent=2)
    if out is not None:
        out.write_text(record + "\n", encoding="utf-8")
    streams.echo(record if as_json else in_words(report))
    if report.problems:
        raise typer.Exit(3)


@takes_plan(but=("out", "nproc"))
def plan(given: PlanArguments) -> None:
    """Print the blocks, learning rates, time and memory of a fit; train nothing."""
    from ..commands.estimate import show

    streams.echo(show(given.plan()))


@takes_plan(
    but=("source", "weights", "source_data", "freezing", "retain", "controls", "slice", "seeds", "nproc", "out")
)
def choose(
    given: PlanArguments,
    source: Annotated[
        list[str], typer.Option(metavar="REF", help="A source; give it twice or more. auto: installed or cached ones.")
    ] = [],  # noqa: B006
    most: Annotated[int, typer.Option(help="Sources that are probed; of more, the best by H-score.")] = 8,
    finetune: Annotated[int, typer.Option(help="Sources, the best by the probe, that are fine-tuned too.")] = 0,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Compare sources on your labelled rows, without test: which one suits these data?

    A linear probe on each source's features is cross-validated on the same folds, with paired differences.
    """
    if len(source) < 2 and "auto" not in source:
        raise UsageError("choose compares two sources or more: --source A --source B, or --source auto")
    plan = given.plan(needs_source=False)
    from ..commands.choose import choose as compare
    from ..io.json_files import plain

    with lines_to(unless(quiet or as_json)):
        choice = compare(plan, source, most=most, finetune=finetune)
    print_result(plain(choice), lambda: str(choice), as_json)


def demo(
    out: Annotated[Path, typer.Option(help="Folder for data and runs; it must not exist yet.")] = Path("runs/demo"),
    quiet: Quiet = False,
) -> None:
    """Run everything on data that ships inside packages: offline, two to three minutes."""
    from ..commands.demo import demo as run_demo
    from .bars import bars

    with bars(on=not quiet) as track:
        text = run_demo(out, track)
    streams.echo(text)


COMMANDS = {"init": init, "check": check, "plan": plan, "choose": choose, "demo": demo}
