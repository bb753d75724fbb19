"""The database of a study: its address, a connection that waits for it, and Optuna's storage over that."""

from __future__ import annotations

import functools
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, TypeVar

import optuna
from optuna.exceptions import OptunaError, StorageInternalError
from optuna.storages import RDBStorage
from sqlalchemy.engine import URL, Dialect, make_url
from sqlalchemy.exc import ArgumentError, NoSuchModuleError, SQLAlchemyError
from sqlalchemy.pool import NullPool

from ...errors import StudyError, UsageError
from ...io.log import LOGGER
from .slots import SIGNS, optunas_warnings_ignored, repeat_unsigned

FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.2, 10.0  # between two tries to reach a database

CONNECT_TIMEOUT_S = 10  # of one try

NEVER = (  # what a database says where waiting is vain
    "authentication failed",
    "no password supplied",
    "does not exist",
    "no pg_hba.conf entry",
    "invalid connection option",
)


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
