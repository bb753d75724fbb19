"""The schemas of a run's model folder: labels.json and config.json.

Each task restores itself from labels.json, and states the types of its own keys. Each source builds its network
from the recipe in config.json, and checks it.
"""

from __future__ import annotations

from types import ModuleType
from typing import Annotated, Any

from pydantic import AfterValidator, Field, create_model, model_validator

from .. import plugins
from .records import Name, Record, Text, need

SCHEMA = 1  # of config.json


def task_name(name: str) -> str:
    """Return the name of a file of tasks/. Raises ValueError for a path or a dotted name."""
    need(name.isidentifier(), f'"{name[:40]}" is no name of a task')
    return name


TaskName = Annotated[Name, AfterValidator(task_name)]

Classes = Annotated[list[Text], Field(max_length=1_000_000)]


class TaskState(Record):
    """The contents of labels.json, and ``task`` of config.json; a task adds its own keys."""

    task: TaskName
    classes: Classes = Field(min_length=1)
    primary: Name  # metric that choices are made by
    metrics: list[Name] = Field([], max_length=1_000)  # further files of metrics/ that the run computed

    @model_validator(mode="after")
    def _has_known_metrics(self) -> TaskState:
        for name in self.metrics:
            need(name in plugins.names("metrics"), f'there is no metric "{name[:40]}"')
        return self


def state_of_task(module: ModuleType) -> type[TaskState]:
    """Return the schema of labels.json with the keys that a task's file adds in STATE."""
    own: dict[str, Any] = {key: (kind, ...) for key, kind in getattr(module, "STATE", {}).items()}
    return create_model("State", __base__=TaskState, **own)


class ConfigTask(Record):
    """``task`` of config.json."""

    task: TaskName
    classes: Classes = Field([])


class ModelConfig(Record):
    """The contents of model/config.json. Its source builds the recipe, and refuses what it does not know."""

    schema_: Annotated[int, Field(ge=1, le=1, alias="schema")]  # 1, and not true
    recipe: dict[str, Any]  # what the source builds the network from
    task: ConfigTask
