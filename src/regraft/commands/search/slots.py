"""Who takes which trial of a study that workers share, and what a lost worker leaves.

A study has numbered slots, one for each trial that was asked for. Optuna numbers every attempt, and an attempt of a
killed worker is repeated under a new number. The slot stays, so the values of a random search are those of study seed
and slot, however many workers there are and however often they are killed.

    fresh attempt      takes the next slot
    repeated attempt   keeps the slot and the values of the attempt that was lost
    surplus attempt    two workers asked at once: the later one gives way

A worker signs its attempt every ``heartbeat`` seconds. Another worker fails an attempt that was not signed for three
times as long, and repeats it. See docs/decisions/038-a-search-in-a-database.md.
"""

from __future__ import annotations

import copy
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass

import optuna
from optuna.exceptions import ExperimentalWarning, UpdateFinishedTrialError
from optuna.storages import RetryHeartbeatStaleTrialCallback
from optuna.trial import FrozenTrial, TrialState

MAX_LOSSES = 3  # attempts of a slot that may be lost with their worker before the slot counts as failed

SIGNS = 3  # heartbeats without a sign after which a worker counts as gone


@dataclass(frozen=True)
class Slot:
    """A trial that was asked for, with its attempts by number."""

    number: int
    attempts: tuple[FrozenTrial, ...]

    @property
    def ended(self) -> FrozenTrial | None:
        """Return the attempt that counts: complete, pruned, or failed with a reason; None: there is none yet."""
        return next((t for t in self.attempts if is_ended(t)), None)

    @property
    def live(self) -> list[FrozenTrial]:
        """Return the attempts that wait for a worker, or have one."""
        return [t for t in self.attempts if not t.state.is_finished()]

    @property
    def losses(self) -> int:
        """Return the number of attempts that were lost with their worker."""
        left = {"surplus", "interrupted"}
        return sum(
            t.state == TrialState.FAIL and not is_ended(t) and not left & set(t.user_attrs) for t in self.attempts
        )

    @property
    def open(self) -> bool:
        """Return whether nobody has ended the slot and nobody is at it."""
        return self.ended is None and not self.live and self.losses <= MAX_LOSSES


def is_ended(trial: FrozenTrial) -> bool:
    """Return whether an attempt ends its slot."""
    if trial.state == TrialState.FAIL:
        return "reason" in trial.user_attrs
    return trial.state in (TrialState.COMPLETE, TrialState.PRUNED)


def slots_of(trials: Sequence[FrozenTrial]) -> list[Slot]:
    """Return the slots of all attempts of a study, by number.

    Numbers of attempts have no gap, and a repeated attempt says at its making which one it repeats. So every worker
    counts alike.
    """
    slot_of: dict[int, int] = {}
    fresh = 0
    for trial in sorted(trials, key=lambda t: t.number):
        first = trial.system_attrs.get("failed_trial")
        slot_of[trial.number] = fresh if first is None else slot_of[first]
        fresh += first is None
    members: dict[int, list[FrozenTrial]] = {}
    for trial in trials:
        members.setdefault(slot_of[trial.number], []).append(trial)
    return [Slot(n, tuple(sorted(own, key=lambda t: t.number))) for n, own in sorted(members.items())]


def gives_way(slot: Slot, number: int, most: int) -> bool:
    """Return whether an attempt is surplus, of a study of ``most`` slots.

    Another attempt has ended the slot, or an earlier one is at it. Two attempts never give way to each other.
    """
    others = [t for t in slot.attempts if t.number != number]
    return slot.number >= most or any(is_ended(t) or (t in slot.live and t.number < number) for t in others)


def repeat(study: optuna.Study, lost: FrozenTrial) -> None:
    """Queue an attempt again, with the values that it has drawn."""
    again = copy.deepcopy(lost)
    again.user_attrs = {}
    with optunas_warnings_ignored():
        RetryHeartbeatStaleTrialCallback()(study, again)


def repeat_unsigned(study: optuna.Study, lost: FrozenTrial) -> None:
    """Queue an attempt of a worker that is gone again, unless its slot has lost too many workers."""
    slots = slots_of(study.get_trials(deepcopy=False))
    if any(slot.losses <= MAX_LOSSES for slot in slots if lost.number in (t.number for t in slot.attempts)):
        repeat(study, lost)


def queue_open_slots(study: optuna.Study, slots: Sequence[Slot], most: int) -> None:
    """Queue the slots whose worker ended without queueing them itself: it was interrupted, or killed just then."""
    for slot in slots:
        if slot.number < most and slot.open:
            repeat(study, slot.attempts[-1])


class Watcher:
    """Fails attempts whose worker is gone."""

    def __init__(self, study: optuna.Study, heartbeat_s: int, now: Callable[[], float] = time.monotonic) -> None:
        self.study, self.grace_s, self.now = study, SIGNS * heartbeat_s, now
        self.unsigned: dict[int, float] = {}  # attempt that was never signed → since when it is known

    def look(self) -> list[Slot]:
        """Return the slots, after attempts without a sign for too long were failed and queued again."""
        with optunas_warnings_ignored():
            optuna.storages.fail_stale_trials(self.study)
        trials = self.study.get_trials(deepcopy=False)
        running = [t.number for t in trials if t.state == TrialState.RUNNING and "slot" not in t.user_attrs]
        self.unsigned = {n: self.unsigned.get(n, self.now()) for n in running}
        for number, since in self.unsigned.items():
            if self.now() - since > self.grace_s:  # killed before it signed for the first time
                with suppress(UpdateFinishedTrialError, ValueError):
                    self.study.tell(number, state=TrialState.FAIL)
        return slots_of(self.study.get_trials(deepcopy=False))


@contextmanager
def optunas_warnings_ignored() -> Iterator[None]:
    """Ignore inside the block that Optuna calls its heartbeats experimental."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        yield
