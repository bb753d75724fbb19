"""Who takes which trial of a shared study, and what a lost worker or database leaves."""

from __future__ import annotations

import itertools
import sqlite3
import traceback
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.trial import FrozenTrial, TrialState

from regraft.commands.search import database
from regraft.commands.search.database import Connector, open_storage, read_address, shown
from regraft.commands.search.slots import Slot, Watcher, gives_way, queue_open_slots, repeat_unsigned, slots_of
from regraft.commands.search.study import draw, open_study, sampler_of
from regraft.errors import StudyError, UsageError
from regraft.plan.ranges import Choices, Range

FAIL, DONE, RUNNING, WAITING = TrialState.FAIL, TrialState.COMPLETE, TrialState.RUNNING, TrialState.WAITING


def attempt(number: int, state: TrialState, of: int | None = None, **attrs: Any) -> FrozenTrial:
    trial = optuna.create_trial(state=DONE, value=0.0)
    trial.number, trial.state, trial.user_attrs = number, state, attrs
    trial.system_attrs = {} if of is None else {"failed_trial": of}
    return trial


@pytest.fixture
def storage(tmp_path: Path) -> Any:
    return open_storage(read_address(f"sqlite:///{tmp_path / 'study.db'}"), 1.0, 30)


# ---------------------------------------------------------------- addresses


def test_passwords_are_shown_nowhere() -> None:
    url = read_address("postgresql://ada:s3cret@host:5433/runs?sslpassword=s3cret&host=/tmp/x")
    assert url.drivername == "postgresql+psycopg"
    assert "s3cret" not in shown(url) and "ada" in shown(url) and "runs" in shown(url)
    error = Exception("no connection for ada with s3cret\nmore")
    assert Connector(url, 1.0).reason(error) == "no connection for ada with ***"


@pytest.mark.parametrize(
    "text",
    [
        "not an address s3cret",
        "oracl://ada:s3cret@host/db",
        "postgresql://ada:s3cret/db",  # without @host: the password is read as a port
        "postgresql://ada:p@s3cret@host/db",
        "sqlite://",
        "sqlite:///:memory:",
        "sqlite:///s3cret.db?timeout=soon",
    ],
)
def test_an_address_that_cannot_be_is_refused_unrepeated(text: str) -> None:
    with pytest.raises(UsageError, match="--study") as error:
        read_address(text)
    assert "s3cret" not in "".join(traceback.format_exception(error.value))


def test_a_missing_driver_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "psycopg", None)
    with pytest.raises(UsageError, match=r'psycopg is not installed here: pip install "regraft\[tune\]"'):
        read_address("postgresql://host/db")


# ---------------------------------------------------------------- a database that is away


class Refusing:
    """A driver that refuses the first connections."""

    def __init__(self, times: int) -> None:
        self.left = times
        self.tries = 0

    def __call__(self) -> Any:
        self.tries += 1
        if self.tries <= self.left:
            raise sqlite3.OperationalError("connection refused")
        return "a connection"


def connector(monkeypatch: pytest.MonkeyPatch, times: int, wait_s: float) -> tuple[Connector, Refusing, list[float]]:
    """Return a connector to a database that comes back, and the pauses that it makes; no time passes."""
    made, driver = Connector(read_address("postgresql://ada:s3cret@host/db"), wait_s), Refusing(times)
    made.dbapi = sqlite3
    monkeypatch.setattr(made, "connect", driver)
    clock, pauses = [0.0], list[float]()

    def sleep(seconds: float) -> None:
        pauses.append(seconds)
        clock[0] += seconds

    monkeypatch.setattr(database.time, "sleep", sleep)
    monkeypatch.setattr(database.time, "monotonic", lambda: clock[0])
    return made, driver, pauses


def test_a_database_that_comes_back_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    made, driver, pauses = connector(monkeypatch, 7, 60.0)
    assert made() == "a connection" and driver.tries == 8
    assert pauses == [0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 10.0]  # growing, up to ten seconds


