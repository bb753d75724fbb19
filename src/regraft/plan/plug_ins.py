"""Plug-ins that a plan names, made from its tables."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .. import plugins
from ..regularizers import Regularizer
from ..tasks import DEFAULT_TASK

if TYPE_CHECKING:
    from ..freezing import Freezing

Problem = tuple[str, str]  # dotted key, text


@dataclass(frozen=True)
class PlugIns:
    """The objects that ``[task]``, ``[freezing]`` and ``[regularizers.NAME]`` name."""

    task: Any  # options of a file of tasks/, which make the task from the training labels
    freezing: Freezing
    regularizers: dict[str, Regularizer]

    @property
    def pulling(self) -> list[str]:
        """Return the names of the penalties that pull weights to their source values, sorted."""
        return sorted(name for name, r in self.regularizers.items() if r.pulls_to_source)


def make_plugins(tree: Mapping[str, Any], *, allow_code: bool) -> tuple[PlugIns, list[Problem]]:
    """Make the plug-ins of a plan's tables; return them, less those with a problem, and every problem."""
    problems: list[Problem] = []
    made: dict[str, Any] = {}
    for folder, key, name, values in plugin_tables(tree):
        try:
            cls = plugins.options_class(folder, name, allow_code=allow_code)
        except LookupError as error:
            problems.append((key, f"{key}: {error}"))
            continue
        plugin, found = plugins.make(cls, values, key)
        problems += [(text.split(":")[0], text) for text in found]
        if folder == "regularizers" and not found and not isinstance(plugin, Regularizer):
            text = f"{key}: {cls.__name__} is no penalty: inherit regraft.regularizers.Regularizer"
            problems.append((key, text))
        elif not found:
            made[key] = plugin
    task, freezing = made.pop("task", None), made.pop("freezing", None)
    return PlugIns(task, freezing, {key.partition(".")[2]: r for key, r in made.items()}), problems


def plugin_tables(tree: Mapping[str, Any]) -> Iterable[tuple[str, str, str, dict[str, Any]]]:
    """Yield (folder, dotted key, plug-in name, its options) of every plug-in that a plan names."""
    for key, folder, default in (("task", "tasks", DEFAULT_TASK), ("freezing", "freezing", "everything")):
        table = tree.get(key, {})
        if isinstance(table, dict):
            options = {k: v for k, v in table.items() if k != "name"}
            yield folder, key, str(table.get("name", default)), options
    tables = tree.get("regularizers", {})
    if isinstance(tables, dict):
        for name, options in tables.items():
            if isinstance(options, dict):
                yield "regularizers", f"regularizers.{name}", name, options
