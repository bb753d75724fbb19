"""A search's study in a database that workers share: who takes which trial, and what a lost worker leaves.

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
import functools
import hashlib
import json
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import optuna
from optuna.exceptions import (
    DuplicatedStudyError,
    ExperimentalWarning,
    OptunaError,
    StorageInternalError,
    UpdateFinishedTrialError,
)
from optuna.storages import RDBStorage, RetryHeartbeatStaleTrialCallback
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy.engine import URL, Dialect, make_url
from sqlalchemy.exc import ArgumentError, NoSuchModuleError, SQLAlchemyError
from sqlalchemy.pool import NullPool

from ..errors import StudyError, UsageError
from ..io.log import LOGGER

if TYPE_CHECKING:
    from ..plan.ranges import Choices, Range

MAX_LOSSES = 3  # attempts of a slot that may be lost with their worker before the slot counts as failed

SIGNS = 3  # heartbeats without a sign after which a worker counts as gone

FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.2, 10.0  # between two tries to reach a database

CONNECT_TIMEOUT_S = 10  # of one try

NEVER = (  # what a database says where waiting is vain
    "authentication failed",
    "no password supplied",
    "does not exist",
    "no pg_hba.conf entry",
    "invalid connection option",
)

ABOUT = "regraft"  # the user attribute of a study that says what it is about


# ---------------------------------------------------------------- the database


def read_address(text: str) -> URL:
    """Return the address of a database. Raises UsageError, which does not repeat the text: it may hold a password."""
    try:
        url = make_url(text)
        if url.drivername == "postgresql":  # SQLAlchemy's own default has changed between versions
            url = url.set(drivername="postgresql+psycopg")
        dialect: Any = url.get_dialect()  # a class whose options SQLAlchemy does not declare
        dialect.import_dbapi()
        dialect().create_connect_args(url)
    except (ArgumentError, NoSuchModuleError, ValueError):  # ValueError: a port or an option that is no number
        raise UsageError(
            "--study takes the address of a database, as postgresql://USER@HOST/DATABASE or sqlite:///FILE.db"
        ) from None  # the cause quotes the address, and --debug prints causes
    except ImportError as error:
        raise UsageError(f'--study: {error.name} is not installed here: pip install "regraft[tune]"') from error
    if "@" in (url.host or ""):
        raise UsageError("--study: a user or password holds an @ of its own: write it as %40, / as %2F and : as %3A")
    if url.get_backend_name() == "sqlite" and url.database in (None, "", ":memory:"):
        raise UsageError("--study: a database in memory is gone with its process: name a file, as sqlite:///FILE.db")
    return url


def shown(url: URL) -> str:
    """Return an address without passwords, for messages and files."""
    host = {k: v for k, v in url.query.items() if k in ("host", "port")}
    return url.set(query=host).render_as_string(hide_password=True)


class Connector:
    """Connects to a database, and waits for one that is away."""

    def __init__(self, url: URL, wait_s: float) -> None:
        self.url, self.wait_s = url, wait_s
        driver: Any = url.get_dialect()  # a class whose options SQLAlchemy does not declare
        self.dbapi = driver.import_dbapi()
        self.dialect: Dialect = driver(dbapi=self.dbapi)
        self.lost = ""  # why the database was given up; "" until then
        self.own = threading.local()

    @contextmanager
    def without_waiting(self) -> Iterator[None]:
        """Try once inside the block, in this thread."""
        self.own.once = True
        try:
            yield
        finally:
            self.own.once = False

    def __call__(self) -> Any:
        """Return a new connection. Raises StudyError where the database stays away."""
        once = getattr(self.own, "once", False)
        until, pause, told = time.monotonic() + self.wait_s, FIRST_PAUSE_S, False
        while True:
            if self.lost:
                raise StudyError(self.lost)
            try:
                return self.connect()
            except self.dbapi.Error as error:
                why, left = self.reason(error), until - time.monotonic()
                vain = self.url.get_backend_name() == "sqlite" or any(text in why for text in NEVER)
                if once:
                    raise StudyError(why) from None
                if vain or left <= 0:
                    kept = "every finished trial is kept there; go on with the same command when it answers"
                    waited, remedy = ("", "correct --study") if vain else (f" for {self.wait_s:g} s", kept)
                    self.lost = f"the database {shown(self.url)} cannot be reached{waited} ({why}): {remedy}"
                    raise StudyError(self.lost) from None
                if not told:
                    LOGGER.info("the database %s is away (%s): waiting up to %g s", shown(self.url), why, self.wait_s)
                    told = True
                time.sleep(min(pause, left))
                pause = min(2 * pause, LONGEST_PAUSE_S)

    def connect(self) -> Any:
        """Return a new connection, or raise the driver's error."""
        words, options = self.dialect.create_connect_args(self.url)
        if self.url.get_backend_name() == "postgresql":
            options.setdefault("connect_timeout", CONNECT_TIMEOUT_S)
            options.setdefault("client_encoding", "utf8")  # a database without an encoding gives bytes otherwise
        if self.url.get_backend_name() == "sqlite":
            options["timeout"] = max(self.wait_s, 1.0)  # for another worker that writes
        return self.dialect.connect(*words, **options)

    def reason(self, error: Exception) -> str:
        """Return the first line of a driver's error, without a password."""
        lines = str(error).strip().splitlines() or [type(error).__name__]
        secrets = [self.url.password, *(v for k, v in self.url.query.items() if "pass" in k)]
        for secret in filter(None, secrets):
            lines[0] = lines[0].replace(str(secret), "***")
        return lines[0]