def test_a_database_that_stays_away_ends_the_search_with_words(monkeypatch: pytest.MonkeyPatch) -> None:
    made, driver, pauses = connector(monkeypatch, 10**6, 60.0)
    with pytest.raises(StudyError, match=r"60 s .*connection refused.*kept.*same command") as error:
        made()
    assert sum(pauses) == pytest.approx(60.0) and "s3cret" not in str(error.value)
    tries = driver.tries
    with pytest.raises(StudyError):
        made()
    assert driver.tries == tries  # given up once, for good


@pytest.mark.parametrize(
    "said", ['FATAL: password authentication failed for user "ada"', 'invalid connection option "foo"']
)
def test_what_waiting_cannot_mend_ends_at_once(monkeypatch: pytest.MonkeyPatch, said: str) -> None:
    made, _, pauses = connector(monkeypatch, 0, 60.0)

    def refuse() -> Any:
        raise sqlite3.OperationalError(said)

    monkeypatch.setattr(made, "connect", refuse)
    with pytest.raises(StudyError, match="correct --study") as error:
        made()
    assert said in str(error.value)
    assert pauses == []


def test_a_sign_of_life_neither_waits_nor_raises(monkeypatch: pytest.MonkeyPatch, storage: Any) -> None:
    made, _, pauses = connector(monkeypatch, 10**6, 60.0)
    monkeypatch.setattr(storage.engine.pool, "_creator", made)
    monkeypatch.setattr(storage, "connector", made)
    storage.record_heartbeat(1)
    assert pauses == [] and not made.lost


def test_a_server_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(StudyError, match=r"cannot be reached for 0\.1 s"):
        open_storage(read_address(f"postgresql://ada:s3cret@/db?host={tmp_path}"), 0.1, 30)


# ---------------------------------------------------------------- studies


def test_a_study_of_something_else_is_refused(storage: Any) -> None:
    about = {"data": "a", "source": "b", "plan": "c", "heartbeat": 30}
    open_study(storage, "one", "maximize", about)
    assert open_study(storage, "one", "maximize", about).user_attrs["regraft"] == about
    with pytest.raises(StudyError, match=r'"one".*another data and of another plan.*--name'):
        open_study(storage, "one", "maximize", about | {"data": "z", "plan": "z"})
    foreign = optuna.create_study(storage=storage, study_name="foreign")
    foreign.add_trial(optuna.create_trial(value=1.0))
    with pytest.raises(StudyError, match="not made by regraft tune"):
        open_study(storage, "foreign", "minimize", about)


