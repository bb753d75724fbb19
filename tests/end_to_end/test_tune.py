"""A search from the command line: trials, leaderboard, the winner's plan, and what is refused."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from regraft.commands.search import tune as searching
from regraft.commands.search.leaderboard import Leaderboard, Line, as_csv, as_text, optimism, place
from regraft.commands.search.tune import tune
from regraft.errors import DataError, DivergedError, RegraftError, SourceError
from regraft.plan.read import read_plan

from .conftest import Cli

RANGES = """
[tune.ranges]
"fit.lr" = { low = 1e-5, high = 9e-4, log = true }
"fit.epochs" = { low = 1, high = 3 }
"fit.start" = ["probe", "random"]
"""


@pytest.fixture
def plan_file(pictures: Path, weights: Path, tmp_path: Path) -> Any:
    """Write a plan with ranges; → its path."""

    def write(ranges: str = RANGES, data: Path = pictures, tune: str = 'sampler = "random"\npruner = "none"') -> Path:
        text = (
            f'[source]\nref = "timm:test_resnet"\nweights = "{weights}"\nimage_size = 32\n[data]\npath = "{data}"\n'
            f"[fit]\nbatch_size = 16\nepochs = 1\n[run]\nthreads = 1\n[tune]\ntrials = 3\n{tune}\n{ranges}"
        )
        file = tmp_path / f"plan{len(list(tmp_path.glob('plan*.toml')))}.toml"
        file.write_text(text)
        return file

    return write


def by_rate(plan: Any, **how: Any) -> Any:
    """Return a score in place of a fit's: the better, the nearer the learning rate is to 1e-4."""
    miss = abs(math.log10(plan.fit.lr) + 4)
    return SimpleNamespace(figures={"accuracy": 1 - miss / 10, "loss": miss})


def opened() -> bool:
    """Return whether a test set was opened by this test."""
    from regraft.runs.ledger import ledger_path

    return ledger_path().exists()