R = TypeVar("R")


def patient(operation: Callable[..., R]) -> Callable[..., R]:
    """Return an operation of a storage that begins again where its connection breaks in the midst of it.

    An operation is one transaction, so that a broken one has changed nothing. If only the answer was lost, a trial may
    have ended already, which the second try finds.
    """

    @functools.wraps(operation)
    def wrapper(*args: Any, **kwargs: Any) -> R:
        for pause_s in (0.1, 0.5, 2.0, 5.0):
            try:
                return operation(*args, **kwargs)
            except StorageInternalError:
                time.sleep(pause_s)
        return operation(*args, **kwargs)

    return wrapper


class Storage(RDBStorage):
    """Optuna's storage over a :class:`Connector`. It keeps no connection open while a trial trains."""

    set_trial_param = patient(RDBStorage.set_trial_param)
    set_trial_intermediate_value = patient(RDBStorage.set_trial_intermediate_value)
    set_trial_state_values = patient(RDBStorage.set_trial_state_values)
    set_trial_user_attr = patient(RDBStorage.set_trial_user_attr)
    get_trial = patient(RDBStorage.get_trial)
    get_all_trials = patient(RDBStorage.get_all_trials)
    _get_trials = patient(RDBStorage._get_trials)  # what the cache before this storage reads
    _get_stale_trial_ids = patient(RDBStorage._get_stale_trial_ids)

    def __init__(self, connector: Connector, heartbeat_s: int) -> None:
        self.connector = connector
        with optunas_warnings_ignored():
            super().__init__(
                connector.url.render_as_string(hide_password=False).replace("{", "{{").replace("}", "}}"),
                engine_kwargs={"creator": connector, "poolclass": NullPool},
                heartbeat_interval=heartbeat_s,
                grace_period=SIGNS * heartbeat_s,
                heartbeat_stale_trial_callback=repeat_unsigned,
            )

    def record_heartbeat(self, trial_id: int) -> None:
        """Sign an attempt. Optuna calls this in a thread, where an error would be a traceback and end the signing."""
        with suppress(StudyError, StorageInternalError, SQLAlchemyError), self.connector.without_waiting():
            super().record_heartbeat(trial_id)

    def record_first_heartbeat(self, trial_id: int) -> None:
        """Sign an attempt, or raise the error: without a first sign nobody would see that its worker is gone."""
        patient(super().record_heartbeat)(trial_id)


@contextmanager
def optunas_warnings_ignored() -> Iterator[None]:
    """Ignore inside the block that Optuna calls its heartbeats experimental."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        yield


@contextmanager
def optuna_silent() -> Iterator[None]:
    """Keep Optuna from printing inside the block: regraft prints a line a trial."""
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.CRITICAL)
    try:
        yield
    finally:
        optuna.logging.set_verbosity(before)


def error_of(error: Exception) -> Exception:
    """Return the error of a storage or a trial.

    Where a trial's end cannot be written, Optuna 5 raises an UnboundLocalError or an AssertionError of its own over it.
    """
    found: BaseException | None = error
    while isinstance(found, UnboundLocalError | AssertionError):
        found = found.__context__
    return found if isinstance(found, StudyError | OptunaError | ValueError) else error


def open_storage(url: URL, wait_s: float, heartbeat_s: int) -> Storage:
    """Open a database, and make Optuna's tables where there are none. Raises StudyError where that fails."""
    connector = Connector(url, wait_s)
    for left in (2, 1, 0):
        try:
            return Storage(connector, heartbeat_s)
        except SQLAlchemyError as error:  # another worker makes the same tables
            if not left:
                why = connector.reason(error)
                raise StudyError(f"the database {shown(url)} takes no study ({why})") from None
            time.sleep(1)
        except RuntimeError as error:  # tables of another version of Optuna
            raise StudyError(f"the database {shown(url)} is of another Optuna: {error}") from error
    raise AssertionError


# ---------------------------------------------------------------- the study


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
    from ..plan.ranges import Choices

    if isinstance(values, Choices):
        return trial.suggest_categorical(key, values.values)
    if values.whole:
        low, high, step = int(values.low), int(values.high), int(values.step or 1)
        return trial.suggest_int(key, low, high, step=step, log=values.log)
    return trial.suggest_float(key, values.low, values.high, step=values.step, log=values.log)


# ---------------------------------------------------------------- slots


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
