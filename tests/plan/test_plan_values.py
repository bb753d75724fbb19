"""Values of a plan: finite numbers, and strings of any characters, also as keys."""

from __future__ import annotations

import tomllib

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from regraft.errors import PlanError
from regraft.plan.read import check
from regraft.plan.write import toml_value, write_plan

BASE = {"source": {"ref": "timm:resnet18"}, "data": {"path": "flowers"}}


@given(st.text(), st.text(min_size=1), st.floats(1e-300, 1e300))
@example("\x7f", "\x7f", 1.0)  # DEL: bare in JSON, not allowed in TOML, keys too
def test_a_plan_reads_back_whatever_its_strings_and_keys_hold(path, pattern, number):
    plan = check(
        {
            "source": {"ref": path, "allow_fresh": [pattern]},
            "data": {"path": path, "label": [pattern], "label_separator": pattern},
            "task": {"name": "multilabel", "separator": pattern},
            "fit": {"block_lr": {pattern: number}, "optimizer_options": {pattern: [number]}},
            "regularizers": {"l2": {"strength": number}},
            "run": {"out": path},
        }
    )
    assert check(tomllib.loads(write_plan(plan, {"fit.lr": "auto: because"}))) == plan


@pytest.mark.parametrize("text", ['"', "\\", "\n", "\x7f", "\x00", "\u2028", "'''", "#", "\U0001f600"])
def test_a_string_is_toml(text):
    assert tomllib.loads(f"x = {toml_value(text)}") == {"x": text}


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize(
    ("section", "values"),
    [
        ("fit", {"lr": 0}),
        ("fit", {"clip_norm": 0}),
        ("fit", {"optimizer_options": {"eps": 0}}),
        ("augment", {"mixup": 0}),
        ("augment", {"scale": [0.5, 0]}),
        ("regularizers", {"l2": {"strength": 0}}),
        ("task", {"label_smoothing": 0}),
    ],
)
def test_numbers_are_finite(section, values, bad):
    def put(x):
        if isinstance(x, dict):
            return {k: put(v) for k, v in x.items()}
        if isinstance(x, list):
            return [v or bad for v in x]
        return bad

    with pytest.raises(PlanError) as error:
        check({**BASE, section: put(values)})
    assert f"{section}.{next(iter(values))}" in str(error.value)
    assert "finite" in str(error.value)
