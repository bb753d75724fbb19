"""The schemas of a run's model folder: labels.json and config.json.

Each task restores itself from labels.json, and each source builds its network from the recipe in config.json.
What only one of them has is checked there, or here by the task's STATES entry.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from .records import Name, Number, Record, Share, Text, need

SCHEMA = 1  # of config.json

Classes = Annotated[list[Text], Field(max_length=1_000_000)]


class TaskState(Record):
    """The contents of labels.json, and ``task`` of config.json; a task adds its own keys."""

    task: Name  # a file of tasks/
    classes: Classes = Field(min_length=1)
    primary: Name  # metric that choices are made by


class ClassificationState(TaskState):
    label_smoothing: Annotated[float, Field(ge=0, lt=1)]
    weights: list[Number] | None

    @model_validator(mode="after")
    def _weighs_each_class(self) -> ClassificationState:
        weighed = self.weights is None or len(self.weights) == len(self.classes)
        need(weighed, "weights are not one for each class")
        return self


class MultiLabelState(TaskState):
    threshold: Share
    separator: Annotated[str, Field(min_length=1, max_length=100)]
    one_column: bool


class RegressionState(TaskState):
    loss: Literal["mse", "huber", "l1"]
    huber_delta: Annotated[float, Field(gt=0, le=1e100)]
    mean: list[Number]
    std: list[Annotated[float, Field(gt=0, le=1e100)]]

    @model_validator(mode="after")
    def _scales_each_number(self) -> RegressionState:
        sizes = {len(self.classes), len(self.mean), len(self.std)}
        need(len(sizes) == 1, "mean and std are not one for each number")
        return self


STATES: dict[str, type[TaskState]] = {
    "classification": ClassificationState,
    "multilabel": MultiLabelState,
    "regression": RegressionState,
}


class ConfigTask(Record):
    """``task`` of config.json."""

    task: Name  # a file of tasks/
    classes: Classes = Field([])


class ModelConfig(Record):
    """The contents of model/config.json. Its source builds the recipe, and refuses what it does not know."""

    schema_: Annotated[int, Field(ge=1, le=1, alias="schema")]  # 1, and not true
    recipe: dict[str, Any]  # what the source builds the network from
    task: ConfigTask