def test_a_study_whose_maker_was_killed_is_taken_up(storage: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(database.time, "sleep", lambda seconds: None)
    optuna.create_study(storage=storage, study_name="one", direction="maximize")
    assert open_study(storage, "one", "maximize", {"data": "a"}).user_attrs["regraft"] == {"data": "a"}


def test_random_values_depend_on_seed_slot_and_key_alone(storage: Any) -> None:
    ranges = {"a": Range(1e-5, 1e-1, log=True), "b": Range(1, 9, 2), "c": Choices(("x", "y", True, 2))}
    drawn: dict[int, list[dict[str, Any]]] = {0: [], 1: []}
    for study_number, slots in enumerate(([0, 1, 2, 3], [3, 1, 0, 2])):
        study = optuna.create_study(storage=storage, study_name=f"s{study_number}")
        for slot in slots:
            trial = study._storage.create_new_trial(study._study_id)
            live = optuna.Trial(study, trial)
            values = {}
            for key, own in ranges.items():
                study.sampler = sampler_of("random", 5, slot, key)
                values[key] = draw(live, key, own)
            drawn[study_number].append({"slot": slot, **values})
    assert drawn[0] == sorted(drawn[1], key=lambda v: v["slot"])
    assert len({v["a"] for v in drawn[0]}) == 4
    assert all(v["b"] in (1, 3, 5, 7, 9) for v in drawn[0])


# ---------------------------------------------------------------- slots


def test_repeated_attempts_keep_their_slot_and_take_no_other() -> None:
    trials = [attempt(0, DONE), attempt(1, FAIL), attempt(2, DONE), attempt(3, FAIL, of=1), attempt(4, DONE, of=1)]
    trials.append(attempt(5, RUNNING))
    slots = slots_of(trials[::-1])
    assert [[t.number for t in s.attempts] for s in slots] == [[0], [1, 3, 4], [2], [5]]
    assert [s.ended.number if s.ended else None for s in slots] == [0, 4, 2, None]
    assert slots[1].losses == 2 and not slots[3].open


def test_of_two_attempts_one_gives_way_whatever_their_states() -> None:
    states = [
        (WAITING, {}),
        (RUNNING, {}),
        (DONE, {}),
        (FAIL, {"reason": "nan"}),
        (FAIL, {}),
        (FAIL, {"surplus": True}),
    ]
    for (a, attrs_a), (b, attrs_b) in itertools.product(states, repeat=2):
        slot = Slot(2, (attempt(2, a, **attrs_a), attempt(7, b, of=2, **attrs_b)))
        both_live = {a, b} <= {WAITING, RUNNING}
        if both_live:
            assert not gives_way(slot, 2, 9) and gives_way(slot, 7, 9)
        assert gives_way(slot, 2, 9) == (slot.attempts[1].state == DONE or "reason" in attrs_b)
        assert gives_way(slot, 2, 2) and gives_way(slot, 7, 2)  # beyond the trials that were asked for


@pytest.mark.parametrize(
    ("attrs", "is_open"),
    [
        ([{}], True),
        ([{"interrupted": True}] * 9, True),
        ([{}] * 3, True),
        ([{}] * 4, False),
        ([{"reason": "x"}], False),
    ],
)
def test_a_slot_is_open_until_it_ends_or_has_lost_too_many(attrs: list[dict[str, Any]], is_open: bool) -> None:
    slot = Slot(0, tuple(attempt(n, FAIL, None if n == 0 else 0, **a) for n, a in enumerate(attrs)))
    assert slot.open == is_open


def test_an_open_slot_is_queued_once_with_its_values(storage: Any) -> None:
    study = open_study(storage, "one", "maximize", {})
    uniform = optuna.distributions.FloatDistribution(0, 1)
    lost = {"state": FAIL, "params": {"a": 0.25}, "distributions": {"a": uniform}, "user_attrs": {"interrupted": True}}
    study.add_trial(optuna.create_trial(**lost))
    for _ in range(2):
        queue_open_slots(study, slots_of(study.get_trials()), 5)
    first, again = study.get_trials()
    assert again.state == WAITING and again.params == {"a": 0.25} and not again.user_attrs
    assert first.user_attrs == {"interrupted": True}
    queue_open_slots(study, slots_of(study.get_trials()), 0)  # of a study of fewer trials
    assert len(study.get_trials()) == 2


def test_a_slot_that_ends_its_workers_is_not_repeated_for_ever(storage: Any) -> None:
    study = open_study(storage, "one", "maximize", {})
    study.add_trial(optuna.create_trial(state=FAIL))
    for _ in range(9):
        repeat_unsigned(study, study.get_trials()[-1])
        last = study.get_trials()[-1]
        if last.state == WAITING:
            storage.set_trial_state_values(last._trial_id, FAIL)
    assert len(study.get_trials()) == 1 + 3  # three losses are forgiven
    assert not slots_of(study.get_trials())[0].open


def test_an_attempt_that_was_never_signed_is_failed_after_a_while(storage: Any) -> None:
    study, now = open_study(storage, "one", "maximize", {}), [0.0]
    storage_id = study._storage.create_new_trial(study._study_id)
    watcher = Watcher(study, 30, lambda: now[0])
    watcher.look()
    now[0] = 89.0
    assert watcher.look()[0].live
    now[0] = 91.0
    assert watcher.look()[0].open and storage.get_trial(storage_id).state == FAIL
