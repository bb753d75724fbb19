"""MLflow: a run with its parameters, curves by epoch, the evidence at the end, and its files.

OUT is a folder (a file store), or any address that MLflow knows: ``sqlite:///runs.db`` (for which
SQLAlchemy is needed, which mlflow-skinny does not bring) or ``http://…`` (a server of yours: the one way
in which anything leaves this machine). MLflow's own telemetry is switched off. It has set file stores
to rest: they work where MLFLOW_ALLOW_FILE_STORE says so, which is set here, and is needed again to look
at one.

The first seed's figures have their plain names, those of others "seed 1/…" before them.
"""

from __future__ import annotations

import os
import re
import shlex
import time
from collections.abc import Callable, Iterable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from ..errors import RegraftError, UsageError

if TYPE_CHECKING:
    from . import EpochFigures, RunEnd


T = TypeVar("T")

needs = ("mlflow",)

EXPERIMENT = "regraft"

STATUS = {"finished": "FINISHED", "failed": "FAILED", "broken": "FAILED"}

LONGEST, AT_ONCE = 6000, 100  # characters of a value, and values that are sent together


def place() -> str:
    """Return where runs go without --out."""
    return os.environ.get("MLFLOW_TRACKING_URI") or "mlruns"


def track(
    name: str, params: Mapping[str, str], epochs: Iterable[EpochFigures], end: Callable[[], RunEnd], where: str
) -> str:
    """Raises UsageError for a database without SQLAlchemy, RegraftError for what MLflow refuses."""
    os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"  # it is read at import
    local = "://" not in where
    uri = Path(where).resolve().as_uri() if local else where
    if uri.startswith("file:"):
        os.environ["MLFLOW_ALLOW_FILE_STORE"] = "true"
    elif not uri.startswith(("http:", "https:")) and find_spec("sqlalchemy") is None:
        raise UsageError(
            f"{where} is a database, for which sqlalchemy is not installed here: pip install sqlalchemy "
            f"alembic, or give a folder"
        )
    from mlflow.exceptions import MlflowException
    from mlflow.tracking import MlflowClient

    try:
        client = MlflowClient(tracking_uri=uri)
        found = client.get_experiment_by_name(EXPERIMENT)
        experiment = found.experiment_id if found else client.create_experiment(EXPERIMENT)
        run = client.create_run(experiment, run_name=name).info.run_id
        status = "KILLED"  # what stops this in the middle leaves it so
        try:
            status = write(client, run, params, epochs, end)
        finally:
            client.set_terminated(run, status)
    except MlflowException as error:
        raise RegraftError(f"MLflow at {where} refuses: {str(error).splitlines()[0]}") from error
    how = f"MLFLOW_ALLOW_FILE_STORE=true mlflow ui --backend-store-uri {shlex.quote(uri)}" if local else "mlflow ui"
    return f'{name} is run {run} of "{EXPERIMENT}" in {where}; look at it with: {how}'


def write(
    client: Any, run: str, params: Mapping[str, str], epochs: Iterable[EpochFigures], end: Callable[[], RunEnd]
) -> str:
    """→ the status that MLflow has for how it ended."""
    from mlflow.entities import Metric, Param, RunTag

    def log(metrics: Mapping[str, float], step: int, before: str = "") -> None:
        now = int(time.time() * 1000)
        rows = [Metric(allowed(before + k), v, now, step) for k, v in metrics.items()]
        for some in chunks(rows):
            client.log_batch(run, metrics=some)

    for some in chunks([Param(allowed(k), v[:LONGEST]) for k, v in params.items()]):
        client.log_batch(run, params=some)
    first = None
    for line in epochs:
        first = line.seed if first is None else first
        log(line.figures, line.epoch, "" if line.seed == first else f"seed {line.seed}/")
    found = end()
    log(found.metrics, 0)
    tags = {**found.tags, "state": found.state, "mlflow.note.content": as_code(found)}
    for some in chunks([RunTag(k, v[:LONGEST]) for k, v in tags.items()]):
        client.log_batch(run, tags=some)
    for file in found.files:
        client.log_artifact(run, str(file))
    return STATUS.get(found.state, "KILLED")


def chunks(rows: list[T]) -> list[list[T]]:
    return [rows[i : i + AT_ONCE] for i in range(0, len(rows), AT_ONCE)]


def allowed(name: str) -> str:
    """Letters, digits and _-. :/ are what a name may be made of, and it may not climb."""
    return re.sub(r"[^\w\-. :/]", "_", name).replace("..", "__").strip("/") or "_"


def as_code(found: RunEnd) -> str:
    """The note of a run is Markdown; indented by four it is shown as it is."""
    return "\n".join(f"    {line}" for line in (found.summary or found.words).splitlines())
