"""Results on standard output, and a place for progress lines that a flag silences."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..io import streams
from ..io.streams import Report


def unless(silent: bool, say: Report = streams.echo) -> Report:
    """Return ``say``, or a function that prints nothing."""
    return (lambda line: None) if silent else say


def print_result(record: Any, text: Callable[[], str], as_json: bool) -> None:
    """Print a record as JSON, or its text."""
    streams.echo(json.dumps(record, ensure_ascii=False) if as_json else text())


def print_run(path: Path, as_json: bool) -> None:
    """Print the result of a finished run: result.json, or its summary."""
    from ..runs.result import finished
    from ..runs.summary import summary

    result = finished(path)
    print_result(result.model_dump(), lambda: summary(path, result), as_json)