def test_a_search_leaves_leaderboard_and_plan_and_test_closed(plan_file: Any, cli: Cli, tmp_path: Path) -> None:
    out = tmp_path / "search"
    code, printed, err = cli("tune", plan_file(), "--out", out, "--json")
    assert code == 0, err
    board = json.loads(printed)
    assert [t["state"] for t in board["trials"]] == ["complete"] * 3 and not opened()
    assert sorted(t["trial"] for t in board["trials"]) == [0, 1, 2]
    scores = [t["score"] for t in board["trials"]]
    assert scores == sorted(scores, reverse=True) and board["best"] == board["trials"][0]
    assert "best of 3" in board["optimism"] and "optimistic" in board["optimism"]
    assert board["judged_by"] == "val" and f"{board['rows']} val rows" in board["optimism"]
    with (out / "leaderboard.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [float(r["accuracy"]) for r in rows] == scores
    assert [float(r["fit.lr"]) for r in rows] == [t["settings"]["fit.lr"] for t in board["trials"]]
    best = read_plan(out / "best.toml", {})
    settings = board["best"]["settings"]
    assert (best.fit.lr, best.fit.epochs, best.fit.start) == tuple(
        settings[f"fit.{k}"] for k in ("lr", "epochs", "start")
    )
    assert not best.tune.ranges and best.run.out == str(out / "run")
    assert sorted(p.name for p in out.iterdir()) == ["best.toml", "leaderboard.csv", "study.db", "tune.toml"]


def test_a_trial_is_the_plan_with_its_values(plan_file: Any, tmp_path: Path) -> None:
    """Data and source are shared between trials; a trial alone has the same score, to the bit."""
    from regraft.pipeline.trial import score_plan

    plan = read_plan(plan_file(), {"run.out": str(tmp_path / "search"), "tune.trials": 2})
    board = tune(plan)
    for line in board.lines:
        alone = score_plan(searching.plan_of(plan, line.settings))
        assert (line.score, line.loss) == (alone.figures["accuracy"], alone.figures["loss"])


def test_a_search_goes_on_and_fits_the_winner(plan_file: Any, cli: Cli, tmp_path: Path) -> None:
    file, out = plan_file(), tmp_path / "search"
    assert cli("tune", file, "--out", out, "--trials", 1, "--json")[0] == 0
    code, printed, err = cli("tune", file, "--out", out, "--trials", 2, "--fit")
    assert code == 0, err
    assert err.count("trial 0 ") == 0 and "trial 1 " in err  # trial 0 is not repeated
    result = json.loads((out / "run" / "result.json").read_text())
    assert result["status"] == "finished" and opened()
    with (out / "leaderboard.csv").open(newline="") as csv_file:
        best = next(csv.DictReader(csv_file))
    assert str(out / "run") in printed and f"{float(best['accuracy']):.4f}" in printed
    code, printed, err = cli("tune", file, "--out", out, "--trials", 2, "--fit", "--json")  # all is done
    assert code == 0 and json.loads(printed)["run"] == str(out / "run"), err


def test_one_worker_repeats_what_tpe_draws_from_scores(
    plan_file: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ten trials are drawn at random; the later ones lie nearer to the best learning rate, and do so again."""

    monkeypatch.setattr(searching, "score_plan", by_rate)
    file = plan_file('[tune.ranges]\n"fit.lr" = { low = 1e-8, high = 9e-4, log = true }\n', tune='pruner = "none"')
    boards = []
    for folder in "ab":  # the second search is made in two parts
        for trials in (14,) if folder == "a" else (12, 14):
            plan = read_plan(file, {"run.out": str(tmp_path / folder / "search"), "tune.trials": trials})
            board = tune(plan)
        boards.append({t.trial: t.settings["fit.lr"] for t in board.lines})
    assert boards[0] == boards[1] and len(boards[0]) == 14
    misses = [abs(math.log10(boards[0][n]) + 4) for n in range(14)]
    assert sum(misses[10:]) / 4 < sum(misses[:10]) / 10


def test_of_workers_that_ask_at_once_one_gives_way(
    plan_file: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker asks for a trial although all are taken; a search of more trials makes up for its number."""
    from regraft.commands.search.database import open_storage, read_address

    scored: list[float] = []

    def score(plan: Any, **how: Any) -> Any:
        scored.append(plan.fit.lr)
        return by_rate(plan)

    search = searching.Search.search

    def greedy(self: searching.Search) -> Any:
        search(self)
        self.take_one()
        return search(self)

    monkeypatch.setattr(searching, "score_plan", score)
    monkeypatch.setattr(searching.Search, "search", greedy)
    file, out = plan_file(), tmp_path / "search"
    board = tune(read_plan(file, {"run.out": str(out), "tune.trials": 2}))
    assert len(scored) == len(board.lines) == 2
    storage = open_storage(read_address(f"sqlite:///{out / 'study.db'}"), 1.0, 30)
    attempts = storage.get_all_trials(storage.get_study_id_from_name("search"))
    assert [t.user_attrs.get("surplus", False) for t in attempts] == [False, False, True]
    monkeypatch.setattr(searching.Search, "search", search)
    board = tune(read_plan(file, {"run.out": str(out), "tune.trials": 3}))
    assert sorted(line.trial for line in board.lines) == [0, 1, 2] and len(scored) == 3


def test_a_search_by_folds_scores_without_val(plan_file: Any, cli: Cli, tmp_path: Path) -> None:
    code, printed, err = cli(
        "tune", plan_file(), "--out", tmp_path / "s", "--trials", 1, "--set", "data.folds=2", "--json"
    )
    assert code == 0, err
    board = json.loads(printed)
    assert (board["judged_by"], board["rows"]) == ("2-fold cross-validation", 60) and not opened()


def test_a_study_of_other_data_or_another_plan_is_refused(
    plan_file: Any, make_pictures: Any, cli: Cli, tmp_path: Path
) -> None:
    out = tmp_path / "search"
    assert cli("tune", plan_file(), "--out", out, "--trials", 1, "--json")[0] == 0
    before = (out / "tune.toml").read_text()
    other = make_pictures(tmp_path / "other", noise=50)
    for file, more, words in (
        (plan_file(data=other), (), "another data"),
        (plan_file(), ("--set", "fit.warmup=0.3"), "another plan"),
        (plan_file(), ("--set", "tune.seed=3"), "another tune.seed"),
        (plan_file('[tune.ranges]\n"fit.lr" = [1e-4, 1e-5]\n'), (), "another plan and of another ranges"),
    ):
        code, _, err = cli("tune", file, "--out", out, *more)
        assert code == 8 and words in err and "--name" in err and "Traceback" not in err
    assert (out / "tune.toml").read_text() == before
    code, _, err = cli("tune", plan_file(), "--out", out, "--trials", 1, "--lr", "1e-4", "--json")
    assert code == 0, err  # the plan's own value of a searched key counts for nothing


@pytest.mark.parametrize("kind", [DivergedError, SourceError, DataError])
def test_a_fit_that_fails_is_a_failed_trial_with_its_reason(
    plan_file: Any, cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: type[RegraftError]
) -> None:
    error = kind("the loss is nan at step 3")

    def diverge(plan: Any, **how: Any) -> Any:
        if plan.fit.start == "random":
            raise error
        return SimpleNamespace(figures={"accuracy": 0.5, "loss": 0.1})

    monkeypatch.setattr(searching, "score_plan", diverge)
    ranges = '[tune.ranges]\n"fit.start" = ["probe", "random"]\n'
    code, printed, err = cli("tune", plan_file(ranges), "--out", tmp_path / "s", "--trials", 4, "--json")
    assert code == 0, err
    trials = json.loads(printed)["trials"]
    states = {(t["settings"]["fit.start"], t["state"], t["reason"]) for t in trials}
    assert states == {("probe", "complete", ""), ("random", "failed", "the loss is nan at step 3")}
    assert [t["state"] for t in trials] == sorted(t["state"] for t in trials)  # failed ones last
    always = SimpleNamespace(fit=SimpleNamespace(start="random"))
    monkeypatch.setattr(searching, "score_plan", lambda plan, **how: diverge(always))
    code, _, err = cli("tune", plan_file(ranges), "--out", tmp_path / "t")
    assert code == 8 and "none of 3 trials" in err and "the loss is nan" in err
    assert not (tmp_path / "t" / "best.toml").exists()


def test_values_that_prepare_refuses_are_a_failed_trial(plan_file: Any, cli: Cli, tmp_path: Path) -> None:
    """An lr above scratch_lr is refused only when the source is known."""
    ranges = '[tune.ranges]\n"fit.lr" = [1e-4, 0.5]\n'
    code, printed, err = cli("tune", plan_file(ranges), "--out", tmp_path / "s", "--trials", 5, "--json")
    assert code == 0, err
    reasons = {t["settings"]["fit.lr"]: t["reason"] for t in json.loads(printed)["trials"]}
    assert reasons[1e-4] == "" and reasons[0.5].startswith("fit.lr: 0.5 for the kept block")


def test_poor_trials_are_pruned_after_an_epoch(plan_file: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Trials whose val figures fall with their number: Hyperband ends later ones at their first rung."""
    reported: dict[int, list[int]] = {}
    report = searching.Search.report

    def watched(self: Any, trial: Any, step: int, figures: Any) -> None:
        reported.setdefault(trial.number, []).append(step)
        report(self, trial, step, {"accuracy": 1.0 - trial.number / 10, "loss": 0.0})

    monkeypatch.setattr(searching.Search, "report", watched)
    file = plan_file('[tune.ranges]\n"fit.lr" = [1e-4, 1e-5]\n', tune='sampler = "random"')
    board = tune(read_plan(file, {"run.out": str(tmp_path / "s"), "tune.trials": 5, "fit.epochs": 3}))
    pruned = [line.trial for line in board.lines if line.state == "pruned"]
    assert pruned and 0 not in pruned
    assert all(len(reported[n]) < 4 for n in pruned) and reported[0] == [0, 1, 2, 3]
    assert board.lines[0].state == "complete"
    assert "of 5 trials" in board.optimism  # a pruned trial was compared, too


def test_an_interrupted_search_says_how_to_go_on_and_loses_nothing(
    plan_file: Any, cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import os
    import signal

    score, calls = searching.score_plan, []

    def interrupt(plan: Any, **how: Any) -> Any:
        calls.append(plan.fit.lr)
        if len(calls) == 2:
            os.kill(os.getpid(), signal.SIGINT)
        return score(plan, **how)

    monkeypatch.setattr(searching, "score_plan", interrupt)
    file, out = plan_file(), tmp_path / "s"
    code, _, err = cli("tune", file, "--out", out)
    assert code == 130 and "go on with the same command" in err
    code, printed, err = cli("tune", file, "--out", out, "--json")
    assert code == 0, err
    trials = {t["trial"]: t for t in json.loads(printed)["trials"]}
    assert sorted(trials) == [0, 1, 2] and all(t["state"] == "complete" for t in trials.values())
    assert trials[1]["settings"]["fit.lr"] == calls[1] and len(calls) == 4  # taken again with the same values


def test_what_no_search_can_use_is_refused(
    plan_file: Any, cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = plan_file()
    for words, code, said in (
        (("tune", file), 2, "--out runs/NAME"),
        (("tune", file, "--out", tmp_path / "s", "--wait", "soon"), 2, "60s"),
        (("tune", file, "--out", tmp_path / "s", "--heartbeat", 0), 2, "--heartbeat"),
        (("tune", file, "--out", tmp_path / "s", "--trials", 0), 2, "tune.trials"),
        (("tune", file, "--out", tmp_path / "s", "--study", "s3cret@nowhere"), 2, "--study takes the address"),
        (("tune", file, "--out", tmp_path / "s", "--set", "run.processes=2"), 2, "one process fits a trial"),
        (("tune", plan_file(ranges=""), "--out", tmp_path / "s"), 2, "nothing to search"),
        (("fit", plan_file(), "--out", tmp_path / "s"), 2, "regraft tune"),
    ):
        found, _, err = cli(*words)
        assert found == code and said in err and "s3cret" not in err, err
        assert not (tmp_path / "s").exists()
    (tmp_path / "taken").mkdir()
    code, _, err = cli("tune", file, "--out", tmp_path / "taken")
    assert code == 2 and "never overwritten" in err
    monkeypatch.setitem(__import__("sys").modules, "regraft.commands.search.tune", None)
    monkeypatch.delattr("regraft.commands.search.tune")
    code, _, err = cli("tune", plan_file(), "--out", tmp_path / "s")
    assert code == 2 and 'pip install "regraft[tune]"' in err


# ---------------------------------------------------------------- the leaderboard


def line(trial: int, score: float | None, loss: float | None = 0.1, state: Any = "complete", **settings: Any) -> Line:
    return Line(trial, state, score, loss, 1.0, settings)


def test_the_best_is_first_then_the_lower_loss_then_the_earlier() -> None:
    lines = [line(0, 0.7), line(1, 0.9, 0.5), line(2, 0.9, 0.2), line(3, 0.9, 0.2), line(4, 1.0, None, "pruned")]
    lines.append(line(5, None, None, "failed"))
    assert [x.trial for x in sorted(lines, key=lambda x: place(x, higher=True))] == [2, 3, 1, 0, 4, 5]
    assert [x.trial for x in sorted(lines, key=lambda x: place(x, higher=False))] == [0, 2, 3, 1, 4, 5]


def test_one_trial_is_the_best_of_nothing() -> None:
    assert "best of" not in optimism([line(0, 0.5)], "accuracy", "val", 12, Path("s"))
    said = optimism([line(0, 0.5), line(1, 0.2), line(2, 0.1)], "accuracy", "val", 12, Path("s"))
    assert "best of 3" in said and "0.2000" in said


def test_a_table_of_trials_runs_no_formula_and_has_what_differs() -> None:
    lines = (line(0, 0.5, a="=1+1", b=2), line(1, 0.4, a="x", b=2))
    board = Leaderboard("s", "sqlite:///x", "accuracy", True, "val", 9, lines, "so it is", "s/best.toml")
    assert as_csv(board).splitlines()[1] == "0,complete,0.5,0.1,1.0,'=1+1,"
    assert "b = 2" in as_text(board).split("the same in every trial")[1]
