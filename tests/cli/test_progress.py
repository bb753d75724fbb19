"""What a person sees while it runs."""

from __future__ import annotations

import io
import sys

import pytest

from regraft.cli.bars import bars, best, rates
from regraft.data.ordering import EpochOrder
from regraft.io import progress
from regraft.io.log import LOGGER, lines_to
from regraft.io.progress import duration, stage
from regraft.training.records import Progress


class Terminal(io.StringIO):
    def isatty(self):
        return True


class Rows:
    """Two batches of three rows an epoch."""

    order = EpochOrder(3)

    def __len__(self):
        return 6

    def epoch(self, n, skip=0):
        yield from (([0, 1, 2],) for _ in range(2 - skip))


def test_a_terminal_shows_bar_mean_terms_best_and_rates(monkeypatch):
    monkeypatch.setattr(sys, "stderr", Terminal())
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "160")
    for name in ("NO_COLOR", "FORCE_COLOR"):
        monkeypatch.delenv(name, raising=False)
    with bars(on=True) as track:
        assert len(list(track(6, "seed 7")(Rows()).epoch(1))) == 2
        at = Progress(
            epoch=3,
            batches=2,
            step=12,
            sums={"task": 1.0, "<l2[/red]>": 0.5},
            rates={"stem": 1e-5, "middle": 1e-5, "head": 1e-3},
            best={"accuracy": 0.75, "loss": 0.5},
            best_epoch=2,
        )
        track.step("seed 7", at, 2)
        at.batches, at.sums = 0, {}  # the epoch's end: its means stay
        track.step("seed 7", at, 0)
        LOGGER.info("[b]a line[/b]")
    said = sys.stderr.getvalue()
    assert "seed 7" in said and "6/6" in said and "[b]a line[/b]" in said
    assert "seed 7, epoch 3, step 12   task 0.5   <l2[/red]> 0.25" in said
    assert "best so far on val: epoch 2   accuracy 0.75   loss 0.5" in said
    assert "learning rates: stem to middle 1e-05, head 0.001" in said


def test_elsewhere_there_is_no_bar_and_quiet_is_silent(capsys):
    with bars(on=True) as track:
        LOGGER.info("a line")
        assert track is None
    with bars(on=False) as track:
        LOGGER.info("nothing")
        assert track is None
    assert capsys.readouterr().err == "a line\n"


def test_what_is_not_known_is_not_shown():
    assert best(Progress()) == "" and rates({}) == ""
    assert best(Progress(best={"accuracy": 0.5})) == "best so far on val: the starting point   accuracy 0.5"


@pytest.fixture
def clock(monkeypatch):
    """A clock that is set by hand."""
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def test_after_ten_seconds_a_stage_shows_rate_and_time_to_go(clock):
    said = []
    with lines_to(said.append):
        for _ in stage("hashing rows", 4_000).over(range(4_000)):
            clock[0] += 0.05
    assert said[0] == "hashing rows: 200 of 4,000 rows in 10 s, 20 a second, 3 min 10 s to go"
    assert said[1] == "hashing rows: 400 of 4,000 rows in 20 s, 20 a second, 3 min 0 s to go"
    assert said[-1] == "hashing rows: 4,000 of 4,000 rows in 3 min 20 s, 20 a second"
    assert len(said) == 6  # after 10, 20, 40, 80, 140 and 200 seconds


def test_a_short_stage_and_one_outside_are_silent(clock):
    said = []
    with lines_to(said.append):
        assert list(stage("short", 9).over(range(9))) == list(range(9))
    long = stage("long", 90)
    clock[0] = 99
    long.advance(45)
    assert said == []


def test_a_stage_without_a_total_says_what_is_done(clock):
    said = []
    with lines_to(said.append):
        counted = stage("linear probe", things="evaluations")
        clock[0] = 12
        counted.advance(24)
    assert said == ["linear probe: 24 evaluations in 12 s, 2 a second"]


def test_stages_speak_inside_the_bars(clock, capsys):
    for on in (True, False):
        with bars(on=on):
            long = stage("long", 90)
            clock[0] += 30
            long.advance(45)
    assert capsys.readouterr().err == "long: 45 of 90 rows in 30 s, 1.5 a second, 30 s to go\n"


def test_durations_are_said_in_two_units():
    assert [duration(s) for s in (0.4, 59.6, 3_599, 7_500)] == ["0 s", "1 min 0 s", "59 min 59 s", "2 h 5 min"]
