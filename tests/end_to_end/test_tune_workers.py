"""Workers that share a study, one of them killed, in SQLite and in a real PostgreSQL that goes and comes back."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch

TESTS = Path(__file__).parents[1]
SECRET = "s3cret-word"
TRIALS = 4


@pytest.fixture(scope="module")
def plan(pictures: Path, weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("search") / "plan.toml"
    file.write_text(
        f'[source]\nref = "timm:test_resnet"\nweights = "{weights}"\nimage_size = 32\n[data]\npath = "{pictures}"\n'
        f"[fit]\nbatch_size = 16\n[run]\nthreads = 1\n"
        f'[tune]\ntrials = {TRIALS}\nsampler = "random"\npruner = "none"\n[tune.ranges]\n'
        '"fit.lr" = { low = 1e-5, high = 9e-4, log = true }\n"fit.epochs" = { low = 1, high = 2 }\n'
        '"fit.start" = ["probe", "random"]\n'
    )
    return file


@pytest.fixture(scope="module")
def alone(plan: Path) -> dict[str, Any]:
    """Return the leaderboard of one worker that nothing disturbs, in a database of its own."""
    from regraft.commands.search.leaderboard import record
    from regraft.commands.search.options import TuneOptions
    from regraft.commands.search.tune import tune
    from regraft.plan.read import read_plan

    threads = torch.get_num_threads()
    board = record(tune(read_plan(plan, {"run.out": str(plan.parent / "alone")}), TuneOptions(heartbeat=1)))
    torch.set_num_threads(threads)
    return board


@dataclass
class Workers:
    """Worker processes over one plan, each with a folder of its own."""

    folder: Path
    plan: Path
    started: list[subprocess.Popen[str]] = field(default_factory=list)

    def start(self, name: str, database: str, **more: Any) -> subprocess.Popen[str]:
        """Start a worker."""
        options = {
            "plan": str(self.plan),
            "out": str(self.folder / name),
            "database": database,
            "wait_s": 60,
            "marker": str(self.folder / f"{name} hangs"),
            **more,
        }
        file = self.folder / f"{name}.json"
        file.write_text(json.dumps(options))
        env = os.environ | {"PYTHONPATH": str(TESTS), "OMP_NUM_THREADS": "1"}
        command = [sys.executable, str(TESTS / "tune_worker.py"), str(file)]
        log = (self.folder / f"{name}.log").open("w")
        worker = subprocess.Popen(command, env=env, stdout=log, stderr=log, text=True)
        log.close()
        self.started.append(worker)
        return worker

    def log(self, name: str) -> str:
        """Return what a worker printed."""
        return (self.folder / f"{name}.log").read_text()

    def board(self, name: str) -> dict[str, Any]:
        """Return the leaderboard of a worker that ended."""
        found: dict[str, Any] = json.loads((self.folder / name / "board.json").read_text())
        return found

    def wait_for(self, name: str, text: str, seconds: float = 120) -> None:
        """Wait until a worker prints a text."""
        self.wait_until(lambda: text in self.log(name), name, seconds)

    def wait_for_file(self, file: Path, name: str, seconds: float = 120) -> None:
        """Wait until a worker has left a file."""
        self.wait_until(file.exists, name, seconds)

    def wait_until(self, holds: Callable[[], bool], name: str, seconds: float) -> None:
        """Wait until something holds, while all workers run."""
        until = time.monotonic() + seconds
        while not holds():
            ended = any(worker.poll() is not None for worker in self.started)
            assert (time.monotonic() < until and not ended) or holds(), self.log(name)
            time.sleep(0.05)


@pytest.fixture
def workers(tmp_path: Path, plan: Path, fast_processes: None) -> Iterator[Workers]:
    made = Workers(tmp_path, plan)
    yield made
    for worker in made.started:
        if worker.poll() is None:
            worker.kill()
        worker.wait()


def trials_of(board: dict[str, Any]) -> list[dict[str, Any]]:
    """Return what must not depend on the workers, by trial."""
    lines = [{k: line[k] for k in ("trial", "state", "score", "loss", "settings")} for line in board["trials"]]
    return sorted(lines, key=lambda line: line["trial"])


def one_killed_of_two(workers: Workers, database: str) -> dict[str, Any]:
    """Kill a worker within its second trial, which another worker then repeats; return the other's leaderboard."""
    killed = workers.start("killed", database, hang=2)
    workers.wait_for("killed", "trial 0")
    other = workers.start("other", database)
    workers.wait_for_file(workers.folder / "killed hangs", "killed")
    workers.wait_for("other", "waiting for trials of other workers")
    assert other.poll() is None  # the hanging worker still signs its trial, so nobody else takes it
    os.kill(killed.pid, signal.SIGKILL)
    assert killed.wait() == -signal.SIGKILL
    assert other.wait(240) == 0, workers.log("other")
    return workers.board("other")


def attempts_of(database: str) -> list[Any]:
    """Return all attempts of the study."""
    from regraft.commands.search.database import open_storage, read_address

    storage = open_storage(read_address(database), 5.0, 1)
    return storage.get_all_trials(storage.get_study_id_from_name("shared"))


def assert_each_trial_once(database: str, lost: int) -> None:
    from optuna.trial import TrialState

    from regraft.commands.search.slots import slots_of

    attempts = attempts_of(database)
    slots = slots_of(attempts)
    done = [[t for t in s.attempts if t.state == TrialState.COMPLETE] for s in slots if s.number < TRIALS]
    assert [len(d) for d in done] == [1] * TRIALS
    assert sum(s.losses for s in slots) == lost


