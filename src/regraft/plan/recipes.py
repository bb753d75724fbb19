"""Recipes: named overlays of a plan, one TOML file each in recipes/, or a file of the user's own.

A recipe sets the keys that the plan leaves out or to "auto". The first comment of its file says what the recipe is for.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import PlanError, did_you_mean, printable
from ..io import guarded

FOLDER = Path(__file__).parents[1] / "recipes"

SECTIONS = ("probe", "fit", "augment", "freezing", "regularizers")  # that a recipe may set


@dataclass(frozen=True)
class Recipe:
    """A named overlay of a plan."""

    name: str
    about: str  # the first comment of its file
    tree: dict[str, Any]  # plain values by section and key


def recipe_names() -> list[str]:
    """Return the names of the recipes that regraft brings, sorted."""
    return sorted(path.stem for path in FOLDER.glob("*.toml"))


def read_recipe(name: str) -> Recipe:
    """Return the recipe of a name, or of a TOML file that ends in ".toml".

    Raises PlanError for a recipe that no name or file gives, that cannot be read, or that sets what a recipe may not.
    """
    own = name.endswith(".toml")
    if not own and name not in recipe_names():
        known = did_you_mean(name, recipe_names())
        raise PlanError(
            [f'fit.recipe: there is no recipe "{printable(name)}"; {known}; or name a file that ends in .toml']
        )
    path = Path(name) if own else FOLDER / f"{name}.toml"
    if not path.is_file():
        raise PlanError([f"fit.recipe: {path} cannot be read: it is no file"])
    try:
        text = path.read_text(encoding="utf-8")
        tree = guarded.parse_toml(text)
    except OSError as error:
        raise PlanError([f"fit.recipe: {path} cannot be read: {error.strerror or error}"]) from error
    except ValueError as error:  # also of bytes that are no UTF-8
        raise PlanError([f"fit.recipe: {path}: {printable(str(error))}"]) from error
    wrong = [key for key, value in tree.items() if key not in SECTIONS or not isinstance(value, dict)]
    wrong += ["fit.recipe"] if isinstance(tree.get("fit"), dict) and "recipe" in tree["fit"] else []
    if wrong:
        may = ", ".join(f"[{s}]" for s in SECTIONS)
        raise PlanError([f"fit.recipe: {path} sets {', '.join(wrong)}, but a recipe may set {may} alone: remove it"])
    comments = [line.lstrip("# ").strip() for line in text.splitlines() if line.startswith("#")]
    return Recipe(name, comments[0] if comments else "", tree)


def overlay(tree: Mapping[str, Any], recipe: Recipe) -> tuple[dict[str, Any], dict[str, str]]:
    """Return a plan's plain values with a recipe's for its open keys, and "recipe NAME" for each of these keys.

    A key is open if the plan leaves it out or sets it to "auto". Raises PlanError where the plan names another freezing
    strategy than the recipe, and where the plan sets every key of the recipe itself.
    """
    merged = {**tree}
    reasons: dict[str, str] = {}
    for section, values in recipe.tree.items():
        own = merged.get(section, {})
        if not isinstance(own, dict):
            return merged, {}  # the schema says what is wrong
        names = own.get("name"), values.get("name")
        if section == "freezing" and None not in names and names[0] != names[1]:
            said = f"{recipe.name} sets freezing.name = {names[1]!r}, and the plan {names[0]!r}"
            raise PlanError([f"fit.recipe: {said}: remove one of the two"])
        taken = {key: value for key, value in values.items() if own.get(key, "auto") == "auto"}
        merged[section] = {**own, **taken}
        reasons |= {f"{section}.{key}": f"recipe {recipe.name}" for key in taken}
    if recipe.tree and not reasons:
        raise PlanError([f"fit.recipe: the plan sets every key of {recipe.name} itself: remove fit.recipe or the keys"])
    return merged, reasons
