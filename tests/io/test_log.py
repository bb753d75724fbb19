"""The log of a run: its lines go where they are asked to, and nowhere else."""

from __future__ import annotations

import logging
import threading

import pytest

from regraft.io.log import LOGGER, PROGRESS, lines_to, silence
from regraft.io.progress import stage


@pytest.fixture
def root(caplog):
    """The records that a program's own handler gets, at WARNING as logging's default is."""
    logging.getLogger().setLevel(logging.WARNING)
    caplog.handler.setLevel(logging.NOTSET)
    return caplog


def test_lines_of_a_block_go_to_its_writer_alone(root):
    lines = []
    LOGGER.info("before")
    with lines_to(lines.append):
        LOGGER.info("rate %g", 0.1)
        LOGGER.debug("detail")
        PROGRESS.info("5 of 9 rows")
    LOGGER.info("after")
    assert lines == ["rate 0.1", "5 of 9 rows"]
    assert root.messages == []  # the program asked for warnings
    logger = logging.getLogger("regraft")
    assert logger.propagate and not logger.isEnabledFor(logging.INFO)


def test_a_program_gets_the_levels_that_it_asked_for(root):
    with lines_to(lambda line: None):
        LOGGER.warning("careful")
    logging.getLogger().setLevel(logging.INFO)
    with lines_to(lambda line: None):
        LOGGER.info("done")
    assert root.messages == ["careful", "done"]


def test_blocks_in_one_another_all_get_a_line():
    outer, inner = [], []
    with lines_to(outer.append), lines_to(inner.append, progress=False):
        LOGGER.info("a")
        PROGRESS.info("b")
    with lines_to(outer.append):
        LOGGER.info("c")
    assert (outer, inner) == (["a", "b", "c"], ["a"])


def test_a_silent_block_reports_nothing():
    lines = []
    with lines_to(lines.append):
        with silence():
            LOGGER.error("rank 1")
            PROGRESS.info("rank 1")
        LOGGER.info("rank 0")
    assert lines == ["rank 0"]


def test_an_error_of_the_writer_is_raised():
    def full(line):
        raise OSError("no space left")

    with lines_to(full), pytest.raises(OSError, match="no space"):
        LOGGER.info("a")


def test_two_threads_do_not_get_each_others_lines():
    begun, written = threading.Barrier(2), threading.Barrier(2)
    lines = {"a": [], "b": []}

    def run(name):
        with lines_to(lines[name].append):
            begun.wait(10)
            LOGGER.info("of %s", name)
            written.wait(10)
            LOGGER.info("end of %s", name)
        LOGGER.info("after %s", name)

    threads = [threading.Thread(target=run, args=(name,)) for name in lines]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert lines == {"a": ["of a", "end of a"], "b": ["of b", "end of b"]}


def test_a_stage_that_a_thread_advances_reports_to_its_block(monkeypatch):
    monkeypatch.setattr("regraft.io.progress.FIRST_LINE_S", 0)
    lines = []
    with lines_to(lines.append):
        thread = threading.Thread(target=stage("hashing rows", 4).advance, args=(2,))
        thread.start()
        thread.join()
    assert [line.split(" in ")[0] for line in lines] == ["hashing rows: 2 of 4 rows"]


@pytest.mark.parametrize("off", ["level", "disabled", "everywhere"])
def test_a_program_that_turns_logging_off_keeps_the_lines_of_a_run(off, monkeypatch):
    logger = logging.getLogger("regraft")
    if off == "level":
        monkeypatch.setattr(logger, "level", logging.CRITICAL)
    elif off == "disabled":  # dictConfig and fileConfig do so by default
        monkeypatch.setattr(logger, "disabled", True)
    else:
        monkeypatch.setattr(logging.root.manager, "disable", logging.CRITICAL)
    lines = []
    with lines_to(lines.append):
        LOGGER.info("a line")
    assert lines == ["a line"]


def test_a_record_names_the_file_that_reports(root):
    logging.getLogger().setLevel(logging.INFO)
    LOGGER.info("a line")
    assert [(r.name, r.filename) for r in root.records] == [("regraft", "test_log.py")]


def test_a_program_without_handlers_sees_nothing(monkeypatch, capsys):
    monkeypatch.setattr(logging.getLogger(), "handlers", [])
    with lines_to(lambda line: None):
        LOGGER.warning("careful")
    assert capsys.readouterr() == ("", "")
