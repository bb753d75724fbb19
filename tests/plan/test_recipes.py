"""Recipes lie beneath what a plan names, and a plan that was made with one stands without it."""

from __future__ import annotations

import os

import pytest

from regraft.errors import PlanError
from regraft.plan.read import check, plan_in, read_run_plan
from regraft.plan.recipes import FOLDER, SECTIONS, read_recipe, recipe_names
from regraft.plan.write import write_plan

BASE = {"source": {"ref": "bundled:all-minilm-l6-v2"}, "data": {"path": "texts"}}


@pytest.mark.parametrize("name", recipe_names())
def test_every_recipe_is_a_plan_and_says_what_it_is_for(name):
    recipe = read_recipe(name)
    assert recipe.about.endswith(".") and recipe.tree and set(recipe.tree) <= set(SECTIONS)
    plan = check({**BASE, "fit": {"recipe": name}})
    for section, values in recipe.tree.items():
        for key, value in values.items():
            own = getattr(plan, section)
            assert (own[key] if isinstance(own, dict) else getattr(own, key)) == value
            assert plan.reasons[f"{section}.{key}"] == f"recipe {name}"


def test_what_the_plan_names_beats_the_recipe(tmp_path):
    own = tmp_path / "mine.toml"
    own.write_text(
        "# Mine.\n[fit]\nepochs = 7\nclip_norm = 2.0\n[freezing]\nname = 'last_blocks'\nblocks = 3\n"
        "[regularizers.l2_sp]\nalpha = 0.5\n"
    )
    plan = check({**BASE, "fit": {"recipe": str(own), "epochs": 2}})
    assert (plan.fit.epochs, plan.fit.clip_norm) == (2, 2.0)
    assert plan.freezing == {"name": "last_blocks", "blocks": 3} and plan.regularizers == {"l2_sp": {"alpha": 0.5}}
    assert set(plan.reasons) == {"fit.clip_norm", "freezing.name", "freezing.blocks", "regularizers.l2_sp"}
    same = check({**BASE, "fit": {"recipe": str(own)}, "freezing": {"name": "last_blocks", "blocks": 2}})
    assert same.freezing == {"name": "last_blocks", "blocks": 2} and same.fit.epochs == 7
    with pytest.raises(PlanError, match="'last_blocks', and the plan 'head_only': remove one"):
        check({**BASE, "fit": {"recipe": str(own)}, "freezing": {"name": "head_only"}})
    assert check(BASE).reasons == {} and check(BASE).fit.epochs == "auto"


@pytest.mark.parametrize("name", recipe_names())
def test_a_recipe_decides_what_a_written_plan_leaves_to_auto(name):
    """A plan of ``regraft init`` writes every key."""
    written = write_plan(check(BASE))
    recipe = read_recipe(name)
    if recipe.tree.get("freezing", {"name": "everything"})["name"] != "everything":
        with pytest.raises(PlanError, match="and the plan 'everything': remove one of the two"):
            plan_in(written, "plan.toml", {"fit.recipe": name}, allow_code=False)
        return
    plan = plan_in(written, "plan.toml", {"fit.recipe": name}, allow_code=False)
    default = check(BASE)
    for key, value in recipe.tree["fit"].items():
        if getattr(default.fit, key) == "auto":
            assert getattr(plan.fit, key) == value and plan.reasons[f"fit.{key}"] == f"recipe {name}"


def test_a_recipe_that_decides_nothing_is_refused():
    values = read_recipe("soft").tree["fit"]
    with pytest.raises(PlanError, match="the plan sets every key of soft itself"):
        check({**BASE, "fit": {"recipe": "soft", **values}})


def test_a_plan_made_with_a_recipe_is_the_same_when_the_file_has_gone(tmp_path):
    own = tmp_path / "mine.toml"
    own.write_text("[fit]\nepochs = 7\n")
    plan = check({**BASE, "fit": {"recipe": str(own)}})
    own.unlink()
    again = plan_in(write_plan(plan, plan.reasons), "plan.toml", {}, allow_code=False)
    assert again.model_dump() == plan.model_dump() and again.fit.epochs == 7 and again.fit.recipe is None
    (line,) = (x for x in write_plan(plan, plan.reasons).splitlines() if x.startswith("epochs ="))
    assert line.split("#") == ["epochs = 7".ljust(36), f" recipe {own}"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[run]\nseeds = 3\n", r"sets run, but a recipe may set \[probe\], \[fit\]"),
        ("epochs = 3\n", "sets epochs, but"),
        ("[fit]\nrecipe = 'soft'\n", "sets fit.recipe, but"),
        ("[fit\n", "mine.toml: "),
        ("[fit]\nepoch = 3\n", 'fit.epoch: unknown key; did you mean "epochs"'),
        (None, "cannot be read"),
    ],
)
def test_a_recipe_that_cannot_be_used_is_refused_by_name(tmp_path, text, said):
    own = tmp_path / "mine.toml"
    if text is not None:
        own.write_text(text)
    with pytest.raises(PlanError, match=said):
        check({**BASE, "fit": {"recipe": str(own)}})


def test_a_run_of_another_cannot_name_a_file_to_read(tmp_path):
    """The plan of a run has values alone; a name would let a foreign folder choose what is opened."""
    (tmp_path / "plan.toml").write_text(write_plan(check(BASE)).replace("[fit]", '[fit]\nrecipe = "/x/secret.toml"'))
    with pytest.raises(PlanError, match="a recipe's values and names none"):
        read_run_plan(tmp_path)


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "mine.toml")
    with pytest.raises(PlanError, match="it is no file"):
        check({**BASE, "fit": {"recipe": str(tmp_path / "mine.toml")}})


def test_an_unknown_recipe_is_refused_with_the_nearest():
    with pytest.raises(PlanError, match='no recipe "sofd"; did you mean "soft"'):
        check({**BASE, "fit": {"recipe": "sofd"}})
    assert FOLDER.is_dir()


def test_recipes_are_searched_as_any_key_is():
    from regraft.commands.search.tune import plan_of
    from regraft.plan.read import ranges_of

    plan = check({**BASE, "fit": {"lr": 1e-4}, "tune": {"ranges": {"fit.recipe": ["probe", "soft"]}}})
    assert ranges_of(plan)["fit.recipe"].ends == ("probe", "soft")
    soft, probe = (plan_of(plan, {"fit.recipe": name}) for name in ("soft", "probe"))
    assert (soft.fit.epochs, soft.fit.start, soft.fit.lr) == (10, "soft", 1e-4)
    assert (probe.fit.alpha, probe.freezing["name"], probe.fit.lr) == (0.0, "head_only", 1e-4)
    with pytest.raises(PlanError, match="remove one of the two"):
        check({**BASE, "fit": {"recipe": "probe"}, "tune": {"ranges": {"fit.recipe": ["sharp", "soft"]}}})
