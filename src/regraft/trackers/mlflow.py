"""MLflow: a run with its parameters, curves by epoch, the evidence at the end, and its files.

OUT is a folder (a file store) or an address that MLflow knows. ``sqlite:///runs.db`` needs SQLAlchemy, which
mlflow-skinny does not bring. ``http://…`` is a server of yours, the only way in which data leave this machine.
MLflow's telemetry is off. MLflow has deprecated file stores, so this file sets MLFLOW_ALLOW_FILE_STORE, and the
command that opens one sets it too.

Figures of the first seed have plain names; those of other seeds begin with "seed 1/".
"""

from __future__ import annotations

import os
import re
import shlex
import time
from collections.abc import Callable, Iterable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeVar

from ..errors import RegraftError, UsageError
from . import EpochFigures, RunEnd, as_code

T = TypeVar("T")

needs = ("mlflow",)

EXPERIMENT = "regraft"

STATUS = {"finished": "FINISHED", "failed": "FAILED", "broken": "FAILED"}

MAX_CHARACTERS, BATCH_SIZE = 6000, 100  # of a value; values in one request


def place() -> str:
    """Return where runs go without --out."""
    return os.environ.get("MLFLOW_TRACKING_URI") or "mlruns"


def track(
    name: str, params: Mapping[str, str], epochs: Iterable[EpochFigures], end: Callable[[], RunEnd], where: str
) -> str:
    """Write a run to MLflow as it goes on; return where it is.

    Raises UsageError for a database without SQLAlchemy, RegraftError for what MLflow refuses.
    """
    os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"  # MLflow reads it at import
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
        status = "KILLED"  # stays where an exception or a signal stops this
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
    """Write a run's parameters, epochs and end; return MLflow's status for the end."""
    from mlflow.entities import Metric, Param, RunTag

    def log(metrics: Mapping[str, float], step: int, before: str = "") -> None:
        now = int(time.time() * 1000)
        rows = [Metric(allowed(before + k), v, now, step) for k, v in metrics.items()]
        for some in chunks(rows):
            client.log_batch(run, metrics=some)

    for some in chunks([Param(allowed(k), v[:MAX_CHARACTERS]) for k, v in params.items()]):
        client.log_batch(run, params=some)
    first = None
    for line in epochs:
        first = line.seed if first is None else first
        log(line.figures, line.epoch, "" if line.seed == first else f"seed {line.seed}/")
    found = end()
    log(found.metrics, 0)
    tags = {**found.tags, "state": found.state, "mlflow.note.content": as_code(found.note)}
    for some in chunks([RunTag(k, v[:MAX_CHARACTERS]) for k, v in tags.items()]):
        client.log_batch(run, tags=some)
    for file in found.files:
        client.log_artifact(run, str(file))
    return STATUS.get(found.state, "KILLED")


def chunks(rows: list[T]) -> list[list[T]]:
    return [rows[i : i + BATCH_SIZE] for i in range(0, len(rows), BATCH_SIZE)]


def allowed(name: str) -> str:
    """Return a name of the characters that MLflow allows (letters, digits, _-. :/), without ".."."""
    return re.sub(r"[^\w\-. :/]", "_", name).replace("..", "__").strip("/") or "_"