@pytest.mark.slow
def test_a_killed_workers_trial_is_taken_again(workers: Workers, alone: dict[str, Any]) -> None:
    database = f"sqlite:///{workers.folder / 'shared.db'}"
    board = one_killed_of_two(workers, database)
    assert_each_trial_once(database, lost=1)
    assert trials_of(board) == trials_of(alone) and board["best"]["trial"] == alone["best"]["trial"]


# ---------------------------------------------------------------- PostgreSQL


@dataclass
class Postgres:
    """A PostgreSQL server of this test, on a socket in a folder of its own; it refuses to run as root."""

    binaries: Path
    folder: Path
    user: str | None  # whose processes run the server; None: this user

    def call(self, *words: object, stdin: str = "") -> None:
        """Run a program of PostgreSQL as the server's user."""
        program, *more = words
        command = [str(self.binaries / str(program)), *map(str, more)]
        if self.user is not None:
            command = ["setpriv", f"--reuid={self.user}", f"--regid={self.user}", "--clear-groups", *command]
        env = {"PATH": os.environ["PATH"], "LC_ALL": "C", "PGPASSWORD": SECRET}
        log = self.folder / "calls.log"
        with log.open("a") as out:
            done = subprocess.run(command, env=env, cwd=self.folder, stdout=out, stderr=out, timeout=60)
        assert done.returncode == 0, log.read_text()

    def start(self) -> None:
        """Start the server, and wait until it answers."""
        options = f"-c listen_addresses='' -k {self.folder} -c fsync=off"
        log = self.folder / "server.log"
        self.call("pg_ctl", "start", "-w", "-s", "-D", self.folder / "data", "-l", log, "-o", options)

    def stop(self) -> None:
        """Stop the server as a crash does, in the midst of what it writes."""
        self.call("pg_ctl", "stop", "-w", "-s", "-m", "immediate", "-D", self.folder / "data")

    @property
    def address(self) -> str:
        """Return the address of the database, with its password."""
        return f"postgresql://ada:{SECRET}@/regraft?host={self.folder}"


@pytest.fixture
def postgres() -> Iterator[Postgres]:
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"), key=lambda p: float(p.parts[4]))
    on_path = shutil.which("postgres")
    if not found and not on_path:
        pytest.skip("PostgreSQL is not installed (Debian: apt-get install postgresql)")
    binaries = found[-1].parent if found else Path(str(on_path)).parent
    folder = Path(tempfile.mkdtemp(prefix="pg-", dir="/tmp"))  # a socket's path has 107 characters at most
    server = Postgres(binaries, folder, None)
    try:
        (folder / "password").write_text(SECRET)
        if os.geteuid() == 0:
            import pwd

            names = {entry.pw_name for entry in pwd.getpwall()}
            server = Postgres(binaries, folder, "postgres" if "postgres" in names else "nobody")
            entry = pwd.getpwnam(str(server.user))
            server = Postgres(binaries, folder, server.user if server.user == "postgres" else str(entry.pw_uid))
            for path in (folder, folder / "password"):
                os.chown(path, entry.pw_uid, entry.pw_gid)
        made = ("--auth=scram-sha-256", "--username=ada", f"--pwfile={folder / 'password'}", "--no-sync")
        server.call("initdb", "-D", folder / "data", *made)
        server.start()
        server.call("createdb", "-h", folder, "-U", "ada", "regraft")
        yield server
    finally:
        if (folder / "data" / "postmaster.pid").exists():
            server.stop()
        shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.slow
def test_workers_share_a_postgresql_and_one_is_killed(
    workers: Workers, postgres: Postgres, alone: dict[str, Any]
) -> None:
    board = one_killed_of_two(workers, postgres.address)
    assert_each_trial_once(postgres.address, lost=1)
    assert trials_of(board) == trials_of(alone) and board["best"]["trial"] == alone["best"]["trial"]
    assert "ada" in board["database"]
    for file in (p for p in workers.folder.rglob("*") if p.is_file() and p.suffix != ".json"):
        assert SECRET.encode() not in file.read_bytes(), file  # the .json files are the workers' own options
    assert SECRET not in json.dumps(board)


@pytest.mark.slow
def test_a_server_that_crashes_and_comes_back_costs_no_trial(
    workers: Workers, postgres: Postgres, alone: dict[str, Any]
) -> None:
    """Two workers at once; the server is away for seconds while both train."""
    both = [workers.start(name, postgres.address, pause_s=1.0) for name in ("one", "two")]
    for name in ("one", "two"):
        workers.wait_for(name, "trial ")
    postgres.stop()
    time.sleep(3)
    postgres.start()
    for worker, name in zip(both, ("one", "two"), strict=True):
        assert worker.wait(240) == 0, workers.log(name)
    assert trials_of(workers.board("one")) == trials_of(workers.board("two")) == trials_of(alone)
    assert any("is away" in workers.log(name) for name in ("one", "two"))


@pytest.mark.slow
def test_a_server_that_stays_away_ends_the_search_with_words(
    workers: Workers, postgres: Postgres, alone: dict[str, Any]
) -> None:
    worker = workers.start("one", postgres.address, pause_s=1.0, wait_s=2)
    workers.wait_for("one", "trial 0")
    postgres.stop()
    assert worker.wait(120) == 1
    said = workers.log("one")
    assert "StudyError" in said and "cannot be reached for 2 s" in said and "same command" in said
    assert SECRET not in said
    postgres.start()
    again = workers.start("again", postgres.address)
    assert again.wait(240) == 0, workers.log("again")
    assert trials_of(workers.board("again")) == trials_of(alone)
    assert "trial 0 " not in workers.log("again")  # it was kept
