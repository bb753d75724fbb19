"""A whole result.json for tests, to be changed key by key."""

from __future__ import annotations

from typing import Any

from regraft.runs import records
from regraft.runs.result import Result


def estimate(value: float | None = 0.5, n: int = 60, half: float = 0.1) -> dict[str, Any]:
    """Return a figure with an interval of ``half`` to each side; undefined for None."""
    low, high = (None, None) if value is None else (value - half, value + half)
    return {"value": value, "low": low, "high": high, "n": n}


def seed(number: int = 0, alpha: float = 1.0, **changes: Any) -> dict[str, Any]:
    """Return an entry of ``seeds``."""
    figures = {"accuracy": 0.7}
    return {
        "seed": number,
        "best_epoch": 2,
        "epochs": 2,
        "alpha": alpha,
        "val": figures,
        "test": figures,
        "test at alpha 1": figures,
        "scratch": None,
    } | changes


def source_retention(**changes: Any) -> dict[str, Any]:
    """Return ``retention`` of a run with source data."""
    return {
        "kind": "source data",
        "metric": "accuracy",
        "before": estimate(0.9, 50),
        "after": estimate(0.8, 50),
        "forgetting": estimate(0.1, 50),
        "forgetting over seeds": None,
        "chance": 0.1,
        "ratio": 0.9,
        "low": 0.8,
        "claim": False,
        "claim from": 200,
        "seeds": [{"after": 0.8, "ratio": 0.9}],
        "most forgotten": [],
    } | changes


def calibration(**changes: Any) -> dict[str, Any]:
    """Return ``calibration`` of a run with classes and val."""
    bins = [{"confidence": 0.4, "accuracy": 0.5, "rows": 30}, {"confidence": 0.9, "accuracy": 0.8, "rows": 30}]
    return {
        "temperature": 1.5,
        "fitted_on": 30,
        "fitted_by": "val",
        "before": {"ece": estimate(0.1), "log_loss": estimate(1.0)},
        "after": {"ece": estimate(0.05), "log_loss": estimate(0.9)},
        "gain": {"ece": estimate(0.05), "log_loss": estimate(0.1)},
        "reliability": {"before": bins, "after": bins},
    } | changes


def sets(**changes: Any) -> dict[str, Any]:
    """Return ``sets`` of a run with classes and val."""
    return {
        "coverage": 0.9,
        "rows": 30,
        "least_rows": 9,
        "temperature": 1.5,
        "least_probability": 0.125,
        "half_widths": None,
        "by": "val",
        "grouped": False,
        "law": estimate(0.9, 30, 0.08),
        "test": estimate(0.9, half=0.05),
        "size": estimate(1.25),
        "empty": estimate(0.0),
    } | changes


def abstention(**changes: Any) -> dict[str, Any]:
    """Return ``abstention`` of a run with classes and val."""
    points = [(0.99, 0.25, 0.0), (0.8, 0.5, 0.05), (0.4, 1.0, 0.2)]
    return {
        "max_error": 0.05,
        "temperature": 1.5,
        "threshold": 0.875,
        "rows": 200,
        "by": "val",
        "grouped": False,
        "least_rows": 59,
        "accepted_rows": 93,
        "errors": 1,
        "why": "",
        "accepted": estimate(0.5),
        "error": estimate(0.1, 30),
        "curve": [{"confidence": c, "accepted": a, "error": e} for c, a, e in points],
    } | changes


def slices(**changes: Any) -> dict[str, Any]:
    """Return ``slices`` of a run with a column of three values, of which one is worse, and rarer ones."""
    metrics = {"accuracy": estimate(0.7), "macro_f1": estimate(0.6)}
    values = [
        {"value": value, "n": 18, "metrics": metrics, "difference": difference, "worse": value == "night"}
        for value, difference in (("night", estimate(-0.3)), ("", estimate(0.0)), ("day", None))
    ]
    few = {"values": 2, "n": 6, "metrics": metrics}
    return {
        "primary": "accuracy",
        "comparisons": 2,
        "min_rows": 10,
        "columns": [{"column": "hour", "values": values, "few": few}],
    } | changes


def result(**changes: Any) -> dict[str, Any]:
    """Return the result of one seed with val, without scratch, frontier, retention, calibration and sets."""
    return {
        "schema": 1,
        "task": "classification",
        "targets": "class",
        "classes": ["ant", "bee"],
        "primary": "accuracy",
        "summary_metrics": ["accuracy", "macro_f1"],
        "rows": {"train": 90, "val": 30, "test": 60},
        "test": {"accuracy": estimate(0.7), "macro_f1": estimate(0.6)},
        "val": {"accuracy": estimate(0.7)},
        "controls": {},
        "gain": {},
        "gains_over_seeds": ["scratch"],
        "verdict": {"words": "not measured", "gain": None, "seeds": 0, "why": "no scratch"},
        "looks": None,
        "test_opened": 1,
        "seeds": [seed()],
        "mean": {},
        "val_controls": {},
        "cross_validation": {},
        "frontier": None,
        "retention": None,
        "calibration": None,
        "sets": None,
        "abstention": None,
        "fit": {
            "best_epoch": 2,
            "epochs": 2,
            "steps": 10,
            "best": {"accuracy": 0.7, "loss": 1.0},
            "start": {"accuracy": 0.6, "loss": 1.1},
            "stopped": "all epochs done",
            "fitted": True,
        },
        "probe": None,
        "scratch": None,
        "confusion": None,
        "slices": None,
        "source": {
            "name": "timm:resnet18",
            "digest": "0" * 64,
            "licence": "mit",
            "features": 512,
            "tensors": {"kept": 4, "fresh": 1, "resized": 0, "unused": 0},
            "fresh": ["head.weight"],
            "unused": [],
            "nothing_kept": False,
        },
        "blocks": [],
        "notes": [],
        "resumed": [],
        "timing": {"fit": 3.0, "total": 4.0},
        "status": "finished",
    } | changes


def older(**changes: Any) -> dict[str, Any]:
    """Return the result of a run from before: without every key that came later."""
    found = result(**changes)
    later = ("targets", "summary_metrics", "val_controls", "probe", "scratch", "blocks", "notes", "resumed")
    further = ("sets", "abstention", "cross_validation", "looks", "slices")
    for key in (*later, *further, "retention", "frontier", "calibration"):
        found.pop(key)
    del found["seeds"][0]["alpha"], found["seeds"][0]["test at alpha 1"]
    return found


def parsed(**changes: Any) -> Result:
    """Return the same as readers have it."""
    return records.checked(Result, result(**changes))
