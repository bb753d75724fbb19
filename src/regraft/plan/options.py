"""Options of data, source and plug-ins, made from a plan."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import plugins
from ..data.types import DataOptions
from ..errors import PlanError
from ..model.types import SourceOptions
from ..regularizers import Regularizer
from ..tasks import DEFAULT_TASK

if TYPE_CHECKING:
    from .schema import DataPlan, Plan, SourceDataPlan


# ---------------------------------------------------------------- what the machinery receives


def checkpoint_every(plan: Plan) -> tuple[int, float]:
    """(steps, seconds) between two checkpoints; one of them is 0."""
    every = plan.run.checkpoint_every
    return (every, 0.0) if isinstance(every, int) else (0, 60 * float(every.split()[0]))


def data_options(plan: Plan) -> DataOptions:
    return options_of(plan.data)


def source_data_options(plan: Plan) -> DataOptions:
    return options_of(plan.source_data)


def options_of(d: DataPlan | SourceDataPlan) -> DataOptions:
    return DataOptions(
        **{
            **d.model_dump(exclude={"classes", "each_epoch"}),
            "path": Path(d.path),
            "image_root": Path(d.image_root) if d.image_root else None,
            "text": tuple(d.text),
            "label": tuple(d.label),
        }
    )


def source_options(plan: Plan) -> SourceOptions:
    s = plan.source.model_dump(exclude={"ref"})
    s["weights"] = Path(s["weights"]) if s["weights"] else None
    s["allow_fresh"] = tuple(s["allow_fresh"])
    return SourceOptions(**s)


def task_options(plan: Plan, *, allow_code: bool = False) -> Any:
    name, options = plan.task.get("name", DEFAULT_TASK), dict(plan.task)
    options.pop("name", None)
    return made("tasks", name, options, "task", allow_code)


def freezing(plan: Plan, *, allow_code: bool = False) -> Any:
    name, options = plan.freezing.get("name", "everything"), dict(plan.freezing)
    options.pop("name", None)
    return made("freezing", name, options, "freezing", allow_code)


def regularizers(plan: Plan, *, allow_code: bool = False) -> dict[str, Regularizer]:
    return {
        name: made("regularizers", name, options, f"regularizers.{name}", allow_code)
        for name, options in plan.regularizers.items()
    }


def made(folder: str, name: str, options: dict[str, Any], key: str, allow_code: bool) -> Any:
    try:
        cls = plugins.options_class(folder, name, allow_code=allow_code)
    except LookupError as error:
        raise PlanError([f"{key}: {error}"]) from error
    value, problems = plugins.make(cls, options, key)
    if problems:
        raise PlanError(problems)
    return value
