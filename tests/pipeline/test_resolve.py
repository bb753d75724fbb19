"""Defaults that depend on the rows: what a plan without values gets, and what a value of its own changes."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from regraft.pipeline.resolve import resolve
from regraft.plan.read import check


def settled(rows: int, *, kind: str = "text", one_class: bool = True, kept: bool = True, **tables: Any) -> Any:
    timed = {"layout": "contiguous", "precision": "float32", "feature_precision": "float32"}
    plan = check({"source": {"ref": "x"}, "data": {"path": "x"}, "run": timed, **tables})
    source: Any = SimpleNamespace(kind=kind, nothing_kept=not kept)
    return resolve(plan, source, rows, has_val=True, one_class=one_class)


@pytest.mark.parametrize(("rows", "epochs"), [(80, 10), (160, 10), (400, 6), (999, 5)])
def test_few_texts_start_from_a_soft_head(rows, epochs):
    plan, reasons = settled(rows)
    fit = plan.fit
    assert (fit.start, fit.sharpness, fit.epochs) == ("soft", 0, epochs)
    assert fit.head_lr == pytest.approx(10 * fit.lr)
    assert "few texts" in reasons["fit.start"]


@pytest.mark.parametrize(
    "other",
    [
        {"rows": 1000},
        {"kind": "image"},
        {"kind": "tensor"},
        {"one_class": False},
        {"freezing": {"name": "head_only"}},
        {"regularizers": {"delta": {"attention": True}}},
    ],
)
def test_all_else_starts_from_the_probe(other):
    fit = settled(**({"rows": 80} | other))[0].fit
    assert fit.start == "probe" and fit.head_lr == fit.lr


def test_a_start_of_ones_own_has_the_settings_that_go_with_it():
    probe = settled(80, fit={"start": "probe"})[0].fit
    assert (probe.start, probe.sharpness, probe.epochs) == ("probe", 0.1, 8)  # ten rows a batch, eight steps an epoch
    own = settled(80, fit={"epochs": 3, "sharpness": 0.05, "head_lr": 1e-4})[0].fit
    assert (own.start, own.sharpness, own.epochs, own.head_lr) == ("soft", 0.05, 3, 1e-4)
    random = settled(2000, kind="image", fit={"start": "random"})[0].fit
    assert random.head_lr == pytest.approx(10 * random.lr)


def test_a_source_without_weights_starts_as_before():
    fit = settled(80, kept=False)[0].fit
    assert fit.start == "probe" and fit.head_lr == fit.lr == fit.scratch_lr
