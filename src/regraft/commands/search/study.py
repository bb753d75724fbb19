"""A study: opened by a name, and about one plan on one data set. Its values are drawn key by key."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

import optuna
from optuna.exceptions import DuplicatedStudyError

from ...errors import StudyError
from .database import Storage, shown

if TYPE_CHECKING:
    from ...plan.ranges import Choices, Range

ABOUT = "regraft"  # the user attribute of a study that says what it is about


def open_study(
    storage: Storage, name: str, direction: Literal["minimize", "maximize"], about: Mapping[str, Any]
) -> optuna.Study:
    """Return the study of a name, made here or by another worker.

    Raises StudyError for a study that is about something else, as ``about`` says key by key.
    """
    about, where = json.loads(json.dumps(about)), f'the study "{name}" in {shown(storage.connector.url)}'
    try:
        study = optuna.create_study(storage=storage, study_name=name, direction=direction)
        study.set_user_attr(ABOUT, about)
    except DuplicatedStudyError:
        study = optuna.load_study(storage=storage, study_name=name)
    known = study.user_attrs.get(ABOUT)
    for _ in range(50):  # another worker is making it
        if known is not None or study.get_trials(deepcopy=False):
            break
        time.sleep(0.1)
        known = study.user_attrs.get(ABOUT)
    if known is None and not study.get_trials(deepcopy=False):  # its maker was killed
        study.set_user_attr(ABOUT, about)
        known = about
    if known is None:
        raise StudyError(f"{where} was not made by regraft tune: give another --name")
    other = [key for key in about if known.get(key) != about[key]]
    if other:
        raise StudyError(
            f"{where} is of {' and of '.join(f'another {key}' for key in other)}, so its trials cannot be compared "
            "with new ones: give another --name, or go back to what it was made from"
        )
    return study


def sampler_of(kind: str, seed: int, slot: int, key: str) -> optuna.samplers.BaseSampler:
    """Return the sampler of a key's value in a slot. A random one depends on seed, slot and key alone.

    A sampler of each key gives an attempt that was killed between two draws the same values when it is repeated.
    """
    own = int.from_bytes(hashlib.sha256(f"{seed} {slot} {key}".encode()).digest()[:4], "big")
    return optuna.samplers.TPESampler(seed=own) if kind == "tpe" else optuna.samplers.RandomSampler(seed=own)


def draw(trial: optuna.Trial, key: str, values: Range | Choices) -> Any:
    """Return a trial's value of a key."""
    from ...plan.ranges import Choices

    if isinstance(values, Choices):
        return trial.suggest_categorical(key, values.values)
    if values.whole:
        low, high, step = int(values.low), int(values.high), int(values.step or 1)
        return trial.suggest_int(key, low, high, step=step, log=values.log)
    return trial.suggest_float(key, values.low, values.high, step=values.step, log=values.log)
