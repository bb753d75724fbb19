"""The schemas of a run's model folder: labels.json and config.json.

Each task restores itself from labels.json, and each source builds its network from the recipe in config.json.
The files of tasks/ and sources/ check the keys that only they have.
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field

from .records import Name, Record, Text

SCHEMA = 1  # of config.json

Classes = Annotated[list[Text], Field(max_length=1_000_000)]


class TaskState(Record):
    """The contents of labels.json, and ``task`` of config.json; a task adds its own keys."""

    task: Name  # a file of tasks/
    classes: Classes = Field(min_length=1)
    primary: Name  # metric that choices are made by
    metrics: list[Name] = Field([], max_length=100)  # files of metrics/ beside the task's own


class ConfigTask(Record):
    """``task`` of config.json."""

    task: Name  # a file of tasks/
    classes: Classes = Field([])


class ModelConfig(Record):
    """The contents of model/config.json. Its source builds the recipe, and refuses what it does not know."""

    schema_: Annotated[int, Field(ge=1, le=1, alias="schema")]  # 1, and not true
    recipe: dict[str, Any]  # what the source builds the network from
    task: ConfigTask
