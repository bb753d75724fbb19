"""The ranges of [tune]: read strictly, and tried in the plan before anything trains."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from regraft.errors import PlanError
from regraft.plan.ranges import Choices, Range, with_values
from regraft.plan.read import check, ranges_of, read_plan, refuse_ranges
from regraft.plan.write import write_plan

BASE: dict[str, Any] = {"source": {"ref": "timm:resnet18"}, "data": {"path": "flowers"}}


def plan(ranges: dict[str, Any], **sections: Any) -> Any:
    return check({**BASE, **sections, "tune": {"ranges": ranges}})


def problems(ranges: dict[str, Any], **sections: Any) -> tuple[str, ...]:
    with pytest.raises(PlanError) as error:
        plan(ranges, **sections)
    return error.value.problems


def test_ranges_are_whole_where_their_key_is() -> None:
    found = ranges_of(
        plan(
            {
                "fit.lr": {"low": 1e-5, "high": 1e-3, "log": True},
                "fit.epochs": {"low": 2, "high": 12, "step": 2},
                "fit.start": ["probe", "random"],
                "fit.warmup": {"low": 0, "high": 0.5},
                "regularizers.l2_sp.alpha": {"low": 1, "high": 3},
            }
        )
    )
    assert found["fit.epochs"] == Range(2, 12, 2) and isinstance(found["fit.epochs"].low, int)
    assert found["fit.start"] == Choices(("probe", "random"))
    alpha = found["regularizers.l2_sp.alpha"]  # a key of real numbers: 1.5 lies between 1 and 3
    assert isinstance(alpha, Range) and not alpha.whole


@pytest.mark.parametrize(
    ("key", "given", "words"),
    [
        ("fit.lrr", {"low": 1e-5, "high": 1e-3}, 'did you mean "lr"?'),
        ("fit.lr", {"low": 1e-5, "hihg": 1e-3, "high": 1.0}, 'did you mean "high"?'),
        ("fit.lr", {"low": -1.0, "high": 1e-3}, "-1.0 is refused"),
        ("fit.warmup", {"low": 0.0, "high": 1.5}, "1.5 is refused"),
        ("fit.epochs", {"low": 0, "high": 4}, "0 is refused"),
        ("fit.epochs", {"low": 1.5, "high": 4.0}, "1.5 is refused"),
        ("fit.epochs", {"low": 1, "high": 4, "step": 2}, "whole steps of 2"),
        ("fit.lr", {"low": 1e-3, "high": 1e-3}, "below high"),
        ("fit.warmup", {"low": 0.0, "high": 0.5, "log": True}, "above 0"),
        ("fit.lr", {"low": 0.1, "high": 0.5, "log": True, "step": 0.1}, "do not go together"),
        ("fit.lr", {"low": 0.1, "high": 0.5, "step": 0.0}, "step must be above 0"),
        ("fit.start", ["probe", "rand"], '"rand" is refused'),
        ("fit.start", ["probe"], "two choices"),
        ("fit.start", ["probe", "probe"], "twice"),
        ("fit.start", [["probe"], ["random"]], "choices are texts"),
        ("fit.lr", 0.1, "low = …"),
        ("fit", {"low": 1, "high": 2}, "with its table"),
        ("regularizers.l2_spp.alpha", {"low": 0.1, "high": 1.0}, "l2_spp"),
        ("run.seed", {"low": 0, "high": 9}, "luck"),
        ("data.val", {"low": 0.1, "high": 0.3}, "different rows"),
        ("task.primary", ["accuracy", "macro_f1"], "different metrics"),
        ("fit.lr.x", {"low": 0.1, "high": 1.0}, "fit.lr"),
    ],
)
def test_a_bad_range_is_named(key: str, given: Any, words: str) -> None:
    found = problems({key: given})
    assert any(p.startswith(f"tune.ranges.{key}") and words in p for p in found), found


def test_keys_of_tune_are_strict(tmp_path: Path) -> None:
    for values, words in (
        ({"trails": 3}, 'tune.trails: unknown key; did you mean "trials"?'),
        ({"trials": 0}, "tune.trials"),
        ({"sampler": "grid"}, "tune.sampler"),
        ({"pruner": "median"}, "tune.pruner"),
        ({"seed": -1}, "tune.seed"),
    ):
        with pytest.raises(PlanError) as error:
            check({**BASE, "tune": values})
        assert any(p.startswith(words) for p in error.value.problems)
    file = tmp_path / "plan.toml"
    file.write_text(
        '[source]\nref = "timm:a"\n[data]\npath = "x"\n[tune.ranges]\n"fit.lr" = { low = 1.0, high = 2.0 }\n'
        '"fit.epochs" = { low = 0, high = 2 }\n'
    )
    with pytest.raises(PlanError, match=r"line 7 +tune\.ranges\.fit\.epochs: 0 is refused"):
        read_plan(file, {})


def test_values_that_do_not_go_together_are_refused() -> None:
    """l2_sp pulls to the source and weight decay to zero, wherever either is above 0."""
    found = problems(
        {"regularizers.l2_sp.alpha": {"low": 0.1, "high": 1.0}, "fit.weight_decay": {"low": 0.01, "high": 0.1}}
    )
    assert all("together" in p and "pulls" in p for p in found)


def test_a_plan_with_ranges_is_written_and_read_back() -> None:
    made = plan({"fit.lr": {"low": 1e-5, "high": 1e-3, "log": True}, "fit.start": ["probe", "random"]})
    import tomllib

    text = write_plan(made)
    assert check(tomllib.loads(text)) == made
    assert "[tune]" not in write_plan(check(BASE))


def test_values_take_the_place_of_the_plans_and_ranges_go() -> None:
    tree = plan({"fit.lr": {"low": 1e-5, "high": 1e-3}}, fit={"lr": 0.5}).model_dump(exclude_none=True)
    new = with_values(tree, {"fit.lr": 1e-4, "regularizers.l2_sp.alpha": 0.2})
    assert check(new).fit.lr == 1e-4 and check(new).regularizers == {"l2_sp": {"alpha": 0.2}}
    assert "tune" not in new and tree["fit"]["lr"] == 0.5


def test_a_fit_refuses_a_plan_with_ranges(tmp_path: Path) -> None:
    from regraft.pipeline.run import run

    made = plan({"fit.lr": {"low": 1e-5, "high": 1e-3}}, run={"out": str(tmp_path / "run")})
    for refuse in (refuse_ranges, run):
        with pytest.raises(PlanError, match=r"fit\.lr.*regraft tune"):
            refuse(made)
    assert not (tmp_path / "run").exists()
    refuse_ranges(check(BASE))
